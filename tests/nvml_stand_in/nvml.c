/* A stand-in for libnvidia-ml.so.1: the calls that perfsuite makes, answered from a script.
 *
 * The environment variable NVML_STAND_IN names the script, one line for each fact:
 *
 *   gpus N                     number of GPUs (at most 16)
 *   set  GPU KEY T VALUE       from T seconds on, KEY of GPU has VALUE (steps; GPU may be *)
 *   fail GPU CALL T0 T1 CODE   from T0 until T1 seconds, CALL of GPU returns CODE; CALL is a function's name without
 *                              "nvml" and "DeviceGet", or field:ID[:SCOPE] for the return code of one field value
 *   delay CALL MICROSECONDS    each CALL sleeps so long; "spin CALL MICROSECONDS" computes instead
 *   refresh MILLISECONDS       how often the energy counter and the instant power change (100)
 *   reset GPU T                the energy counter of GPU starts again at 0 (at the refresh before T)
 *   stop_clock                 time stands until nvmlStandInSetTime() moves it
 *
 * Seconds count from nvmlInit. The energy counter is the integral of power_mw, as of the last refresh.
 * Layouts and codes follow nvml.h of the driver's documentation.
 */
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#define MAX_GPUS 16
#define MAX_LINES 4096

typedef struct { int kind, gpu; char name[64]; double t0, t1, value; } Line;
enum { SET, FAIL, DELAY, SPIN, RESET };

static Line lines[MAX_LINES];
static int num_lines, num_gpus, is_clock_stopped, is_initialized;
static double refresh_s = 0.1, start_s, stopped_s;
static struct { int index; } devices[MAX_GPUS];

static double monotonic_s(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (double)now.tv_sec + (double)now.tv_nsec * 1e-9;
}

static double now_s(void) { return is_clock_stopped ? stopped_s : monotonic_s() - start_s; }

void nvmlStandInSetTime(double t_s) { stopped_s = t_s; }

static int gpu_of(const char *text) { return text[0] == '*' ? -1 : atoi(text); }

static void add(int kind, int gpu, const char *name, double t0, double t1, double value) {
    if (num_lines == MAX_LINES) { fprintf(stderr, "nvml stand-in: too many lines\n"); abort(); }
    Line *line = &lines[num_lines++];
    line->kind = kind; line->gpu = gpu; line->t0 = t0; line->t1 = t1; line->value = value;
    snprintf(line->name, sizeof line->name, "%s", name);
}

static void parse(char *text) {
    char who[16], name[64];
    double a, b, c;
    if (sscanf(text, "gpus %d", &num_gpus) == 1) return;
    if (sscanf(text, "set %15s %63s %lf %lf", who, name, &a, &b) == 4) { add(SET, gpu_of(who), name, a, 0, b); return; }
    if (sscanf(text, "fail %15s %63s %lf %lf %lf", who, name, &a, &b, &c) == 5) {
        add(FAIL, gpu_of(who), name, a, b, c); return;
    }
    if (sscanf(text, "delay %63s %lf", name, &a) == 2) { add(DELAY, -1, name, 0, 0, a); return; }
    if (sscanf(text, "spin %63s %lf", name, &a) == 2) { add(SPIN, -1, name, 0, 0, a); return; }
    if (sscanf(text, "refresh %lf", &a) == 1) { refresh_s = a / 1000; return; }
    if (sscanf(text, "reset %15s %lf", who, &a) == 2) { add(RESET, gpu_of(who), "", a, 0, 0); return; }
    if (strncmp(text, "stop_clock", 10) == 0) { is_clock_stopped = 1; return; }
    if (text[0] == '\n' || text[0] == '#' || text[0] == 0) return;
    fprintf(stderr, "nvml stand-in: cannot read: %s\n", text);
    abort();
}

static int concerns(const Line *line, int kind, int gpu, const char *name) {
    return line->kind == kind && (line->gpu < 0 || line->gpu == gpu) && strcmp(line->name, name) == 0;
}

