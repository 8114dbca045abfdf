/* The load client: one thread, many connections, closed loop (every connection always has one call open) or open loop
 * (calls are due at a rate, whatever became of the ones before; latency counts from the moment a call was due, so a
 * proxy that stalls is charged for every call that would have been made meanwhile).
 *
 * Every answer is compared byte for byte with the case; a difference is an error, and an error fails the run.
 * At the start and the end of the measured window the CPU clocks of the processes in --pids are read in the same
 * moment as the counters, so CPU per call has no gap between the two.
 *
 * Output, one JSON document per line: {"progress":…} every second, {"mark":"start"|"end"} at the window's edges, and
 * {"result":…} at last.
 */
#include "common.h"
#include <math.h>

enum Fault { F_CONNECT, F_CLOSED, F_STATUS, F_MISMATCH, F_PROTOCOL, F_TIMEOUT, F_COUNT };
static const char *const FAULTS[] = {"connect", "closed", "status", "mismatch", "protocol", "timeout"};

enum Framing { LENGTH, CHUNKED, UNTIL_CLOSE };
enum Chunk { CHUNK_SIZE, CHUNK_EXTENSION, CHUNK_DATA, CHUNK_END, TRAILER };

typedef struct Conn {
    Timed timed; /* first member; set while the connection waits before its next call */
    Line line;
    bool active, writing, used, head_done, keep, sent;
    uint32_t request;       /* which request head */
    uint64_t due_ns;        /* when the call was due: what latency counts from */
    uint64_t sent_ns;       /* when its first byte was handed over */
    uint64_t first_byte_ns, last_event_ns;
    uint64_t sent_bytes;
    enum Framing framing;
    enum Chunk chunk;
    uint64_t left;          /* of the body, or of the chunk */
    int status;
    uint32_t at, piece;     /* position in the expected answer */
    uint64_t stamp;
    int newlines, done_match; /* loose mode: end of an event, and how much of "[DONE]" was seen */
    uint32_t trailer_line;
    size_t head_bytes;
    char head[HEAD_BYTES_MAX];
} Conn;

typedef struct {
    uint32_t bytes;
    char *head;
} Request;

static struct {
    uint64_t started, finished, events, faults[F_COUNT], connects, unfinished, dropped, queued_max, reconnects;
    uint64_t statuses[600];
} total;

static struct {
    uint64_t calls, events, bytes;
    Histogram latency, first_byte, gap, lateness;
} window;

static struct {
    int connections, per_call_connection, exact, stream, tls;
    double rate, ramp_s, pause_s;
    uint64_t timeout_ns, calls_max, burst;
} conf;

static Case *expected;
static Request *requests;
static uint32_t request_count, request_next;
static Conn **conns;
static int opened;              /* connections in use so far, of conf.connections */
static Conn **idle;
static int idle_count, active_count, epoll;
static Timers timers;
static Timed start_mark, end_mark, arrival, tick;
static uint64_t t0, window_start, window_end;
static bool begun, ended;
static struct addrinfo *address;
static uint8_t input[1 << 18];
static char first_fault[700];
static uint64_t *queue, queue_head, queue_tail;
#define QUEUE_MAX (1u << 20)
static pid_t pids[256];
static int pid_count;
static uint64_t cpu_start[256], cpu_end[256], own_cpu_start, own_cpu_end;
static uint64_t random_state = 88172645463325252ull;
#ifdef BENCH_TLS
static SSL_CTX *tls;
static const char *server_name;
#endif

static double random_unit(void) {
    random_state ^= random_state << 13, random_state ^= random_state >> 7, random_state ^= random_state << 17;
    return ((double)(random_state >> 11) + 1.0) / 9007199254740993.0;
}

static inline bool in_window(uint64_t now) { return now >= window_start && now < window_end; }

static void next_call(Conn *c, uint64_t now);

