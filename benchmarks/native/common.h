/* Shared by the load client and the simulated upstream: clock, histogram, case files, sockets, timers, TLS.
 *
 * Both programs are one thread around one epoll. They read the same case file, written by benchmarks/cases.py, so
 * the client knows every byte that the upstream will send and the upstream knows every byte that a client sends:
 * both sides compare with memcmp, which is exact and costs less than a digest.
 */
#ifndef BENCH_COMMON_H
#define BENCH_COMMON_H
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <netdb.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <signal.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <sys/epoll.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/timerfd.h>
#include <sys/uio.h>
#include <time.h>
#include <unistd.h>
#ifdef BENCH_TLS
#include <openssl/err.h>
#include <openssl/ssl.h>
#endif

#define SECOND_NS 1000000000ull
#define HEAD_BYTES_MAX 16384 /* a request or response head, with room to spare over what SDKs and providers send */

#define SHARED static __attribute__((unused)) /* not both programs use everything */

SHARED void die(const char *format, ...) {
    va_list args;
    va_start(args, format);
    vfprintf(stderr, format, args);
    va_end(args);
    fputc('\n', stderr);
    exit(1);
}

static inline uint64_t now_ns(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (uint64_t)t.tv_sec * SECOND_NS + (uint64_t)t.tv_nsec;
}

static inline uint64_t clock_of(clockid_t id) {
    struct timespec t;
    if (clock_gettime(id, &t) != 0) return 0;
    return (uint64_t)t.tv_sec * SECOND_NS + (uint64_t)t.tv_nsec;
}

/* ---- histogram: logarithmic with 128 steps per power of two, so a percentile is right to 0.8 % ---- */

#define HIST_STEP_BITS 7
#define HIST_BUCKETS 5120
#define HIST_MAX ((1ull << 44) - 1)

typedef struct {
    uint64_t count, sum, min, max;
    uint64_t bucket[HIST_BUCKETS];
} Histogram;

static inline void hist_add(Histogram *h, uint64_t value) {
    if (value > HIST_MAX) value = HIST_MAX;
    unsigned index;
    if (value < 2u << HIST_STEP_BITS) {
        index = (unsigned)value;
    } else {
        unsigned shift = 63u - (unsigned)__builtin_clzll(value) - HIST_STEP_BITS;
        index = (shift << HIST_STEP_BITS) + (unsigned)(value >> shift);
    }
    h->bucket[index]++;
    if (h->count == 0 || value < h->min) h->min = value;
    if (value > h->max) h->max = value;
    h->count++;
    h->sum += value;
}

SHARED uint64_t hist_value(unsigned index) {
    if (index < 2u << HIST_STEP_BITS) return index;
    unsigned shift = (index >> HIST_STEP_BITS) - 1;
    uint64_t low = (uint64_t)((index & ((1u << HIST_STEP_BITS) - 1)) + (1u << HIST_STEP_BITS)) << shift;
    return low + (1ull << shift) / 2;
}

SHARED uint64_t hist_percentile(const Histogram *h, double percent) {
    if (h->count == 0) return 0;
    uint64_t rank = (uint64_t)((double)h->count * percent / 100.0 + 0.999999), seen = 0;
    if (rank < 1) rank = 1;
    if (rank >= h->count) return h->max;
    for (unsigned i = 0; i < HIST_BUCKETS; i++) {
        seen += h->bucket[i];
        if (seen >= rank) {
            uint64_t value = hist_value(i);
            return value > h->max ? h->max : value < h->min ? h->min : value;
        }
    }
    return h->max;
}

static const double PERCENTILES[] = {1, 5, 10, 25, 50, 75, 90, 95, 99, 99.5, 99.9, 99.99, 100};

/* {"count":…,"mean":…,"p50":…,…}, times in microseconds */
SHARED void hist_print(FILE *out, const char *name, const Histogram *h) {
    fprintf(out, "\"%s\":{\"count\":%llu,\"mean\":%.3f,\"min\":%.3f", name, (unsigned long long)h->count,
            h->count ? (double)h->sum / (double)h->count / 1e3 : 0.0, (double)h->min / 1e3);
    for (unsigned i = 0; i < sizeof PERCENTILES / sizeof *PERCENTILES; i++)
        fprintf(out, ",\"p%g\":%.3f", PERCENTILES[i], (double)hist_percentile(h, PERCENTILES[i]) / 1e3);
    fputc('}', out);
}