/* The value of KEY at t; a line for this GPU wins over one for all, a later line over an earlier. */
static int value_at(int gpu, const char *key, double t, double *value) {
    const Line *best = NULL;
    for (int i = 0; i < num_lines; i++) {
        const Line *line = &lines[i];
        if (!concerns(line, SET, gpu, key) || line->t0 > t) continue;
        if (best == NULL || (line->gpu >= best->gpu && line->t0 >= best->t0) || line->gpu > best->gpu) best = line;
    }
    if (best == NULL) return 0;
    *value = best->value;
    return 1;
}

static void wait_for(const char *call) {
    for (int i = 0; i < num_lines; i++) {
        if (concerns(&lines[i], DELAY, -1, call)) {
            struct timespec pause = {0, (long)(lines[i].value * 1000)};
            nanosleep(&pause, NULL);
        }
        if (concerns(&lines[i], SPIN, -1, call)) {
            double end = monotonic_s() + lines[i].value * 1e-6;
            while (monotonic_s() < end) { }
        }
    }
}

static int code_of(int gpu, const char *call) {
    double t = now_s();
    for (int i = 0; i < num_lines; i++)
        if (concerns(&lines[i], FAIL, gpu, call) && lines[i].t0 <= t && t < lines[i].t1) return (int)lines[i].value;
    return 0;
}

/* What every call of a device does first: the script's delay, then its error; "*" is every call. */
static int begin(void *device, const char *call) {
    wait_for(call);
    if (!is_initialized) return 1;
    if (device == NULL) return 2;
    int gpu = *(int *)device, code = code_of(gpu, "*");
    return code ? code : code_of(gpu, call);
}

static double refreshed_s(double t) { return (double)(int64_t)(t / refresh_s + 1e-9) * refresh_s + 1e-9; }

/* Millijoules of power_mw from the last reset until the last refresh, over its steps; what was summed up is kept. */
static double energy_mj(int gpu, double t) {
    static struct { double from, sum; int64_t ticks; } kept[MAX_GPUS];
    double from = 0;
    int64_t end = (int64_t)(t / refresh_s + 1e-9);
    for (int i = 0; i < num_lines; i++)
        if (concerns(&lines[i], RESET, gpu, "") && lines[i].t0 <= t && lines[i].t0 > from) from = lines[i].t0;
    if (kept[gpu].from != from || kept[gpu].ticks > end || kept[gpu].ticks == 0) {
        kept[gpu].from = from;
        kept[gpu].sum = 0;
        kept[gpu].ticks = (int64_t)(from / refresh_s + 1e-9);
    }
    for (int64_t k = kept[gpu].ticks; k < end; k++) {
        double power = 0;
        value_at(gpu, "power_mw", (double)k * refresh_s + 1e-9, &power);
        kept[gpu].sum += power * refresh_s;
    }
    kept[gpu].ticks = end;
    return kept[gpu].sum;
}

static int number(void *device, const char *call, const char *key, double *value) {
    int code = begin(device, call);
    if (code) return code;
    return value_at(*(int *)device, key, now_s(), value) ? 0 : 3;
}

static int number_u32(void *device, const char *call, const char *key, unsigned *out) {
    double value = 0;
    int code = number(device, call, key, &value);
    if (!code) *out = (unsigned)value;
    return code;
}

/* ---- the library ---- */

typedef struct { unsigned version; int sensor; int temperature; } Temperature;
typedef struct { unsigned long long total, free, used; } Memory;
typedef struct { unsigned version; unsigned long long total, reserved, free, used; } Memory2;
typedef struct { unsigned gpu, memory; } Rates;

int nvmlInitWithFlags(unsigned flags) {
    (void)flags;
    const char *path = getenv("NVML_STAND_IN");
    FILE *file = path ? fopen(path, "r") : NULL;
    char text[512];
    if (file == NULL) return 9;
    num_lines = 0; num_gpus = 0; is_clock_stopped = 0; stopped_s = 0;
    while (fgets(text, sizeof text, file)) parse(text);
    fclose(file);
    for (int i = 0; i < MAX_GPUS; i++) devices[i].index = i;
    start_s = monotonic_s();
    int code = code_of(-1, "Init");
    is_initialized = code == 0;
    return code;
}

int nvmlInit_v2(void) { return nvmlInitWithFlags(0); }

