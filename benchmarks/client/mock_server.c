/* A deterministic mock of vLLM's streaming API that costs less than any client and logs when it sent what.
 *
 * One thread, epoll, a heap of due times, prebuilt events, one send() per event, TCP_NODELAY. Linux.
 *
 *   mock_server --log FILE [--port 0] [--ttft-us 50000] [--itl-us 10000] [--tokens 256] [--model mock]
 *               [--freeze-every-ms 0] [--freeze-ms 0]
 *
 * Prints "PORT n" once it listens. POST /v1/chat/completions and /v1/completions (max_tokens, include_usage,
 * return_token_ids and stream are honoured; --tokens is the default of max_tokens), GET /v1/models, GET /health.
 * The first token is due TTFT after the kernel received the request, each other one ITL after the one before; when the
 * server is late by more than half an ITL the rest of the answer shifts, as an engine's would: it never sends in bursts
 * to catch up. Every --freeze-every-ms after the first request it stands still for --freeze-ms.
 *
 * Logged for each request: arrival (SO_TIMESTAMPNS converted to CLOCK_MONOTONIC), CLOCK_MONOTONIC just before the
 * send() of each token, and X-Request-Id. SIGUSR1 writes the log to FILE and, when nothing is in flight, begins a new
 * one; SIGTERM and SIGINT write it and end. Layout: see struct header; little-endian, read by mock.py.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/resource.h>
#include <sys/signalfd.h>
#include <sys/socket.h>
#include <sys/timerfd.h>
#include <unistd.h>

#include "mock_answer.h"
#include "mock_log.h"

#ifndef SO_TIMESTAMPNS
#define SO_TIMESTAMPNS 35
#endif
#define MAX_FDS 65536
#define MAX_BODY (16 << 20)
#define SENDS_PER_TURN 64

struct connection {
    int fd, heap_place, is_busy, closes;
    int64_t due_ns, stamp_ns;
    uint64_t order; /* equal due times are served in this order */
    struct request *request;
    char *in;
    size_t in_size, in_room;
    struct text unsent;
    int stage; /* what comes after `unsent`: tokens, usage, [DONE] */
    char tail[512];
};
enum { TOKENS, USAGE_NEXT, DONE_NEXT, NOTHING };

static int64_t ttft_ns = 50000000, itl_ns = 10000000, freeze_every_ns, freeze_ns, freeze_at_ns;
static uint32_t default_tokens = 256;
static int epoll_fd, timer_fd;
static struct connection *connections[MAX_FDS], *heap[MAX_FDS];
static int heap_size, num_busy;
static uint64_t next_order;

/* ---- heap of connections by due time ---- */

static int is_before(const struct connection *a, const struct connection *b) {
    return a->due_ns != b->due_ns ? a->due_ns < b->due_ns : a->order < b->order;
}

static void place(struct connection *c, int at) { heap[at] = c; c->heap_place = at; }

static void sift(struct connection *c, int at) {
    for (int up; at > 0 && is_before(c, heap[up = (at - 1) / 2]); at = up) place(heap[up], at);
    for (int down; (down = 2 * at + 1) < heap_size; at = down) {
        if (down + 1 < heap_size && is_before(heap[down + 1], heap[down])) down++;
        if (!is_before(heap[down], c)) break;
        place(heap[down], at);
    }
    place(c, at);
}

static void wait_for(struct connection *c, int64_t due_ns) {
    c->due_ns = due_ns;
    c->order = next_order++;
    sift(c, heap_size++);
}

static void leave_heap(struct connection *c) {
    if (c->heap_place < 0) return;
    struct connection *last = heap[--heap_size];
    if (last != c) sift(last, c->heap_place);
    c->heap_place = -1;
}

/* ---- sending ---- */

static void watch(struct connection *c, uint32_t mask) {
    struct epoll_event event = {.events = mask, .data.fd = c->fd};
    epoll_ctl(epoll_fd, EPOLL_CTL_MOD, c->fd, &event);
}

static void drop(struct connection *c) {
    leave_heap(c);
    num_busy -= c->is_busy;
    connections[c->fd] = NULL;
    close(c->fd);
    free(c->in);
    free(c);
}