/* ---- case files ---- */

#define STAMP_BYTES 16 /* hexadecimal digits: the time at which the upstream meant to send this event, monotonic ns */
#define MARK_BYTES_MAX 4096 /* the case's number stands within the first 4 KiB of a request body */

typedef struct {
    uint32_t start, end, hole; /* offsets in the answer; hole is the offset of the stamp, or UINT32_MAX */
} Piece;

typedef struct {
    uint32_t stream, pieces, packet_pieces, gap_us, delay_us;
    uint64_t answer_bytes, body_bytes;
    Piece *piece;
    uint8_t *answer, *body;
} Case;

SHARED void read_exactly(FILE *f, void *p, size_t n, const char *path) {
    if (n && fread(p, 1, n, f) != n) die("%s: file is short", path);
}

SHARED Case *case_load(const char *path) {
    FILE *f = fopen(path, "rb");
    if (!f) die("%s: %s", path, strerror(errno));
    struct {
        char magic[8];
        uint32_t stream, pieces, packet_pieces, gap_us, delay_us, reserved;
        uint64_t answer_bytes, body_bytes;
    } head;
    read_exactly(f, &head, sizeof head, path);
    if (memcmp(head.magic, "RBCASE1\n", 8) != 0) die("%s: not a case file", path);
    if (head.pieces < 1 || head.pieces > 1000000 || head.answer_bytes > 1u << 30 || head.body_bytes > 1u << 30 ||
        head.packet_pieces < 1)
        die("%s: numbers out of range", path);
    Case *c = calloc(1, sizeof *c);
    c->stream = head.stream, c->pieces = head.pieces, c->packet_pieces = head.packet_pieces;
    c->gap_us = head.gap_us, c->delay_us = head.delay_us;
    c->answer_bytes = head.answer_bytes, c->body_bytes = head.body_bytes;
    c->piece = calloc(head.pieces, sizeof *c->piece);
    c->answer = malloc(head.answer_bytes + 1);
    c->body = malloc(head.body_bytes + 1);
    uint32_t offset = 0;
    for (uint32_t i = 0; i < head.pieces; i++) {
        uint32_t length;
        read_exactly(f, &length, sizeof length, path);
        c->piece[i].start = offset;
        c->piece[i].end = offset += length;
    }
    if (offset != head.answer_bytes) die("%s: pieces do not add up", path);
    read_exactly(f, c->answer, head.answer_bytes, path);
    read_exactly(f, c->body, head.body_bytes, path);
    fclose(f);
    for (uint32_t i = 0; i < head.pieces; i++) {
        Piece *p = &c->piece[i];
        uint8_t *hole = memmem(c->answer + p->start, p->end - p->start, "@@@@@@@@@@@@@@@@", STAMP_BYTES);
        p->hole = hole ? (uint32_t)(hole - c->answer) : UINT32_MAX;
    }
    return c;
}

SHARED void stamp_write(uint8_t *at, uint64_t value) {
    for (int i = STAMP_BYTES - 1; i >= 0; i--, value >>= 4) at[i] = (uint8_t)"0123456789abcdef"[value & 15];
}

static inline int hex_digit(uint8_t b) {
    if (b >= '0' && b <= '9') return b - '0';
    if (b >= 'a' && b <= 'f') return b - 'a' + 10;
    return -1;
}

/* Value of a header in a head that ends with an empty line, or NULL; *length excludes blanks around it. */
SHARED const char *header_value(const char *head, size_t head_bytes, const char *name, size_t *length) {
    size_t name_bytes = strlen(name);
    const char *end = head + head_bytes, *line = memchr(head, '\n', head_bytes);
    while (line && ++line < end) {
        const char *next = memchr(line, '\n', (size_t)(end - line));
        const char *stop = next ? next : end;
        if ((size_t)(stop - line) > name_bytes && line[name_bytes] == ':' && strncasecmp(line, name, name_bytes) == 0) {
            const char *value = line + name_bytes + 1;
            while (value < stop && (*value == ' ' || *value == '\t')) value++;
            while (stop > value && (stop[-1] == '\r' || stop[-1] == ' ' || stop[-1] == '\t')) stop--;
            *length = (size_t)(stop - value);
            return value;
        }
        line = next;
    }
    return NULL;
}