static void watch(Conn *c, bool writing) {
    if (c->writing == writing) return;
    c->writing = writing;
    struct epoll_event e = {.events = EPOLLIN | EPOLLRDHUP | (writing ? EPOLLOUT : 0u), .data.ptr = c};
    epoll_ctl(epoll, EPOLL_CTL_MOD, c->line.fd, &e);
}

static void call_over(Conn *c, bool keep, uint64_t now) {
    c->active = false;
    active_count--;
    if (!keep) line_close(&c->line);
    next_call(c, now);
}

static void call_failed(Conn *c, enum Fault fault, uint64_t now, const uint8_t *seen, size_t seen_bytes) {
    total.faults[fault]++;
    if (!*first_fault) {
        int n = snprintf(first_fault, sizeof first_fault, "%s: status %d, %u of %llu bytes of the answer, event %u; received: ",
                         FAULTS[fault], c->status, c->at, (unsigned long long)expected->answer_bytes, c->piece);
        for (size_t i = 0; i < seen_bytes && i < 300 && (size_t)n + 2 < sizeof first_fault; i++)
            first_fault[n++] = seen[i] < 32 || seen[i] > 126 || seen[i] == '"' || seen[i] == '\\' ? '.' : (char)seen[i];
        first_fault[n] = 0;
    }
    c->active = false;
    active_count--;
    line_close(&c->line);
    timer_set(&timers, &c->timed, now + 10000000); /* a pause, so that a dead target does not make a busy loop */
}

static void call_finished(Conn *c, uint64_t now) {
    if (conf.exact ? c->at != expected->answer_bytes : conf.stream && c->done_match < 6)
        return call_failed(c, F_MISMATCH, now, (const uint8_t *)"(short)", 7);
    total.finished++;
    /* closed loop: calls that end in the window; open loop: calls that were due in it, whenever they end */
    if (in_window(now)) window.calls++;
    if (in_window(conf.rate > 0 ? c->due_ns : now)) {
        hist_add(&window.latency, now - c->due_ns);
        hist_add(&window.first_byte, (c->first_byte_ns ? c->first_byte_ns : now) - c->due_ns);
    }
    call_over(c, c->keep && c->sent && !conf.per_call_connection, now);
}

static void event_seen(Conn *c, uint64_t now, bool stamped) {
    if (!conf.stream) return;
    total.events++;
    if (in_window(now)) {
        window.events++;
        if (c->last_event_ns) hist_add(&window.gap, now - c->last_event_ns);
        if (stamped) hist_add(&window.lateness, now > c->stamp ? now - c->stamp : 0);
    }
    c->last_event_ns = now;
}

/* Compares bytes of the answer's body with what the upstream is known to send. False: they differ. */
static bool body_exact(Conn *c, const uint8_t *p, size_t n, uint64_t now) {
    while (n > 0) {
        if (c->piece == expected->pieces) return false;
        const Piece *e = &expected->piece[c->piece];
        bool stamped = e->hole != UINT32_MAX;
        if (stamped && c->at >= e->hole && c->at < e->hole + STAMP_BYTES) {
            int digit = hex_digit(*p);
            if (digit < 0) return false;
            c->stamp = c->at == e->hole ? (uint64_t)digit : c->stamp << 4 | (uint64_t)digit;
            c->at++, p++, n--;
        } else {
            uint32_t stop = stamped && c->at < e->hole ? e->hole : e->end;
            size_t take = n < stop - c->at ? n : stop - c->at;
            if (memcmp(expected->answer + c->at, p, take) != 0) return false;
            c->at += (uint32_t)take, p += take, n -= take;
        }
        if (c->at == e->end) {
            c->piece++;
            event_seen(c, now, stamped);
        }
    }
    return true;
}