/* 1: all of it is sent; 0: the rest waits for room; -1: the connection is gone and c with it. */
static int put(struct connection *c, struct text text) {
    ssize_t sent = send(c->fd, text.data, text.size, MSG_NOSIGNAL);
    if (sent == (ssize_t)text.size) return 1;
    if (sent < 0 && errno != EAGAIN) { drop(c); return -1; }
    if (sent < 0) sent = 0;
    c->unsent = (struct text){text.data + sent, text.size - (size_t)sent};
    watch(c, EPOLLIN | EPOLLOUT);
    return 0;
}

static void answer_next(struct connection *c);

static void finish(struct connection *c) {
    c->request->end_ns = now_ns();
    c->is_busy = 0;
    num_busy--;
    c->stage = NOTHING;
    if (c->closes) drop(c);
    else if (c->in_size) answer_next(c);
}

/* What was put is gone: go on to what comes next. */
static void go_on(struct connection *c) {
    while (c->stage == USAGE_NEXT || c->stage == DONE_NEXT) {
        struct request *r = c->request;
        struct text text = done;
        if (c->stage == USAGE_NEXT) text = usage_event(c->tail, sizeof c->tail, (int)r->flags, r->num_sent);
        c->stage = c->stage == USAGE_NEXT ? DONE_NEXT : NOTHING;
        if (put(c, text) < 1) return;
    }
    if (c->stage == NOTHING && c->is_busy) finish(c);
}

static void send_token(struct connection *c) {
    struct request *r = c->request;
    int is_first = r->num_sent == 0, is_last = r->num_sent + 1 == r->num_asked;
    struct text text = events[r->flags & (CHAT | TOKEN_IDS)][is_first ? (is_last ? 3 : 0) : (is_last ? 2 : 1)];
    int64_t now = now_ns();
    sends[r->first + r->num_sent++] = now;
    if (is_last) c->stage = r->flags & USAGE ? USAGE_NEXT : DONE_NEXT;
    else wait_for(c, now - c->due_ns > itl_ns / 2 ? now + itl_ns : c->due_ns + itl_ns);
    int result = put(c, text);
    if (result == 0) leave_heap(c); /* until there is room */
    else if (result > 0 && is_last) go_on(c);
}

static void writable(struct connection *c) {
    struct text text = c->unsent;
    watch(c, EPOLLIN);
    c->unsent.size = 0;
    if (put(c, text) < 1) return;
    if (c->stage == TOKENS) wait_for(c, c->due_ns > now_ns() ? c->due_ns : now_ns());
    else go_on(c);
}

/* ---- requests ---- */

static void plain(struct connection *c, const char *status, const char *body) {
    char text[1024];
    int size = snprintf(text, sizeof text, "HTTP/1.1 %s\r\ncontent-type: application/json\r\n"
                        "content-length: %zu\r\n\r\n%s", status, strlen(body), body);
    int result = put(c, (struct text){text, (size_t)size});
    if (result < 0) return;
    if (result == 0 || c->closes) drop(c); /* an empty socket buffer has room for so little */
    else if (c->in_size) answer_next(c);
}

static void generate(struct connection *c, const char *in, const char *body, int is_chat) {
    if (is_value(body, "\"stream\"", "false") || !json_value(body, "\"stream\"")) {
        plain(c, "200 OK", is_chat ? whole_chat : whole_text);
        return;
    }
    const char *asked = json_value(body, "\"max_tokens\"");
    if (!asked) asked = json_value(body, "\"max_completion_tokens\"");
    uint32_t num = asked ? (uint32_t)strtoul(asked, NULL, 10) : default_tokens;
    if (num == 0) num = default_tokens;
    struct request *r = c->request = new_request(num);
    r->arrival_ns = c->stamp_ns;
    r->connection = (uint32_t)c->fd;
    r->flags = (is_chat ? CHAT : 0) | (is_value(body, "\"include_usage\"", "true") ? USAGE : 0) |
               (is_value(body, "\"return_token_ids\"", "true") ? TOKEN_IDS : 0);
    const char *id = header_value(in, "\r\nx-request-id:");
    if (id) snprintf(r->id, sizeof r->id, "%.*s", (int)strcspn(id, "\r"), id);
    if (freeze_every_ns && !freeze_at_ns) freeze_at_ns = r->read_ns + freeze_every_ns;
    c->stage = TOKENS;
    c->is_busy = 1;
    num_busy++;
    c->due_ns = r->arrival_ns + ttft_ns;
    if (put(c, head) == 1) wait_for(c, c->due_ns);
}

