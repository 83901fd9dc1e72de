/* The mock server's log: one record for each request, one instant for each token, written to a file on demand. */
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>

#define NS_PER_S 1000000000LL
#define MAX_REQUESTS (1u << 22)
#define MAX_SENDS (1ul << 28)

/* Times: ns on CLOCK_MONOTONIC. end_ns: just after [DONE] was sent, 0 when it never was. */
struct request { /* 128 bytes */
    int64_t arrival_ns, read_ns, end_ns;
    uint64_t first; /* index of its first send */
    uint32_t num_sent, num_asked, flags, connection;
    char id[80];
};

struct header { /* of the file; the requests follow, then an int64 for each send */
    char magic[8];
    int64_t reset_ns, written_ns, cpu_ns, num_requests, num_sends;
};

static const char *log_path;
static struct request *requests;
static int64_t *sends, reset_ns, reset_cpu_ns;
static uint64_t num_requests, num_sends;

static int64_t clock_ns(clockid_t clock) {
    struct timespec t;
    clock_gettime(clock, &t);
    return t.tv_sec * NS_PER_S + t.tv_nsec;
}

static int64_t now_ns(void) { return clock_ns(CLOCK_MONOTONIC); }

static void die(const char *what) { perror(what); exit(1); }

static void *reserve(size_t bytes) {
    void *memory = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (memory == MAP_FAILED) die("mmap");
    return memory;
}

static void reset_log(void) {
    num_requests = num_sends = 0;
    reset_ns = now_ns();
    reset_cpu_ns = clock_ns(CLOCK_PROCESS_CPUTIME_ID);
}

static void open_log(void) {
    requests = reserve(MAX_REQUESTS * sizeof *requests);
    sends = reserve(MAX_SENDS * sizeof *sends);
    reset_log();
}

/* A record with room for the instants of its tokens. */
static struct request *new_request(uint32_t num_tokens) {
    if (num_requests == MAX_REQUESTS || num_sends + num_tokens > MAX_SENDS) {
        fputs("the log is full\n", stderr);
        exit(1);
    }
    struct request *r = &requests[num_requests++];
    *r = (struct request){.read_ns = now_ns(), .first = num_sends, .num_asked = num_tokens};
    num_sends += num_tokens;
    return r;
}

static void write_log(void) {
    char path[4096];
    snprintf(path, sizeof path, "%s.tmp", log_path);
    FILE *file = fopen(path, "wb");
    if (!file) die(path);
    struct header h = {.magic = "PSMOCK1", .reset_ns = reset_ns, .written_ns = now_ns(),
                       .cpu_ns = clock_ns(CLOCK_PROCESS_CPUTIME_ID) - reset_cpu_ns,
                       .num_requests = (int64_t)num_requests, .num_sends = (int64_t)num_sends};
    fwrite(&h, sizeof h, 1, file);
    fwrite(requests, sizeof *requests, num_requests, file);
    fwrite(sends, sizeof *sends, num_sends, file);
    if (fclose(file) || rename(path, log_path)) die(log_path);
}