/* For targets that write answers of their own: count events by their empty lines, and look for "[DONE]". */
static void body_loose(Conn *c, const uint8_t *p, size_t n, uint64_t now) {
    c->at += (uint32_t)n;
    for (size_t i = 0; conf.stream && i < n; i++) {
        if (c->done_match < 6) c->done_match = p[i] == "[DONE]"[c->done_match] ? c->done_match + 1 : p[i] == '[';
        if (p[i] == '\n') {
            if (++c->newlines == 2) c->piece++, event_seen(c, now, false);
        } else if (p[i] != '\r') {
            c->newlines = 0;
        }
    }
}

static bool body_bytes(Conn *c, const uint8_t *p, size_t n, uint64_t now) {
    if (n == 0) return true;
    if (!c->first_byte_ns) c->first_byte_ns = now;
    if (in_window(now)) window.bytes += n;
    if (conf.exact) return body_exact(c, p, n, now);
    body_loose(c, p, n, now);
    return true;
}

/* 1: the answer is complete, 0: more is needed, -1: framing broken, -2: bytes differ. *used: bytes taken. */
static int body_framed(Conn *c, const uint8_t *p, size_t n, size_t *used, uint64_t now) {
    size_t i = 0;
    if (c->framing != CHUNKED) {
        size_t take = c->framing == LENGTH && c->left < n ? c->left : n;
        *used = take;
        if (!body_bytes(c, p, take, now)) return -2;
        if (c->framing == UNTIL_CLOSE) return 0;
        c->left -= take;
        return c->left == 0;
    }
    while (i < n) {
        uint8_t b = p[i];
        switch (c->chunk) {
        case CHUNK_SIZE: {
            int digit = hex_digit(b >= 'A' && b <= 'F' ? b + 32 : b);
            if (digit >= 0) {
                if (c->left >> 40) return -1;
                c->left = c->left << 4 | (uint64_t)digit;
            } else if (b == '\n') {
                c->chunk = c->left ? CHUNK_DATA : TRAILER;
                c->trailer_line = 0;
            } else if (b == ';' || b == ' ') {
                c->chunk = CHUNK_EXTENSION;
            } else if (b != '\r') {
                return -1;
            }
            i++;
            break;
        }
        case CHUNK_EXTENSION:
            if (b == '\n') c->chunk = c->left ? CHUNK_DATA : TRAILER, c->trailer_line = 0;
            i++;
            break;
        case CHUNK_DATA: {
            size_t take = c->left < n - i ? c->left : n - i;
            if (!body_bytes(c, p + i, take, now)) return -2;
            i += take;
            c->left -= take;
            if (c->left == 0) c->chunk = CHUNK_END;
            break;
        }
        case CHUNK_END:
            if (b == '\n') c->chunk = CHUNK_SIZE, c->left = 0;
            else if (b != '\r') return -1;
            i++;
            break;
        case TRAILER:
            i++;
            if (b == '\n') {
                if (c->trailer_line == 0) {
                    *used = i;
                    return 1;
                }
                c->trailer_line = 0;
            } else if (b != '\r') {
                c->trailer_line++;
            }
            break;
        }
    }
    *used = n;
    return 0;
}

/* Reads the head once it is complete: status, framing, whether the connection stays. */
static bool parse_head(Conn *c, size_t head_bytes) {
    size_t length;
    if (head_bytes < 14 || memcmp(c->head, "HTTP/1.", 7) != 0) return false;
    c->status = atoi(c->head + 9);
    if (c->status < 100 || c->status > 599) return false;
    c->keep = c->head[7] == '1';
    const char *value = header_value(c->head, head_bytes, "connection", &length);
    if (value && length == 5 && strncasecmp(value, "close", 5) == 0) c->keep = false;
    value = header_value(c->head, head_bytes, "transfer-encoding", &length);
    if (value && length == 7 && strncasecmp(value, "chunked", 7) == 0) {
        c->framing = CHUNKED, c->chunk = CHUNK_SIZE, c->left = 0;
        return true;
    }
    value = header_value(c->head, head_bytes, "content-length", &length);
    if (value) {
        c->framing = LENGTH, c->left = strtoull(value, NULL, 10);
        return true;
    }
    c->framing = UNTIL_CLOSE, c->keep = false;
    return true;
}