/* Answer the request at the beginning of c->in once it is complete. */
static void answer_next(struct connection *c) {
    c->in[c->in_size] = 0;
    char *end = strstr(c->in, "\r\n\r\n");
    if (!end) return;
    size_t body_at = (size_t)(end - c->in) + 4;
    *end = 0; /* header searches stop here */
    const char *length = header_value(c->in, "\r\ncontent-length:");
    size_t size = body_at + (length ? strtoul(length, NULL, 10) : 0);
    if (size > MAX_BODY) { drop(c); return; }
    if (c->in_size < size) { *end = '\r'; return; }
    char *request = malloc(size + 1);
    memcpy(request, c->in, size);
    request[size] = 0;
    memmove(c->in, c->in + size, c->in_size -= size);
    const char *close_wanted = header_value(request, "\r\nconnection:");
    c->closes = close_wanted && strncasecmp(close_wanted, "close", 5) == 0;
    char models[512];
    snprintf(models, sizeof models, "{\"object\":\"list\",\"data\":[{\"id\":\"%s\",\"object\":\"model\","
             "\"owned_by\":\"vllm\",\"root\":\"%s\",\"max_model_len\":131072}]}", model, model);
    if (strncmp(request, "POST /v1/chat/completions ", 26) == 0) generate(c, request, request + body_at, 1);
    else if (strncmp(request, "POST /v1/completions ", 21) == 0) generate(c, request, request + body_at, 0);
    else if (strncmp(request, "GET /v1/models ", 15) == 0) plain(c, "200 OK", models);
    else if (strncmp(request, "GET /health ", 12) == 0) plain(c, "200 OK", "{}");
    else plain(c, "404 Not Found", "{\"detail\":\"Not Found\"}");
    free(request);
}

static void readable(struct connection *c) {
    if (c->in_room - c->in_size < 32768) c->in = realloc(c->in, c->in_room = 2 * c->in_room + 65536);
    char control[128];
    struct iovec part = {c->in + c->in_size, c->in_room - c->in_size - 1};
    struct msghdr message = {.msg_iov = &part, .msg_iovlen = 1, .msg_control = control,
                             .msg_controllen = sizeof control};
    ssize_t size = recvmsg(c->fd, &message, 0);
    if (size <= 0) {
        if (size == 0 || errno != EAGAIN) drop(c);
        return;
    }
    int64_t monotonic = now_ns(), shift = clock_ns(CLOCK_REALTIME) - monotonic;
    c->stamp_ns = monotonic;
    struct cmsghdr *note = CMSG_FIRSTHDR(&message);
    if (note && note->cmsg_type == SO_TIMESTAMPNS) {
        struct timespec stamp;
        memcpy(&stamp, CMSG_DATA(note), sizeof stamp);
        c->stamp_ns = stamp.tv_sec * NS_PER_S + stamp.tv_nsec - shift;
    }
    c->in_size += (size_t)size;
    if (!c->is_busy) answer_next(c);
}

static void accept_all(int listener) {
    int fd, on = 1;
    while ((fd = accept4(listener, NULL, NULL, SOCK_NONBLOCK | SOCK_CLOEXEC)) >= 0) {
        if (fd >= MAX_FDS) { close(fd); return; }
        setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
        struct connection *c = connections[fd] = calloc(1, sizeof *c);
        c->fd = fd;
        c->heap_place = -1;
        c->stage = NOTHING;
        struct epoll_event event = {.events = EPOLLIN, .data.fd = fd};
        epoll_ctl(epoll_fd, EPOLL_CTL_ADD, fd, &event);
    }
}

/* ---- the loop ---- */

static int listen_on(int port) {
    int fd = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0), on = 1;
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_port = htons((uint16_t)port),
                                  .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    socklen_t size = sizeof address;
    setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &on, sizeof on);
    setsockopt(fd, SOL_SOCKET, SO_TIMESTAMPNS, &on, sizeof on); /* accepted sockets inherit it */
    if (bind(fd, (struct sockaddr *)&address, size) || listen(fd, 4096)) die("listen");
    getsockname(fd, (struct sockaddr *)&address, &size);
    printf("PORT %d\n", ntohs(address.sin_port));
    fflush(stdout);
    return fd;
}

static void add(int fd, uint32_t mask) {
    struct epoll_event event = {.events = mask, .data.fd = fd};
    if (epoll_ctl(epoll_fd, EPOLL_CTL_ADD, fd, &event)) die("epoll_ctl");
}