int nvmlShutdown(void) {
    int was = is_initialized;
    is_initialized = 0;
    return was ? 0 : 1;
}

const char *nvmlErrorString(int code) {
    static char text[32];
    snprintf(text, sizeof text, "stand-in error %d", code);
    return text;
}

int nvmlDeviceGetCount_v2(unsigned *count) {
    int code = code_of(-1, "Count");
    *count = (unsigned)num_gpus;
    return is_initialized ? code : 1;
}

int nvmlDeviceGetHandleByIndex_v2(unsigned index, void **device) {
    if (!is_initialized) return 1;
    if ((int)index >= num_gpus) return 2;
    *device = &devices[index];
    return code_of((int)index, "HandleByIndex");
}

static int text_of(void *device, const char *call, const char *format, char *out, unsigned size) {
    int code = begin(device, call);
    if (!code) snprintf(out, size, format, *(int *)device);
    return code;
}

int nvmlDeviceGetUUID(void *device, char *out, unsigned size) { return text_of(device, "UUID", "GPU-stand-in-%02d", out, size); }
int nvmlDeviceGetName(void *device, char *out, unsigned size) { return text_of(device, "Name", "Stand-in GPU", out, size); }

int nvmlSystemGetDriverVersion(char *out, unsigned size) {
    snprintf(out, size, "999.01");
    return code_of(-1, "SystemGetDriverVersion");
}

int nvmlDeviceGetPowerUsage(void *d, unsigned *out) { return number_u32(d, "PowerUsage", "power_average_mw", out); }
int nvmlDeviceGetEnforcedPowerLimit(void *d, unsigned *out) { return number_u32(d, "EnforcedPowerLimit", "limit_mw", out); }
int nvmlDeviceGetPowerManagementDefaultLimit(void *d, unsigned *out) {
    return number_u32(d, "PowerManagementDefaultLimit", "default_limit_mw", out);
}
int nvmlDeviceGetTemperature(void *d, int sensor, unsigned *out) {
    (void)sensor;
    return number_u32(d, "Temperature", "temperature", out);
}

int nvmlDeviceGetTemperatureV(void *d, Temperature *out) {
    double value = 0;
    int code = number(d, "TemperatureV", "temperature", &value);
    if (!code) out->temperature = (int)value;
    return code;
}

int nvmlDeviceGetClockInfo(void *d, int type, unsigned *out) {
    return number_u32(d, "ClockInfo", type == 2 ? "memory_clock" : "sm_clock", out);
}
int nvmlDeviceGetMaxClockInfo(void *d, int type, unsigned *out) {
    (void)type;
    return number_u32(d, "MaxClockInfo", "max_sm_clock", out);
}

int nvmlDeviceGetTotalEnergyConsumption(void *d, unsigned long long *out) {
    int code = begin(d, "TotalEnergyConsumption");
    if (!code) *out = (unsigned long long)energy_mj(*(int *)d, now_s());
    return code;
}

int nvmlDeviceGetMemoryInfo(void *d, Memory *out) {
    double used = 0, total = 0, reserved = 0;
    int code = number(d, "MemoryInfo", "memory_used", &used);
    if (code) return code;
    value_at(*(int *)d, "memory_total", now_s(), &total);
    value_at(*(int *)d, "memory_reserved", now_s(), &reserved);
    out->total = (unsigned long long)total;
    out->used = (unsigned long long)(used + reserved);
    out->free = out->total - out->used;
    return 0;
}

int nvmlDeviceGetMemoryInfo_v2(void *d, Memory2 *out) {
    double used = 0, total = 0, reserved = 0;
    int code = number(d, "MemoryInfo_v2", "memory_used", &used);
    if (code) return code;
    value_at(*(int *)d, "memory_total", now_s(), &total);
    value_at(*(int *)d, "memory_reserved", now_s(), &reserved);
    out->total = (unsigned long long)total;
    out->reserved = (unsigned long long)reserved;
    out->used = (unsigned long long)used;
    out->free = out->total - out->used - out->reserved;
    return 0;
}