static void answer_bytes(Conn *c, const uint8_t *p, size_t n, uint64_t now) {
    if (!c->active) { /* bytes that nobody asked for */
        line_close(&c->line);
        return;
    }
    if (!c->head_done) {
        size_t before = c->head_bytes, room = HEAD_BYTES_MAX - 1 - before, take = n < room ? n : room;
        memcpy(c->head + before, p, take);
        c->head_bytes += take;
        size_t from = before > 3 ? before - 3 : 0;
        char *end = memmem(c->head + from, c->head_bytes - from, "\r\n\r\n", 4);
        if (!end) {
            if (take == room) call_failed(c, F_PROTOCOL, now, p, n);
            return;
        }
        size_t head_bytes = (size_t)(end - c->head) + 4, used = head_bytes - before;
        c->head[head_bytes - 1] = 0;
        if (!parse_head(c, head_bytes - 1)) return call_failed(c, F_PROTOCOL, now, (uint8_t *)c->head, head_bytes);
        c->head_done = true;
        p += used, n -= used;
        total.statuses[c->status]++;
        if (c->status != 200) return call_failed(c, F_STATUS, now, n ? p : (uint8_t *)c->head, n ? n : head_bytes);
        if (c->framing == LENGTH && c->left == 0) return call_finished(c, now);
    }
    size_t used = 0;
    int state = body_framed(c, p, n, &used, now);
    if (state < 0) return call_failed(c, state == -1 ? F_PROTOCOL : F_MISMATCH, now, p, n);
    if (state == 0) return;
    if (used != n) return call_failed(c, F_PROTOCOL, now, p + used, n - used);
    call_finished(c, now);
}

static void readable(Conn *c) {
    for (;;) {
        ssize_t n = line_read(&c->line, input, sizeof input);
        if (n == LINE_AGAIN) return;
        uint64_t now = now_ns();
        if (n == LINE_CLOSED) {
            if (!c->active) return line_close(&c->line); /* an idle connection ended: the next call opens a new one */
            if (c->head_done && c->framing == UNTIL_CLOSE) return call_finished(c, now);
            return call_failed(c, c->used ? F_CLOSED : F_CONNECT, now, (const uint8_t *)"", 0);
        }
        c->used = true;
        answer_bytes(c, input, (size_t)n, now);
        if (c->line.fd < 0) return;
#ifdef BENCH_TLS
        if (c->line.ssl) continue;
#endif
        if ((size_t)n < sizeof input) return;
    }
}

static void send_request(Conn *c, uint64_t now) {
    const Request *r = &requests[c->request];
    uint64_t want = r->bytes + expected->body_bytes;
    while (c->sent_bytes < want) {
        struct iovec part[2];
        int parts = 0;
        if (c->sent_bytes < r->bytes) part[parts++] = (struct iovec){r->head + c->sent_bytes, r->bytes - c->sent_bytes};
        uint64_t body_at = c->sent_bytes > r->bytes ? c->sent_bytes - r->bytes : 0;
        part[parts++] = (struct iovec){expected->body + body_at, expected->body_bytes - body_at};
#ifdef BENCH_TLS
        uint8_t joined[16384]; /* one TLS record for a small request, as HTTP libraries write it */
        if (c->line.ssl && parts == 2 && part[0].iov_len + part[1].iov_len <= sizeof joined) {
            memcpy(joined, part[0].iov_base, part[0].iov_len);
            memcpy(joined + part[0].iov_len, part[1].iov_base, part[1].iov_len);
            part[0] = (struct iovec){joined, part[0].iov_len + part[1].iov_len};
            parts = 1;
        }
#endif
        ssize_t n = line_write(&c->line, part, parts);
        if (n == LINE_AGAIN) return watch(c, true);
        if (n == LINE_WANT_READ) return watch(c, false); /* goes on when the handshake's next message was read */
        if (n == LINE_CLOSED) {
            /* an early refusal may wait to be read; without one the connection is gone */
            readable(c);
            if (c->active && c->line.fd >= 0) call_failed(c, c->used ? F_CLOSED : F_CONNECT, now, (const uint8_t *)"", 0);
            return;
        }
        c->sent_bytes += (uint64_t)n;
    }
    c->sent = true;
    watch(c, false);
}