/* ---- timers: a binary heap of things due, and one timerfd for the nearest (epoll_wait alone only knows milliseconds) ---- */

typedef struct Timed {
    uint64_t due_ns;
    int heap_index; /* -1: not in the heap */
} Timed;

typedef struct {
    Timed **item;
    int count, capacity, fd;
    uint64_t armed_ns;
} Timers;

SHARED void heap_swap(Timers *t, int a, int b) {
    Timed *x = t->item[a];
    t->item[a] = t->item[b], t->item[b] = x;
    t->item[a]->heap_index = a, t->item[b]->heap_index = b;
}

SHARED void heap_fix(Timers *t, int i) {
    while (i > 0 && t->item[(i - 1) / 2]->due_ns > t->item[i]->due_ns) heap_swap(t, i, (i - 1) / 2), i = (i - 1) / 2;
    for (;;) {
        int child = 2 * i + 1;
        if (child >= t->count) return;
        if (child + 1 < t->count && t->item[child + 1]->due_ns < t->item[child]->due_ns) child++;
        if (t->item[i]->due_ns <= t->item[child]->due_ns) return;
        heap_swap(t, i, child), i = child;
    }
}

SHARED void timer_remove(Timers *t, Timed *x) {
    int i = x->heap_index;
    if (i < 0) return;
    t->count--;
    if (i != t->count) {
        t->item[i] = t->item[t->count];
        t->item[i]->heap_index = i;
        heap_fix(t, i);
    }
    x->heap_index = -1;
}

SHARED void timer_set(Timers *t, Timed *x, uint64_t due_ns) {
    timer_remove(t, x);
    if (t->count == t->capacity) {
        t->capacity = t->capacity ? t->capacity * 2 : 1024;
        t->item = realloc(t->item, (size_t)t->capacity * sizeof *t->item);
    }
    x->due_ns = due_ns;
    x->heap_index = t->count;
    t->item[t->count++] = x;
    heap_fix(t, x->heap_index);
}

SHARED Timed *timer_due(Timers *t, uint64_t now) {
    if (t->count == 0 || t->item[0]->due_ns > now) return NULL;
    Timed *x = t->item[0];
    timer_remove(t, x);
    return x;
}

/* The timerfd is edge-triggered in epoll, so it is never read. */
SHARED void timers_open(Timers *t, int epoll) {
    t->fd = timerfd_create(CLOCK_MONOTONIC, TFD_NONBLOCK | TFD_CLOEXEC);
    struct epoll_event e = {.events = EPOLLIN | EPOLLET, .data.ptr = t};
    if (t->fd < 0 || epoll_ctl(epoll, EPOLL_CTL_ADD, t->fd, &e) != 0) die("timerfd: %s", strerror(errno));
}

SHARED void timers_arm(Timers *t) {
    uint64_t due = t->count ? t->item[0]->due_ns : 0;
    if (due == t->armed_ns) return;
    struct itimerspec spec = {.it_value = {(time_t)(due / SECOND_NS), (long)(due % SECOND_NS)}};
    timerfd_settime(t->fd, TFD_TIMER_ABSTIME, &spec, NULL);
    t->armed_ns = due;
}

/* ---- sockets, with TLS behind the same two calls ---- */

typedef struct {
    int fd;
#ifdef BENCH_TLS
    SSL *ssl;
#endif
} Line;

#define LINE_AGAIN (-1)
#define LINE_CLOSED (-2)
#define LINE_WANT_READ (-3) /* a TLS write that must wait for the other side, not for room */

#ifdef BENCH_TLS
SHARED ssize_t tls_result(SSL *ssl, int n) {
    if (n > 0) return n;
    int error = SSL_get_error(ssl, n);
    ERR_clear_error();
    if (error == SSL_ERROR_WANT_WRITE) return LINE_AGAIN;
    return error == SSL_ERROR_WANT_READ ? LINE_WANT_READ : LINE_CLOSED;
}
#endif