int nvmlDeviceGetUtilizationRates(void *d, Rates *out) {
    double gpu = 0, memory = 0;
    int code = number(d, "UtilizationRates", "utilization", &gpu);
    if (code) return code;
    value_at(*(int *)d, "memory_utilization", now_s(), &memory);
    out->gpu = (unsigned)gpu;
    out->memory = (unsigned)memory;
    return 0;
}

int nvmlDeviceGetCurrentClocksEventReasons(void *d, unsigned long long *out) {
    double mask = 0;
    int code = number(d, "CurrentClocksEventReasons", "throttle_mask", &mask);
    if (!code) *out = (unsigned long long)mask;
    return code;
}

int nvmlDeviceGetMigMode(void *d, unsigned *current, unsigned *pending) {
    int code = number_u32(d, "MigMode", "mig", current);
    *pending = *current;
    return code;
}

int nvmlDeviceGetNvLinkState(void *d, unsigned link, unsigned *state) {
    double num = 0;
    int code = number(d, "NvLinkState", "num_links", &num);
    if (code) return code;
    *state = link < (unsigned)num;
    return link < (unsigned)num ? 0 : 2;
}

typedef struct { unsigned pid; unsigned long long memory; unsigned gpu_instance, compute_instance; } Process;

/* Keys process_PID with the bytes of its memory; below 0: bytes that NVML does not tell; absent: no such process. */
int nvmlDeviceGetComputeRunningProcesses_v3(void *d, unsigned *count, Process *out) {
    int code = begin(d, "ComputeRunningProcesses");
    unsigned num = 0, room = *count;
    double t = now_s(), bytes;
    if (code) return code;
    for (int i = 0; i < num_lines; i++) {
        const Line *line = &lines[i];
        if (line->kind != SET || strncmp(line->name, "process_", 8) || (line->gpu >= 0 && line->gpu != *(int *)d)) continue;
        int is_seen = 0;
        for (int k = 0; k < i; k++) is_seen |= concerns(&lines[k], SET, *(int *)d, line->name);
        if (is_seen || line->t0 > t || !value_at(*(int *)d, line->name, t, &bytes) || bytes == 0) continue;
        if (out != NULL && num < room) {
            out[num].pid = (unsigned)atoi(line->name + 8);
            out[num].memory = bytes < 0 ? ~0ull : (unsigned long long)bytes;
        }
        num++;
    }
    *count = num;
    return out == NULL && num ? 7 : 0;
}

typedef struct {
    unsigned field, scope;
    long long timestamp, latency;
    int type, code;
    union { double d; unsigned ui; unsigned long ul; unsigned long long ull; long long sll; int si; unsigned short us; } value;
} FieldValue;

/* field:ID:SCOPE keys; ID 83, 185, 186 and 191 of the GPU's own scope come from the power that is set. */
static int field_value(int gpu, FieldValue *out) {
    char name[64];
    double value = 0, t = now_s();
    int code;
    snprintf(name, sizeof name, "field:%u:%u", out->field, out->scope);
    code = code_of(gpu, name);
    if (!code && out->scope == 0) {
        char plain[64];
        snprintf(plain, sizeof plain, "field:%u", out->field);
        code = code_of(gpu, plain);
    }
    if (code) return code;
    out->type = 3;
    if (value_at(gpu, name, t, &value)) { out->value.ull = (unsigned long long)value; return 0; }
    if (out->field == 186 && out->scope == 0) {
        out->type = 1;
        if (!value_at(gpu, "power_mw", refreshed_s(t), &value)) return 3;
        out->value.ui = (unsigned)value;
        return 0;
    }
    if (out->field == 185 && out->scope == 0) {
        out->type = 1;
        if (!value_at(gpu, "power_average_mw", t, &value)) return 3;
        out->value.ui = (unsigned)value;
        return 0;
    }
    if ((out->field == 83 || out->field == 191) && out->scope == 0) { out->value.ull = (unsigned long long)energy_mj(gpu, t); return 0; }
    return 3;
}

int nvmlDeviceGetFieldValues(void *d, int count, FieldValue *values) {
    int code = begin(d, "FieldValues");
    if (code) return code;
    for (int i = 0; i < count; i++) values[i].code = field_value(*(int *)d, &values[i]);
    return 0;
}
