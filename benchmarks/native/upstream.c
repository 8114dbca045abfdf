/* The simulated upstream: answers every POST with the case that its body names ("bench:N"), paced as the case says.
 *
 * Events leave on an absolute schedule that starts when the request was read: event i is due at start + delay + i * gap,
 * however late the ones before it went out. The due time is written into the event, so the client measures lateness
 * against what was meant, and a proxy that pushes back cannot hide its delay.
 * An unpaced stream (gap 0) sends one packet per turn of the event loop, so that events of many streams interleave.
 *
 *   upstream --listen 127.0.0.1:9000 [--certificate F --key F] CASE_FILE …
 *   GET /bench/stats   counters as JSON
 */
#include "common.h"

enum State { READ_HEAD, READ_MARK, READ_BODY, ANSWER };

typedef struct Conn {
    Timed timed; /* first member: the heap gives it back */
    Line line;
    enum State state;
    bool writing, dead, body_right;
    const Case *wanted;
    uint32_t piece;                       /* next piece to send */
    uint64_t start_ns, body_bytes, body_read;
    uint8_t *out;                         /* bytes the socket did not take, out_at … out_end */
    size_t out_at, out_end, out_capacity;
    size_t head_bytes;
    uint8_t head[HEAD_BYTES_MAX];         /* the request head, then the first bytes of the body until the mark is found */
    struct Conn *next_dead;
} Conn;

static struct {
    uint64_t connections, open, requests, answered, aborted, bad_requests, body_mismatches, unknown_cases, body_bytes, events;
    Histogram late;
} stats;

static Case *cases[64];
static uint64_t answered_of[64];
static int case_count, epoll;
static Timers timers;
static Conn *graveyard; /* freed after the batch of events, which may still name them */
static uint8_t input[1 << 18];
static uint8_t output[1 << 20];
#ifdef BENCH_TLS
static SSL_CTX *tls;
#define HAS_TLS(c) ((c)->line.ssl != NULL) /* OpenSSL may hold more than epoll shows: read until it has no more */
#else
#define HAS_TLS(c) false
#endif

static void conn_close(Conn *c) {
    if (c->dead) return;
    c->dead = true;
    if (c->state == ANSWER) stats.aborted++;
    timer_remove(&timers, &c->timed);
    line_close(&c->line);
    stats.open--;
    c->next_dead = graveyard;
    graveyard = c;
}

static void watch(Conn *c, bool writing) {
    if (c->writing == writing) return;
    c->writing = writing;
    struct epoll_event e = {.events = EPOLLIN | EPOLLRDHUP | (writing ? EPOLLOUT : 0u), .data.ptr = c};
    epoll_ctl(epoll, EPOLL_CTL_MOD, c->line.fd, &e);
}

static void finish_answer(Conn *c) {
    stats.answered++;
    for (int i = 0; i < case_count; i++) answered_of[i] += c->wanted == cases[i];
    c->state = READ_HEAD;
    c->head_bytes = 0;
    c->wanted = NULL;
}

static void flush_out(Conn *c) {
    while (c->out_at < c->out_end) {
        struct iovec part = {c->out + c->out_at, c->out_end - c->out_at};
        ssize_t n = line_write(&c->line, &part, 1);
        if (n == LINE_CLOSED) return conn_close(c);
        if (n < 0) return watch(c, true);
        c->out_at += (size_t)n;
    }
    c->out_at = c->out_end = 0;
    free(c->out);
    c->out = NULL, c->out_capacity = 0;
    watch(c, false);
    if (c->state == ANSWER && c->wanted && c->piece == c->wanted->pieces) finish_answer(c);
}

/* Sends, or keeps what the socket does not take; a client that reads slowly costs memory here, at most one answer. */
static void send_bytes(Conn *c, const uint8_t *p, size_t n) {
    if (c->out_at == c->out_end) {
        struct iovec part = {(void *)p, n};
        ssize_t sent = line_write(&c->line, &part, 1);
        if (sent == LINE_CLOSED) return conn_close(c);
        if (sent > 0) p += sent, n -= (size_t)sent;
        if (n == 0) return;
    }
    if (c->out_end + n > c->out_capacity) {
        c->out_capacity = (c->out_end + n) * 2;
        c->out = realloc(c->out, c->out_capacity);
        if (!c->out) die("out of memory");
    }
    memcpy(c->out + c->out_end, p, n);
    c->out_end += n;
    watch(c, true);
}

static uint64_t due_of(const Conn *c) {
    uint64_t packet = c->piece / c->wanted->packet_pieces;
    return c->start_ns + c->wanted->delay_us * 1000ull + packet * c->wanted->gap_us * 1000ull;
}