SHARED ssize_t line_read(Line *l, void *p, size_t n) {
#ifdef BENCH_TLS
    if (l->ssl) {
        ssize_t got = tls_result(l->ssl, SSL_read(l->ssl, p, (int)(n > INT_MAX ? INT_MAX : n)));
        return got == LINE_WANT_READ ? LINE_AGAIN : got;
    }
#endif
    ssize_t got = recv(l->fd, p, n, 0);
    if (got > 0) return got;
    if (got < 0 && (errno == EAGAIN || errno == EINTR)) return LINE_AGAIN;
    return LINE_CLOSED;
}

SHARED ssize_t line_write(Line *l, const struct iovec *part, int parts) {
#ifdef BENCH_TLS
    if (l->ssl) { /* one record per part; callers that care join small parts first */
        ssize_t total = 0;
        for (int i = 0; i < parts; i++) {
            if (part[i].iov_len == 0) continue;
            size_t want = part[i].iov_len > 1 << 20 ? 1 << 20 : part[i].iov_len;
            ssize_t n = tls_result(l->ssl, SSL_write(l->ssl, part[i].iov_base, (int)want));
            if (n < 0) return total ? total : n;
            total += n;
            if ((size_t)n < part[i].iov_len) return total;
        }
        return total;
    }
#endif
    struct msghdr message = {.msg_iov = (struct iovec *)part, .msg_iovlen = (size_t)parts};
    ssize_t sent = sendmsg(l->fd, &message, MSG_NOSIGNAL);
    if (sent >= 0) return sent;
    return errno == EAGAIN || errno == EINTR ? LINE_AGAIN : LINE_CLOSED;
}

SHARED void line_close(Line *l) {
#ifdef BENCH_TLS
    if (l->ssl) {
        SSL_shutdown(l->ssl);
        SSL_free(l->ssl);
        ERR_clear_error();
        l->ssl = NULL;
    }
#endif
    if (l->fd >= 0) close(l->fd);
    l->fd = -1;
}

SHARED void no_delay(int fd) {
    int one = 1;
    setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
}

SHARED void files_max(void) {
    struct rlimit r;
    if (getrlimit(RLIMIT_NOFILE, &r) == 0) {
        r.rlim_cur = r.rlim_max;
        setrlimit(RLIMIT_NOFILE, &r);
    }
}

SHARED struct addrinfo *address_of(const char *host, const char *port) {
    struct addrinfo hints = {.ai_socktype = SOCK_STREAM, .ai_family = AF_UNSPEC}, *found = NULL;
    int error = getaddrinfo(host, port, &hints, &found);
    if (error) die("%s:%s: %s", host, port, gai_strerror(error));
    return found;
}

/* ---- command line: --name value, unknown names are errors ---- */

typedef struct {
    const char *name, *value, *what;
} Option;

SHARED const char *option(Option *options, const char *name) {
    for (Option *o = options; o->name; o++)
        if (strcmp(o->name, name) == 0) return o->value;
    die("internal: no option %s", name);
    return NULL;
}

SHARED double option_number(Option *options, const char *name) {
    const char *text = option(options, name);
    char *end;
    double value = strtod(text, &end);
    if (end == text || *end || value < 0) die("--%s: expected a number, not %s", name, text);
    return value;
}

/* Returns the index of the first argument that is not an option. */
SHARED int options_read(Option *options, int argc, char **argv) {
    int i = 1;
    for (; i < argc && strncmp(argv[i], "--", 2) == 0; i += 2) {
        Option *o = options;
        while (o->name && strcmp(o->name, argv[i] + 2) != 0) o++;
        if (!o->name || i + 1 >= argc) {
            fprintf(stderr, "%s: unknown option or no value: %s\n", argv[0], argv[i]);
            for (o = options; o->name; o++) fprintf(stderr, "  --%-14s %s (%s)\n", o->name, o->what, o->value);
            exit(2);
        }
        o->value = argv[i + 1];
    }
    return i;
}
#endif
