/* What the mock server says, built once, and what it reads of a request. Event shapes: vLLM 0.32.0, as captured. */
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>

enum { CHAT = 1, USAGE = 2, TOKEN_IDS = 4 };

struct text { const char *data; size_t size; };

/* events[flags & (CHAT | TOKEN_IDS)][0: first, 1: between, 2: last, 3: first and last] */
static struct text events[8][4], head, done;
static const char *model = "mock";
static char chat_begin[256], text_begin[256];

#define CHAT_BEGIN "data: {\"id\":\"chatcmpl-ac8afde32faeaae8\",\"object\":\"chat.completion.chunk\"," \
                   "\"created\":1795319458,\"model\":\"%s\",\"choices\":["
#define TEXT_BEGIN "data: {\"id\":\"cmpl-a85b7ccdefe66930\",\"object\":\"text_completion\"," \
                   "\"created\":1795319470,\"model\":\"%s\",\"choices\":["

static struct text keep(const char *bytes) { return (struct text){strdup(bytes), strlen(bytes)}; }

/* An event in its chunk framing. Returns its size. */
static size_t chunk(char *out, size_t room, const char *format, ...) {
    char event[1024];
    va_list values;
    va_start(values, format);
    int size = vsnprintf(event, sizeof event, format, values);
    va_end(values);
    return (size_t)snprintf(out, room, "%x\r\n%s\r\n", size, event);
}

static void token_event(char *out, size_t room, int flags, int is_last) {
    const char *ids = flags & TOKEN_IDS ? "[1820]" : "null";
    const char *reason = is_last ? "\"length\"" : "null";
    if (flags & CHAT)
        chunk(out, room, CHAT_BEGIN "{\"index\":0,\"delta\":{\"content\":\" the\"},\"logprobs\":null,"
              "\"finish_reason\":%s,\"token_ids\":%s}]}\n\n", model, reason, ids);
    else
        chunk(out, room, TEXT_BEGIN "{\"index\":0,\"text\":\" the\",\"logprobs\":null,\"finish_reason\":%s,"
              "\"stop_reason\":null,\"prompt_token_ids\":null,\"token_ids\":%s}]}\n\n", model, reason, ids);
}

static void build_events(void) {
    char role[1024], event[1024], both[2048];
    snprintf(chat_begin, sizeof chat_begin, CHAT_BEGIN, model);
    snprintf(text_begin, sizeof text_begin, TEXT_BEGIN, model);
    chunk(role, sizeof role, CHAT_BEGIN "{\"index\":0,\"delta\":{\"role\":\"assistant\",\"content\":\"\"},"
          "\"logprobs\":null,\"finish_reason\":null}],\"prompt_token_ids\":null}\n\n", model);
    for (int flags = 0; flags < 8; flags++)
        for (int place = 0; place < 4; place++) {
            int is_first = place == 0 || place == 3;
            token_event(event, sizeof event, flags, place >= 2);
            snprintf(both, sizeof both, "%s%s", is_first && flags & CHAT ? role : "", event);
            events[flags][place] = keep(both);
        }
    head = keep("HTTP/1.1 200 OK\r\nserver: uvicorn\r\ncontent-type: text/event-stream; charset=utf-8\r\n"
                "transfer-encoding: chunked\r\n\r\n");
    done = keep("e\r\ndata: [DONE]\n\n\r\n0\r\n\r\n");
}

static struct text usage_event(char *out, size_t room, int flags, unsigned num_tokens) {
    size_t size = chunk(out, room, "%s],\"usage\":{\"prompt_tokens\":16,\"total_tokens\":%u,"
        "\"completion_tokens\":%u},\"system_fingerprint\":\"vllm-0.32.0-702bf8e7\"}\n\n",
        flags & CHAT ? chat_begin : text_begin, num_tokens + 16, num_tokens);
    return (struct text){out, size};
}

#define WHOLE_USAGE "\"usage\":{\"prompt_tokens\":16,\"completion_tokens\":1,\"total_tokens\":17}}"
static const char whole_chat[] = "{\"object\":\"chat.completion\",\"choices\":[{\"index\":0,\"message\":{"
    "\"role\":\"assistant\",\"content\":\" the\"},\"finish_reason\":\"length\"}]," WHOLE_USAGE;
static const char whole_text[] = "{\"object\":\"text_completion\",\"choices\":[{\"index\":0,\"text\":\" the\","
    "\"finish_reason\":\"length\"}]," WHOLE_USAGE;

/* The value of a header (to the end of its line) or of a JSON key; NULL when absent. */
static const char *header_value(const char *in, const char *name) {
    const char *line = strcasestr(in, name);
    return line ? line + strlen(name) + strspn(line + strlen(name), " ") : NULL;
}

static const char *json_value(const char *body, const char *key) {
    const char *found = strstr(body, key);
    return found ? found + strlen(key) + strspn(found + strlen(key), " :\t\r\n") : NULL;
}

static int is_value(const char *body, const char *key, const char *value) {
    const char *found = json_value(body, key);
    return found && strncmp(found, value, strlen(value)) == 0;
}