static const char COMMON_HEADERS[] =
    "date: Sat, 21 Nov 2026 01:00:00 GMT\r\n"
    "server: bench-upstream\r\n"
    "x-request-id: req_5f2c1f9f0f5b4a4f8f6d8f7f3c2b1a00\r\n"
    "openai-organization: bench\r\n"
    "openai-processing-ms: 7\r\n"
    "openai-version: 2020-10-01\r\n"
    "x-ratelimit-limit-requests: 10000\r\n"
    "x-ratelimit-remaining-requests: 9999\r\n"
    "x-ratelimit-reset-requests: 6ms\r\n"
    "strict-transport-security: max-age=31536000; includeSubDomains; preload\r\n"
    "x-content-type-options: nosniff\r\n";

static void send_packet(Conn *c, uint64_t due_ns, uint64_t now) {
    const Case *k = c->wanted;
    size_t n = 0;
    uint32_t first = c->piece, last = first + k->packet_pieces < k->pieces ? first + k->packet_pieces : k->pieces;
    uint32_t bytes = k->piece[last - 1].end - k->piece[first].start;
    if (first == 0) {
        n += (size_t)sprintf((char *)output, "HTTP/1.1 200 OK\r\n%scontent-type: %s\r\n", COMMON_HEADERS,
                             k->stream ? "text/event-stream; charset=utf-8" : "application/json");
        if (k->stream)
            n += (size_t)sprintf((char *)output + n, "cache-control: no-cache\r\ntransfer-encoding: chunked\r\n\r\n");
        else
            n += (size_t)sprintf((char *)output + n, "content-length: %llu\r\n\r\n", (unsigned long long)k->answer_bytes);
    }
    if (k->stream) n += (size_t)sprintf((char *)output + n, "%x\r\n", bytes);
    if (n + bytes + 16 > sizeof output) die("a packet of the case is larger than %zu bytes", sizeof output);
    uint8_t *at = output + n;
    memcpy(at, k->answer + k->piece[first].start, bytes);
    for (uint32_t i = first; i < last; i++)
        if (k->piece[i].hole != UINT32_MAX) stamp_write(at + (k->piece[i].hole - k->piece[first].start), due_ns);
    n += bytes;
    if (k->stream) {
        memcpy(output + n, "\r\n0\r\n\r\n", 7);
        n += last == k->pieces ? 7 : 2;
    }
    hist_add(&stats.late, now > due_ns ? now - due_ns : 0);
    stats.events += last - first;
    c->piece = last;
    send_bytes(c, output, n);
    if (!c->dead && c->piece == k->pieces && c->out_at == c->out_end) finish_answer(c);
}

/* Sets the clock for the packet after the one just sent; unpaced ones go out in the next turn of the loop. */
static void schedule(Conn *c, uint64_t now) {
    if (c->dead || c->state != ANSWER || c->piece == c->wanted->pieces) return;
    timer_set(&timers, &c->timed, c->wanted->gap_us ? due_of(c) : now);
}

static void packet_due(Conn *c, uint64_t now) {
    bool paced = c->wanted->gap_us || c->piece == 0;
    if (!paced && c->out_at != c->out_end) { /* the client reads slowly: look again soon */
        timer_set(&timers, &c->timed, now + 100000);
        return;
    }
    send_packet(c, paced ? due_of(c) : now, now);
    schedule(c, now);
}

static void send_stats(Conn *c) {
    char *text = NULL;
    size_t n = 0;
    FILE *f = open_memstream(&text, &n);
    fprintf(f,
            "{\"connections\":%llu,\"open\":%llu,\"requests\":%llu,\"answered\":%llu,\"aborted\":%llu,\"bad_requests\":%llu,"
            "\"body_mismatches\":%llu,\"unknown_cases\":%llu,\"body_bytes\":%llu,\"events\":%llu,\"cpu_ns\":%llu,",
            (unsigned long long)stats.connections, (unsigned long long)stats.open, (unsigned long long)stats.requests,
            (unsigned long long)stats.answered, (unsigned long long)stats.aborted, (unsigned long long)stats.bad_requests,
            (unsigned long long)stats.body_mismatches, (unsigned long long)stats.unknown_cases,
            (unsigned long long)stats.body_bytes, (unsigned long long)stats.events,
            (unsigned long long)clock_of(CLOCK_PROCESS_CPUTIME_ID));
    fprintf(f, "\"answered_of\":[");
    for (int i = 0; i < case_count; i++) fprintf(f, "%s%llu", i ? "," : "", (unsigned long long)answered_of[i]);
    fprintf(f, "],");
    hist_print(f, "late_us", &stats.late);
    fprintf(f, "}\n");
    fclose(f);
    char head[256];
    int head_bytes = snprintf(head, sizeof head, "HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %zu\r\n\r\n", n);
    send_bytes(c, (uint8_t *)head, (size_t)head_bytes);
    if (!c->dead) send_bytes(c, (uint8_t *)text, n);
    free(text);
    memset(&stats.late, 0, sizeof stats.late); /* lateness is read per run, counters are read as differences */
}