static bool open_line(Conn *c) {
    int fd = socket(address->ai_family, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    if (fd < 0) return false;
    no_delay(fd);
    if (connect(fd, address->ai_addr, address->ai_addrlen) != 0 && errno != EINPROGRESS) {
        close(fd);
        return false;
    }
    c->line.fd = fd;
    c->used = false;
    c->writing = true;
#ifdef BENCH_TLS
    if (conf.tls) {
        c->line.ssl = SSL_new(tls);
        SSL_set_fd(c->line.ssl, fd);
        if (*server_name) SSL_set_tlsext_host_name(c->line.ssl, server_name);
        SSL_set_connect_state(c->line.ssl);
    }
#endif
    struct epoll_event e = {.events = EPOLLIN | EPOLLRDHUP | EPOLLOUT, .data.ptr = c};
    epoll_ctl(epoll, EPOLL_CTL_ADD, fd, &e);
    total.connects++;
    return true;
}

static void start_call(Conn *c, uint64_t due, uint64_t now) {
    c->active = true;
    active_count++;
    total.started++;
    c->due_ns = due, c->sent_ns = now;
    c->first_byte_ns = c->last_event_ns = c->sent_bytes = c->left = c->stamp = 0;
    c->head_done = c->sent = false, c->head_bytes = 0, c->status = 0;
    c->at = c->piece = 0;
    c->newlines = c->done_match = 0;
    c->request = request_next;
    request_next = (request_next + 1) % request_count;
    if (c->line.fd >= 0) return send_request(c, now);
    if (!open_line(c)) return call_failed(c, F_CONNECT, now, (const uint8_t *)"", 0);
    /* connected: epoll says writable, and the request goes out from there */
}

static bool may_start(uint64_t now) {
    return now < window_end && !ended && (conf.calls_max == 0 || total.started < conf.calls_max);
}

static void next_call(Conn *c, uint64_t now) {
    if (conf.rate > 0) {
        if (queue_head != queue_tail) return start_call(c, queue[queue_head++ % QUEUE_MAX], now);
        idle[idle_count++] = c;
        return;
    }
    if (may_start(now)) start_call(c, now, now);
}

/* Open loop: a call is due. It takes an idle connection, else a new one, else it waits (and its clock runs). */
static void call_due(uint64_t due, uint64_t now) {
    if (idle_count) return start_call(idle[--idle_count], due, now);
    if (opened < conf.connections) return start_call(conns[opened++], due, now);
    if (queue_tail - queue_head == QUEUE_MAX) {
        total.dropped++;
        return;
    }
    queue[queue_tail++ % QUEUE_MAX] = due;
    if (queue_tail - queue_head > total.queued_max) total.queued_max = queue_tail - queue_head;
}

static void read_clocks(uint64_t *into, uint64_t *own) {
    /* the CPU clock of another process: user and system time of all its threads, by the kernel's own accounting */
    for (int i = 0; i < pid_count; i++) into[i] = clock_of((clockid_t)((~(unsigned)pids[i] << 3) | 2));
    *own = clock_of(CLOCK_PROCESS_CPUTIME_ID);
}

static uint64_t faults_sum(void) {
    uint64_t sum = 0;
    for (int i = 0; i < F_COUNT; i++) sum += total.faults[i];
    return sum;
}

/* Answers that have begun and not ended. */
static int answers_open(void) {
    int n = 0;
    for (int i = 0; i < conf.connections; i++) n += conns[i]->active && conns[i]->first_byte_ns;
    return n;
}

/* Until the next call is due: as of many independent callers (Poisson), or evenly within bursts. */
static uint64_t arrival_gap_ns(void) {
    static uint64_t due_count;
    if (conf.burst == 0) return (uint64_t)(-log(random_unit()) / conf.rate * 1e9);
    return (uint64_t)((++due_count % conf.burst ? 1 / conf.rate : conf.pause_s) * 1e9);
}

static void timer_fired(Timed *t, uint64_t now) {
    if (t == &start_mark) {
        begun = true;
        window_start = now_ns(); /* counters were zero until here; the window starts when the clocks were read */
        read_clocks(cpu_start, &own_cpu_start);
        printf("{\"mark\":\"start\"}\n");
        fflush(stdout);
    } else if (t == &end_mark) {
        read_clocks(cpu_end, &own_cpu_end);
        window_end = now_ns();
        ended = true;
        printf("{\"mark\":\"end\",\"open\":%d}\n", answers_open());
        fflush(stdout);
    } else if (t == &arrival) {
        uint64_t due = t->due_ns;
        while (due <= now && due < window_end && !ended && (conf.calls_max == 0 || total.started < conf.calls_max)) {
            call_due(due, now);
            due += arrival_gap_ns();
        }
        if (due < window_end && !ended) timer_set(&timers, t, due);
    } else if (t == &tick) {
        printf("{\"progress\":{\"seconds\":%.1f,\"calls\":%llu,\"events\":%llu,\"faults\":%llu,\"active\":%d}}\n",
               (double)(now - t0) / 1e9, (unsigned long long)total.finished, (unsigned long long)total.events,
               (unsigned long long)faults_sum(), active_count);
        fflush(stdout);
        for (int i = 0; i < conf.connections; i++)
            if (conns[i]->active && now - conns[i]->sent_ns > conf.timeout_ns)
                call_failed(conns[i], F_TIMEOUT, now, (const uint8_t *)"", 0);
        timer_set(&timers, t, now + SECOND_NS);
    } else {
        next_call((Conn *)t, now);
    }
}

static void print_result(void) {
    double seconds = (double)(window_end - window_start) / 1e9;
    uint64_t cpu = 0;
    for (int i = 0; i < pid_count; i++) cpu += cpu_end[i] > cpu_start[i] ? cpu_end[i] - cpu_start[i] : 0;
    printf("{\"result\":{\"seconds\":%.6f,\"calls\":%llu,\"events\":%llu,\"bytes\":%llu,\"target_cpu_ns\":%llu,\"client_cpu_ns\":%llu,",
           seconds, (unsigned long long)window.calls, (unsigned long long)window.events, (unsigned long long)window.bytes,
           (unsigned long long)cpu, (unsigned long long)(own_cpu_end - own_cpu_start));
    printf("\"started\":%llu,\"finished\":%llu,\"all_events\":%llu,\"connects\":%llu,\"unfinished\":%llu,\"dropped\":%llu,"
           "\"queued_max\":%llu,\"faults\":{",
           (unsigned long long)total.started, (unsigned long long)total.finished, (unsigned long long)total.events,
           (unsigned long long)total.connects, (unsigned long long)total.unfinished, (unsigned long long)total.dropped,
           (unsigned long long)total.queued_max);
    const char *comma = "";
    for (int i = 0; i < F_COUNT; i++)
        if (total.faults[i]) printf("%s\"%s\":%llu", comma, FAULTS[i], (unsigned long long)total.faults[i]), comma = ",";
    printf("},\"first_fault\":\"%s\",\"statuses\":{", first_fault);
    comma = "";
    for (int i = 0; i < 600; i++)
        if (total.statuses[i]) printf("%s\"%d\":%llu", comma, i, (unsigned long long)total.statuses[i]), comma = ",";
    printf("},");
    hist_print(stdout, "latency_us", &window.latency);
    putchar(',');
    hist_print(stdout, "first_byte_us", &window.first_byte);
    putchar(',');
    hist_print(stdout, "gap_us", &window.gap);
    putchar(',');
    hist_print(stdout, "lateness_us", &window.lateness);
    printf("}}\n");
    fflush(stdout);
}

static void load_requests(const char *path) {
    FILE *f = fopen(path, "rb");
    if (!f) die("%s: %s", path, strerror(errno));
    read_exactly(f, &request_count, sizeof request_count, path);
    if (request_count < 1 || request_count > 1000000) die("%s: number of requests out of range", path);
    requests = calloc(request_count, sizeof *requests);
    for (uint32_t i = 0; i < request_count; i++) {
        read_exactly(f, &requests[i].bytes, sizeof requests[i].bytes, path);
        if (requests[i].bytes > HEAD_BYTES_MAX) die("%s: a head is too large", path);
        requests[i].head = malloc(requests[i].bytes);
        read_exactly(f, requests[i].head, requests[i].bytes, path);
    }
    fclose(f);
}

int main(int argc, char **argv) {
    Option options[] = {{"connect", "127.0.0.1:8787", "target address"},
                        {"case", "", "case file: the request body and the expected answer"},
                        {"requests", "", "request heads, used in turn"},
                        {"connections", "32", "connections; in open loop the most that may be opened"},
                        {"rate", "0", "calls per second (open loop); 0: closed loop"},
                        {"burst", "0", "open loop: calls come evenly, so many at a time; 0: at random times"},
                        {"pause", "0", "seconds between two bursts"},
                        {"warmup", "1", "seconds before the measured window"},
                        {"duration", "3", "seconds measured"},
                        {"drain", "10", "seconds that open calls may take after the window"},
                        {"ramp", "0", "seconds over which the connections start"},
                        {"timeout", "30", "seconds a call may take"},
                        {"calls-max", "0", "stop after so many calls; 0: no limit"},
                        {"per-call-connection", "0", "1: a new connection for every call"},
                        {"verify", "exact", "exact: compare every byte with the case; loose: count events, look for [DONE]"},
                        {"tls", "0", "1: TLS"},
                        {"server-name", "", "TLS server name"},
                        {"authority", "", "PEM file of the authority to trust; empty: do not verify"},
                        {"pids", "", "processes whose CPU time is read at the window's edges"},
                        {"seed", "1", "of the arrival times"},
                        {NULL, NULL, NULL}};
    if (options_read(options, argc, argv) != argc) die("unexpected argument: %s", argv[argc - 1]);
    conf.connections = (int)option_number(options, "connections");
    conf.rate = option_number(options, "rate");
    conf.burst = (uint64_t)option_number(options, "burst");
    conf.pause_s = option_number(options, "pause");
    conf.ramp_s = option_number(options, "ramp");
    conf.timeout_ns = (uint64_t)(option_number(options, "timeout") * 1e9);
    conf.calls_max = (uint64_t)option_number(options, "calls-max");
    conf.per_call_connection = option_number(options, "per-call-connection") != 0;
    conf.exact = strcmp(option(options, "verify"), "exact") == 0;
    conf.tls = option_number(options, "tls") != 0;
    random_state ^= (uint64_t)option_number(options, "seed") * 0x9e3779b97f4a7c15ull;
    if (conf.connections < 1 || conf.connections > 100000) die("--connections: out of range");
    expected = case_load(option(options, "case"));
    conf.stream = (int)expected->stream;
    load_requests(option(options, "requests"));
    for (const char *p = option(options, "pids"); *p && pid_count < 256; p += strcspn(p, ","), p += *p == ',')
        pids[pid_count++] = atoi(p);
    char host[256];
    snprintf(host, sizeof host, "%s", option(options, "connect"));
    char *colon = strrchr(host, ':');
    if (!colon) die("--connect HOST:PORT");
    *colon = 0;
    address = address_of(host, colon + 1);
#ifdef BENCH_TLS
    if (conf.tls) {
        tls = SSL_CTX_new(TLS_client_method());
        SSL_CTX_set_mode(tls, SSL_MODE_ENABLE_PARTIAL_WRITE | SSL_MODE_ACCEPT_MOVING_WRITE_BUFFER | SSL_MODE_RELEASE_BUFFERS);
        server_name = option(options, "server-name");
        if (*option(options, "authority")) {
            if (SSL_CTX_load_verify_locations(tls, option(options, "authority"), NULL) != 1) die("--authority cannot be read");
            SSL_CTX_set_verify(tls, SSL_VERIFY_PEER, NULL);
        }
    }
#else
    if (conf.tls) die("built without TLS: no OpenSSL headers were found");
#endif
    signal(SIGPIPE, SIG_IGN);
    files_max();
    epoll = epoll_create1(EPOLL_CLOEXEC);
    timers_open(&timers, epoll);
    queue = malloc(QUEUE_MAX * sizeof *queue);
    conns = calloc((size_t)conf.connections, sizeof *conns);
    idle = calloc((size_t)conf.connections, sizeof *idle);
    start_mark.heap_index = end_mark.heap_index = arrival.heap_index = tick.heap_index = -1;
    t0 = now_ns();
    window_start = t0 + (uint64_t)(option_number(options, "warmup") * 1e9);
    window_end = window_start + (uint64_t)(option_number(options, "duration") * 1e9);
    uint64_t drain_end = window_end + (uint64_t)(option_number(options, "drain") * 1e9);
    for (int i = 0; i < conf.connections; i++) {
        Conn *c = conns[i] = calloc(1, sizeof *c);
        if (!c) die("out of memory");
        c->line.fd = -1;
        c->timed.heap_index = -1;
        if (conf.rate == 0) timer_set(&timers, &c->timed, t0 + (uint64_t)(conf.ramp_s * 1e9 * i / conf.connections));
    }
    if (conf.rate == 0) opened = conf.connections;
    else timer_set(&timers, &arrival, t0);
    timer_set(&timers, &start_mark, window_start);
    timer_set(&timers, &end_mark, window_end);
    timer_set(&timers, &tick, t0 + SECOND_NS);
    for (;;) {
        struct epoll_event events[256];
        uint64_t now = now_ns();
        for (Timed *t; (t = timer_due(&timers, now));) timer_fired(t, now);
        if (ended && ((active_count == 0 && queue_head == queue_tail) || now > drain_end)) break;
        if (conf.calls_max && total.started >= conf.calls_max && active_count == 0 && queue_head == queue_tail && !ended) {
            timer_remove(&timers, &end_mark);
            if (!begun) timer_remove(&timers, &start_mark), timer_fired(&start_mark, now);
            timer_fired(&end_mark, now);
            break;
        }
        timers_arm(&timers);
        int n = epoll_wait(epoll, events, 256, -1);
        for (int i = 0; i < n; i++) {
            if (events[i].data.ptr == &timers) {
                timers.armed_ns = 0;
                continue;
            }
            Conn *c = events[i].data.ptr;
            if (c->line.fd < 0) continue;
            if (events[i].events & EPOLLOUT && c->active) send_request(c, now_ns());
            if (c->line.fd >= 0 && events[i].events & (EPOLLIN | EPOLLRDHUP | EPOLLHUP | EPOLLERR)) readable(c);
            if (c->line.fd >= 0 && c->active && !c->writing && !c->sent) send_request(c, now_ns());
        }
    }
    for (int i = 0; i < conf.connections; i++) {
        if (conns[i]->active) total.unfinished++;
        if (conns[i]->line.fd >= 0) line_close(&conns[i]->line);
    }
    print_result();
    return 0;
}