static int signals_fd(void) {
    sigset_t set;
    sigemptyset(&set);
    sigaddset(&set, SIGUSR1);
    sigaddset(&set, SIGTERM);
    sigaddset(&set, SIGINT);
    sigprocmask(SIG_BLOCK, &set, NULL);
    return signalfd(-1, &set, SFD_NONBLOCK | SFD_CLOEXEC);
}

static void options(int argc, char **argv) {
    for (int i = 1; i + 1 < argc; i += 2) {
        long long number = atoll(argv[i + 1]);
        if (!strcmp(argv[i], "--ttft-us")) ttft_ns = number * 1000;
        else if (!strcmp(argv[i], "--itl-us")) itl_ns = number * 1000;
        else if (!strcmp(argv[i], "--tokens")) default_tokens = (uint32_t)number;
        else if (!strcmp(argv[i], "--model")) model = argv[i + 1];
        else if (!strcmp(argv[i], "--log")) log_path = argv[i + 1];
        else if (!strcmp(argv[i], "--freeze-every-ms")) freeze_every_ns = number * 1000000;
        else if (!strcmp(argv[i], "--freeze-ms")) freeze_ns = number * 1000000;
        else if (strcmp(argv[i], "--port")) { fprintf(stderr, "unknown option %s\n", argv[i]); exit(2); }
    }
    if (!log_path) { fputs("--log FILE is missing\n", stderr); exit(2); }
}

static void stand_still(void) {
    if (!freeze_at_ns || now_ns() < freeze_at_ns) return;
    struct timespec pause = {freeze_ns / NS_PER_S, freeze_ns % NS_PER_S};
    nanosleep(&pause, NULL);
    freeze_at_ns += freeze_every_ns;
}

/* Send what is due; the epoll time-out that follows: 0 when more is due already. */
static int send_due(void) {
    static int64_t armed_ns;
    for (int i = 0; i < SENDS_PER_TURN && heap_size && heap[0]->due_ns <= now_ns(); i++) {
        struct connection *c = heap[0];
        leave_heap(c);
        send_token(c);
    }
    if (!heap_size) return -1;
    int64_t due = heap[0]->due_ns;
    if (due <= now_ns()) return 0;
    if (due != armed_ns) {
        struct itimerspec at = {.it_value = {due / NS_PER_S, due % NS_PER_S}};
        timerfd_settime(timer_fd, TFD_TIMER_ABSTIME, &at, NULL);
        armed_ns = due;
    }
    return -1;
}

int main(int argc, char **argv) {
    int port = 0, listener, signals;
    options(argc, argv);
    for (int i = 1; i + 1 < argc; i += 2) if (!strcmp(argv[i], "--port")) port = atoi(argv[i + 1]);
    struct rlimit files;
    getrlimit(RLIMIT_NOFILE, &files);
    files.rlim_cur = files.rlim_max;
    setrlimit(RLIMIT_NOFILE, &files);
    open_log();
    build_events();
    epoll_fd = epoll_create1(EPOLL_CLOEXEC);
    timer_fd = timerfd_create(CLOCK_MONOTONIC, TFD_NONBLOCK | TFD_CLOEXEC);
    signals = signals_fd();
    listener = listen_on(port);
    add(listener, EPOLLIN);
    add(timer_fd, EPOLLIN | EPOLLET);
    add(signals, EPOLLIN);
    struct epoll_event ready[256];
    for (;;) {
        stand_still();
        int num = epoll_wait(epoll_fd, ready, 256, send_due());
        for (int i = 0; i < num; i++) {
            int fd = ready[i].data.fd;
            struct signalfd_siginfo info;
            if (fd == listener) accept_all(listener);
            else if (fd == signals) {
                if (read(signals, &info, sizeof info) != sizeof info) continue;
                write_log();
                if (info.ssi_signo != SIGUSR1) return 0;
                if (num_busy == 0) reset_log(), freeze_at_ns = 0;
            } else if (fd < MAX_FDS && connections[fd]) {
                struct connection *c = connections[fd];
                if (ready[i].events & EPOLLOUT && c->unsent.size) writable(c);
                if (connections[fd] == c && ready[i].events & ~(uint32_t)EPOLLOUT) readable(c);
            }
        }
    }
}