static void send_error(Conn *c, const char *status) {
    char text[256];
    int n = snprintf(text, sizeof text, "HTTP/1.1 %s\r\ncontent-length: 0\r\nconnection: close\r\n\r\n", status);
    stats.bad_requests++;
    send_bytes(c, (uint8_t *)text, (size_t)n);
    conn_close(c);
}

static void body_complete(Conn *c) {
    stats.requests++;
    stats.body_mismatches += !c->body_right;
    c->state = ANSWER;
    c->piece = 0;
    c->start_ns = now_ns();
    if (c->wanted->delay_us) return timer_set(&timers, &c->timed, due_of(c));
    send_packet(c, c->start_ns, c->start_ns);
    schedule(c, c->start_ns);
}

/* "bench:N" stands in the first message of the prompt. */
static void find_case(Conn *c) {
    uint8_t *mark = memmem(c->head, c->head_bytes, "bench:", 6);
    int number = mark ? atoi((char *)mark + 6) : -1; /* the buffer is ended with a zero */
    if (number < 0 || number >= case_count) {
        stats.unknown_cases++;
        return send_error(c, "400 Bad Request");
    }
    c->wanted = cases[number];
}

/* Compares the expected body with the bytes as they arrive; nothing of a body is kept. */
static void take_body(Conn *c, const uint8_t *p, size_t n) {
    c->body_right = c->body_right && memcmp(c->wanted->body + c->body_read, p, n) == 0;
    c->body_read += n;
    if (c->body_read == c->body_bytes) body_complete(c);
}

static void feed(Conn *c, const uint8_t *p, size_t n) {
    while (n > 0 && !c->dead) {
        if (c->state == READ_HEAD) {
            size_t take = n < HEAD_BYTES_MAX - c->head_bytes - 1 ? n : HEAD_BYTES_MAX - c->head_bytes - 1;
            if (take == 0) return send_error(c, "431 Request Header Fields Too Large");
            size_t before = c->head_bytes;
            memcpy(c->head + before, p, take);
            c->head_bytes += take;
            size_t from = before > 3 ? before - 3 : 0;
            uint8_t *end = memmem(c->head + from, c->head_bytes - from, "\r\n\r\n", 4);
            if (!end) {
                p += take, n -= take;
                continue;
            }
            size_t head_bytes = (size_t)(end - c->head) + 4, used = head_bytes - before, length;
            p += used, n -= used;
            if (head_bytes > 16 && memcmp(c->head, "GET /bench/stats", 16) == 0) {
                c->head_bytes = 0;
                send_stats(c);
                continue;
            }
            const char *value = header_value((char *)c->head, head_bytes, "content-length", &length);
            if (memcmp(c->head, "POST ", 5) != 0) return send_error(c, "404 Not Found");
            if (!value) return send_error(c, "411 Length Required");
            c->body_bytes = strtoull(value, NULL, 10);
            c->body_read = 0;
            c->head_bytes = 0;
            c->state = READ_MARK;
            stats.body_bytes += c->body_bytes;
            if (c->body_bytes == 0) return send_error(c, "400 Bad Request");
        } else if (c->state == READ_MARK) {
            size_t want = c->body_bytes < MARK_BYTES_MAX ? c->body_bytes : MARK_BYTES_MAX;
            size_t take = n < want - c->head_bytes ? n : want - c->head_bytes;
            memcpy(c->head + c->head_bytes, p, take);
            c->head_bytes += take;
            p += take, n -= take;
            if (c->head_bytes < want) return;
            c->head[want] = 0;
            find_case(c);
            if (c->dead) return;
            c->body_right = c->body_bytes == c->wanted->body_bytes;
            c->state = READ_BODY;
            take_body(c, c->head, want);
        } else if (c->state == READ_BODY) {
            size_t left = c->body_bytes - c->body_read, take = n < left ? n : left;
            take_body(c, p, take);
            p += take, n -= take;
        } else {
            return conn_close(c); /* bytes behind a request that is being answered: nobody here pipelines */
        }
    }
}

static void accept_all(int listener) {
    for (;;) {
        int fd = accept4(listener, NULL, NULL, SOCK_NONBLOCK | SOCK_CLOEXEC);
        if (fd < 0) return;
        no_delay(fd);
        Conn *c = malloc(sizeof *c);
        if (!c) die("out of memory");
        memset(c, 0, offsetof(Conn, head)); /* the head buffer stays untouched, so idle connections cost little */
        c->next_dead = NULL;
        c->timed.heap_index = -1;
        c->line.fd = fd;
#ifdef BENCH_TLS
        if (tls) {
            c->line.ssl = SSL_new(tls);
            SSL_set_fd(c->line.ssl, fd);
            SSL_set_accept_state(c->line.ssl);
        }
#endif
        struct epoll_event e = {.events = EPOLLIN | EPOLLRDHUP, .data.ptr = c};
        epoll_ctl(epoll, EPOLL_CTL_ADD, fd, &e);
        stats.connections++;
        stats.open++;
    }
}

static void readable(Conn *c) {
    for (int reads = 0; reads < 4 || HAS_TLS(c); reads++) { /* then the others; epoll says again that more is there */
        ssize_t n = line_read(&c->line, input, sizeof input);
        if (n == LINE_AGAIN) return;
        if (n == LINE_CLOSED) return conn_close(c);
        feed(c, input, (size_t)n);
        if (c->dead) return;
        if (!HAS_TLS(c) && (size_t)n < sizeof input) return;
    }
}

int main(int argc, char **argv) {
    Option options[] = {{"listen", "127.0.0.1:9000", "address"},
                        {"certificate", "", "PEM chain: answer over TLS"},
                        {"key", "", "PEM private key"},
                        {NULL, NULL, NULL}};
    int first = options_read(options, argc, argv);
    for (int i = first; i < argc; i++) {
        if (case_count == 64) die("at most 64 cases");
        cases[case_count++] = case_load(argv[i]);
    }
    signal(SIGPIPE, SIG_IGN);
    files_max();
    char host[256];
    snprintf(host, sizeof host, "%s", option(options, "listen"));
    char *colon = strrchr(host, ':');
    if (!colon) die("--listen HOST:PORT");
    *colon = 0;
#ifdef BENCH_TLS
    if (*option(options, "certificate")) {
        tls = SSL_CTX_new(TLS_server_method());
        SSL_CTX_set_mode(tls, SSL_MODE_ENABLE_PARTIAL_WRITE | SSL_MODE_ACCEPT_MOVING_WRITE_BUFFER | SSL_MODE_RELEASE_BUFFERS);
        if (SSL_CTX_use_certificate_chain_file(tls, option(options, "certificate")) != 1 ||
            SSL_CTX_use_PrivateKey_file(tls, option(options, "key"), SSL_FILETYPE_PEM) != 1)
            die("certificate or key cannot be used");
    }
#else
    if (*option(options, "certificate")) die("built without TLS: no OpenSSL headers were found");
#endif
    struct addrinfo *address = address_of(host, colon + 1);
    int listener = socket(address->ai_family, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0), one = 1;
    setsockopt(listener, SOL_SOCKET, SO_REUSEADDR, &one, sizeof one);
    if (bind(listener, address->ai_addr, address->ai_addrlen) != 0 || listen(listener, 8192) != 0)
        die("%s: %s", option(options, "listen"), strerror(errno));
    freeaddrinfo(address);
    epoll = epoll_create1(EPOLL_CLOEXEC);
    struct epoll_event e = {.events = EPOLLIN, .data.ptr = NULL};
    epoll_ctl(epoll, EPOLL_CTL_ADD, listener, &e);
    timers_open(&timers, epoll);
    printf("ready\n");
    fflush(stdout);
    for (;;) {
        struct epoll_event events[256];
        uint64_t now = now_ns();
        bool due_now = timers.count && timers.item[0]->due_ns <= now;
        if (!due_now) timers_arm(&timers);
        int n = epoll_wait(epoll, events, 256, due_now ? 0 : -1);
        for (int i = 0; i < n; i++) {
            if (events[i].data.ptr == NULL) {
                accept_all(listener);
                continue;
            }
            if (events[i].data.ptr == &timers) {
                timers.armed_ns = 0;
                continue;
            }
            Conn *c = events[i].data.ptr;
            if (!c->dead && events[i].events & EPOLLOUT) flush_out(c);
            if (!c->dead && events[i].events & (EPOLLIN | EPOLLRDHUP | EPOLLHUP | EPOLLERR)) readable(c);
        }
        now = now_ns();
        /* what is set for "now" during this turn waits for the next one: one packet per stream and turn */
        for (Timed *t; (t = timer_due(&timers, now - 1));) packet_due((Conn *)t, now);
        while (graveyard) {
            Conn *c = graveyard;
            graveyard = c->next_dead;
            free(c->out);
            free(c);
        }
    }
}
