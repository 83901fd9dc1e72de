/* What a stream costs, compiled: the reads of a look, the walk over plain chunks and joining them, and the events that
   are alike. The same as reads.py, wire.py and answer.py do in Python where this was not built;
   tests/test_load_compiled.py holds the two against each other. */

#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include <errno.h>
#include <stdint.h>
#include <string.h>
#include <sys/socket.h>
#include <time.h>

#ifndef __linux__
#error "kernel receive stamps are read the way Linux gives them"
#endif

#ifndef SO_TIMESTAMPNS
#define SO_TIMESTAMPNS 35
#endif

/* as in reads.py and connection.py */
enum { FOLLOW = -1, OTHER = -2, ENDED = -3, RAISED = -4 };
enum { RECEIVING = 4, READS_PER_LOOK = 32, READ_BYTES = 65536, MAX_DIGITS = 10 };

/* a row of Exchange.reads */
struct row {
    int64_t now_ns, end;
    struct timespec stamp;
};

_Static_assert(sizeof(struct row) == 32, "READ_ROW_BYTES in connection.py");

static PyObject *s_state, *s_exchange, *s_framer, *s_raw, *s_need, *s_tail, *s_reads;
static char buffer[READ_BYTES];

/* One recvmsg into `buffer`, with its kernel stamp (zeros where there is none) and the clock. Bytes, 0 at the end of
   the stream, or -errno. */
static ssize_t read_stamped(int fd, struct row *row)
{
    union {
        char bytes[CMSG_SPACE(sizeof(struct timespec))];
        struct cmsghdr align;
    } control;
    struct iovec part = {.iov_base = buffer, .iov_len = sizeof buffer};
    struct msghdr message = {.msg_iov = &part, .msg_iovlen = 1, .msg_control = &control,
                             .msg_controllen = sizeof control};
    ssize_t size = recvmsg(fd, &message, MSG_DONTWAIT);
    if (size < 0)
        return -errno;
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    row->now_ns = (int64_t)now.tv_sec * 1000000000 + now.tv_nsec;
    row->stamp = (struct timespec){0};
    struct cmsghdr *header = CMSG_FIRSTHDR(&message);
    if (header && header->cmsg_level == SOL_SOCKET && header->cmsg_type == SO_TIMESTAMPNS)
        memcpy(&row->stamp, CMSG_DATA(header), sizeof row->stamp);
    return size;
}

/* Append to owner.name, a bytearray: its new length, or -1 and an exception. */
static Py_ssize_t append(PyObject *owner, PyObject *name, const void *data, Py_ssize_t size)
{
    PyObject *array = PyObject_GetAttr(owner, name);
    if (!array)
        return -1;
    Py_ssize_t length = -1;
    if (!PyByteArray_Check(array))
        PyErr_Format(PyExc_TypeError, "%U is a bytearray", name);
    else if (PyByteArray_Resize(array, PyByteArray_GET_SIZE(array) + size) == 0) {
        length = PyByteArray_GET_SIZE(array);
        memcpy(PyByteArray_AS_STRING(array) + length - size, data, size);
    }
    Py_DECREF(array);
    return length;
}

/* owner.name, an int: -1 and an exception when it is none. */
static Py_ssize_t number_of(PyObject *owner, PyObject *name)
{
    PyObject *value = PyObject_GetAttr(owner, name);
    Py_ssize_t number = value ? PyLong_AsSsize_t(value) : -1;
    Py_XDECREF(value);
    return number;
}

/* Whether what was read last, at the end of `length` bytes, ends as framer.tail does. 1, 0, or -1 and an exception.
   A tail that began in an earlier read counts as found: the framing looks for itself. */
static int may_have_ended(PyObject *framer, Py_ssize_t length, ssize_t size)
{
    Py_ssize_t need = number_of(framer, s_need);
    if (need == -1 && PyErr_Occurred())
        return -1;
    if (length < need)
        return 0;
    PyObject *tail = PyObject_GetAttr(framer, s_tail);
    if (!tail)
        return -1;
    int found = -1;
    if (PyBytes_Check(tail)) {
        Py_ssize_t compared = Py_MIN(PyBytes_GET_SIZE(tail), size);
        const char *end = PyBytes_AS_STRING(tail) + PyBytes_GET_SIZE(tail);
        found = !memcmp(buffer + size - compared, end - compared, compared);
    } else
        PyErr_SetString(PyExc_TypeError, "tail is bytes");
    Py_DECREF(tail);
    return found;
}

/* Keep a read: 1 when it is the framing's turn, 0, or -1 and an exception. */
static int keep(PyObject *exchange, ssize_t size, struct row *row)
{
    PyObject *framer = PyObject_GetAttr(exchange, s_framer);
    if (!framer)
        return -1;
    int result = -1;
    row->end = append(framer, s_raw, buffer, size);
    Py_ssize_t num_bytes = row->end < 0 ? -1 : append(exchange, s_reads, row, sizeof *row);
    if (num_bytes >= 0)
        result = num_bytes / (Py_ssize_t)sizeof *row % READS_PER_LOOK ? may_have_ended(framer, row->end, size) : 1;
    Py_DECREF(framer);
    return result;
}

/* One read of a connection: what is left to do, see reads.read_once. */
static int read_once(PyObject *connection, int fd)
{
    struct row row;
    ssize_t size = read_stamped(fd, &row);
    if (size == -EAGAIN || size == -EWOULDBLOCK || size == -EINTR)
        return 0;
    if (size <= 0)
        return size ? (int)-size : ENDED;
    PyObject *exchange = PyObject_GetAttr(connection, s_exchange);
    int found = exchange ? keep(exchange, size, &row) : -1;
    Py_XDECREF(exchange);
    return found < 0 ? RAISED : found ? FOLLOW : 0;
}

/* One event of the poller, a pair (fd, mask): -1 and an exception, or 0. */
static int handle(PyObject *event, PyObject *by_fd, PyObject *out)
{
    if (!PyTuple_Check(event) || PyTuple_GET_SIZE(event) != 2) {
        PyErr_SetString(PyExc_TypeError, "an event is a pair");
        return -1;
    }
    PyObject *fd = PyTuple_GET_ITEM(event, 0), *connection = PyDict_GetItemWithError(by_fd, fd);
    if (!connection)
        return PyErr_Occurred() ? -1 : 0; /* closed since the poller told */
    Py_INCREF(connection);
    Py_ssize_t state = number_of(connection, s_state);
    int left = state == RECEIVING ? read_once(connection, (int)PyLong_AsLong(fd)) : OTHER;
    int result = PyErr_Occurred() ? -1 : 0;
    if (result == 0 && left) {
        PyObject *row = Py_BuildValue("(OOi)", connection, PyTuple_GET_ITEM(event, 1), left);
        result = row ? PyList_Append(out, row) : -1;
        Py_XDECREF(row);
    }
    Py_DECREF(connection);
    return result;
}

static PyObject *receive(PyObject *Py_UNUSED(module), PyObject *const *args, Py_ssize_t num_args)
{
    if (num_args != 2 || !PyList_Check(args[0]) || !PyDict_Check(args[1])) {
        PyErr_SetString(PyExc_TypeError, "receive(ready: list, by_fd: dict)");
        return NULL;
    }
    PyObject *out = PyList_New(0);
    for (Py_ssize_t i = 0; out && i < PyList_GET_SIZE(args[0]); i++)
        if (handle(PyList_GET_ITEM(args[0], i), args[1], out) < 0)
            Py_CLEAR(out);
    return out;
}

/* The size in a chunk's line of 1 to MAX_DIGITS hexadecimal digits at `at`, and where the line ends. 0: another line,
   or not a whole one. */
static int64_t plain_size(const char *at, const char *end, const char **line_end)
{
    int64_t size = 0;
    const char *digit = at;
    for (; digit < end && digit < at + MAX_DIGITS; digit++) {
        int value = *digit >= '0' && *digit <= '9'   ? *digit - '0'
                    : *digit >= 'a' && *digit <= 'f' ? *digit - 'a' + 10
                    : *digit >= 'A' && *digit <= 'F' ? *digit - 'A' + 10
                                                     : -1;
        if (value < 0)
            break;
        size = size * 16 + value;
    }
    *line_end = digit;
    return digit > at && end - digit >= 2 && digit[0] == '\r' && digit[1] == '\n' ? size : 0;
}

static PyObject *skip_chunks(PyObject *Py_UNUSED(module), PyObject *const *args, Py_ssize_t num_args)
{
    if (num_args != 2 || !PyByteArray_Check(args[0]) || !PyLong_Check(args[1])) {
        PyErr_SetString(PyExc_TypeError, "skip_chunks(raw: bytearray, pos: int)");
        return NULL;
    }
    const char *raw = PyByteArray_AS_STRING(args[0]), *end = raw + PyByteArray_GET_SIZE(args[0]), *line_end;
    int64_t pos = PyLong_AsLongLong(args[1]), size;
    if (pos < 0) {
        if (!PyErr_Occurred())
            PyErr_SetString(PyExc_ValueError, "pos is negative");
        return NULL;
    }
    PyObject *pieces = PyByteArray_FromStringAndSize(NULL, 0);
    Py_ssize_t used = 0;
    while (pieces && pos < end - raw && (size = plain_size(raw + pos, end, &line_end)) > 0) {
        int64_t piece[2] = {line_end + 2 - raw, line_end + 2 - raw + size};
        if (PyByteArray_Resize(pieces, used + (Py_ssize_t)sizeof piece) < 0) {
            Py_CLEAR(pieces);
            break;
        }
        memcpy(PyByteArray_AS_STRING(pieces) + used, piece, sizeof piece);
        used += sizeof piece;
        pos = piece[1] + 2;
    }
    return pieces ? Py_BuildValue("(LN)", (long long)pos, pieces) : NULL;
}

/* A position behind `size` bytes that are equal to those at `at`; NULL when they are not. */
static const char *same(const char *at, const char *end, const char *wanted, Py_ssize_t size)
{
    return at && end - at >= size && !memcmp(at, wanted, size) ? at + size : NULL;
}

/* Behind the inside of a JSON string of one character or more, at its closing quote. NULL: empty, not closed, with a
   control character, or with an escape by number, which the caller reads otherwise. */
static const char *skip_text(const char *at, const char *end)
{
    const char *start = at;
    while (at && at < end && *at != '"') {
        if ((unsigned char)*at < 0x20)
            return NULL;
        if (*at == '\\' && (++at == end || !*at || !strchr("\"\\/bfnrt", *at)))
            return NULL;
        at++;
    }
    return at && at > start && at < end ? at : NULL;
}

/* Behind one or more whole numbers with commas, and optionally a space, between them. */
static const char *skip_numbers(const char *at, const char *end, int32_t *count)
{
    for (*count = 1; at; (*count)++) {
        const char *start = at;
        while (at < end && *at >= '0' && *at <= '9')
            at++;
        if (at == start || (*start == '0' && at - start > 1) || at - start > 9)
            return NULL;
        if (at == end || *at != ',')
            return at;
        at += at + 1 < end && at[1] == ' ' ? 2 : 1;
    }
    return NULL;
}

static PyObject *plain_events(PyObject *Py_UNUSED(module), PyObject *const *args, Py_ssize_t num_args)
{
    if (num_args != 6 || !PyBytes_Check(args[0]) || !PyLong_Check(args[1]) || !PyBytes_Check(args[2]) ||
        !(PyBytes_Check(args[3]) || args[3] == Py_None) || !PyBytes_Check(args[4]) || !PyLong_Check(args[5])) {
        PyErr_SetString(PyExc_TypeError, "plain_events(data, start, before, between or None, after, max_events)");
        return NULL;
    }
    const char *data = PyBytes_AS_STRING(args[0]), *end = data + PyBytes_GET_SIZE(args[0]);
    Py_ssize_t start = PyLong_AsSsize_t(args[1]), most = PyLong_AsSsize_t(args[5]), num = 0;
    if (PyErr_Occurred())
        return NULL;
    most = Py_MIN(most, (end - data) / (PyBytes_GET_SIZE(args[2]) + PyBytes_GET_SIZE(args[4]) + 1) + 1);
    if (start < 0 || start > end - data || most < 0) {
        PyErr_SetString(PyExc_ValueError, "start or max_events is out of range");
        return NULL;
    }
    PyObject *ends = PyBytes_FromStringAndSize(NULL, most * (Py_ssize_t)sizeof(int64_t));
    PyObject *counts = PyBytes_FromStringAndSize(NULL, most * (Py_ssize_t)sizeof(int32_t));
    if (!ends || !counts) {
        Py_XDECREF(ends);
        Py_XDECREF(counts);
        return NULL;
    }
    for (; num < most; num++) {
        int32_t count = -1;
        const char *at = same(data + start, end, PyBytes_AS_STRING(args[2]), PyBytes_GET_SIZE(args[2]));
        at = skip_text(at, end);
        if (args[3] != Py_None) {
            at = same(at, end, PyBytes_AS_STRING(args[3]), PyBytes_GET_SIZE(args[3]));
            at = skip_numbers(at, end, &count);
        }
        at = same(at, end, PyBytes_AS_STRING(args[4]), PyBytes_GET_SIZE(args[4]));
        if (!at)
            break;
        start = at - data;
        ((int64_t *)PyBytes_AS_STRING(ends))[num] = start;
        ((int32_t *)PyBytes_AS_STRING(counts))[num] = count;
    }
    if (_PyBytes_Resize(&ends, num * (Py_ssize_t)sizeof(int64_t)) < 0) {
        Py_DECREF(counts);
        return NULL;
    }
    if (_PyBytes_Resize(&counts, num * (Py_ssize_t)sizeof(int32_t)) < 0) {
        Py_DECREF(ends);
        return NULL;
    }
    return Py_BuildValue("(nNN)", start, ends, counts);
}

/* The bodies of whole chunks, joined. None where one does not end where its size says, or is not all there. */
static PyObject *join_chunks(PyObject *Py_UNUSED(module), PyObject *const *args, Py_ssize_t num_args)
{
    Py_buffer pieces;
    if (num_args != 2 || !PyByteArray_Check(args[0])) {
        PyErr_SetString(PyExc_TypeError, "join_chunks(raw: bytearray, pieces: pairs of int64)");
        return NULL;
    }
    if (PyObject_GetBuffer(args[1], &pieces, PyBUF_SIMPLE) < 0)
        return NULL;
    const char *raw = PyByteArray_AS_STRING(args[0]);
    const int64_t *pair = pieces.buf;
    Py_ssize_t size = PyByteArray_GET_SIZE(args[0]), num = pieces.len / 16, total = 0;
    for (Py_ssize_t i = 0; i < num; i++) {
        int64_t start = pair[2 * i], end = pair[2 * i + 1];
        if (start < 0 || end < start || end > size - 2 || raw[end] != '\r' || raw[end + 1] != '\n') {
            PyBuffer_Release(&pieces);
            Py_RETURN_NONE;
        }
        total += end - start;
    }
    PyObject *data = PyBytes_FromStringAndSize(NULL, total);
    PyObject *ends = PyBytes_FromStringAndSize(NULL, 8 * num), *shifts = PyBytes_FromStringAndSize(NULL, 8 * num);
    if (!data || !ends || !shifts) {
        Py_XDECREF(data);
        Py_XDECREF(ends);
        Py_XDECREF(shifts);
        PyBuffer_Release(&pieces);
        return NULL;
    }
    int64_t at = 0;
    for (Py_ssize_t i = 0; i < num; i++) {
        int64_t length = pair[2 * i + 1] - pair[2 * i];
        memcpy(PyBytes_AS_STRING(data) + at, raw + pair[2 * i], length);
        at += length;
        ((int64_t *)PyBytes_AS_STRING(ends))[i] = at;
        ((int64_t *)PyBytes_AS_STRING(shifts))[i] = pair[2 * i + 1] - at;
    }
    PyBuffer_Release(&pieces);
    return Py_BuildValue("(NNN)", data, ends, shifts);
}

static PyMethodDef methods[] = {
    {"receive", (PyCFunction)(void (*)(void))receive, METH_FASTCALL, "See reads.receive_in_python."},
    {"skip_chunks", (PyCFunction)(void (*)(void))skip_chunks, METH_FASTCALL,
     "skip_chunks(raw, pos): (where the first line begins that is no plain chunk size, pieces as pairs of int64)."},
    {"join_chunks", (PyCFunction)(void (*)(void))join_chunks, METH_FASTCALL,
     "join_chunks(raw, pieces): (data, and after each piece: its end in data, its end in raw minus that, as int64)."},
    {"plain_events", (PyCFunction)(void (*)(void))plain_events, METH_FASTCALL,
     "plain_events(data, start, before, between, after, max_events): (where the first event begins that is not before +\n"
     "text + between + token ids + after, where each one ends as int64, its token ids as int32 or -1 without)."},
    {NULL, NULL, 0, NULL},
};

static struct PyModuleDef module = {PyModuleDef_HEAD_INIT, .m_name = "perfsuite.load._compiled", .m_size = -1,
                                    .m_methods = methods};

PyMODINIT_FUNC PyInit__compiled(void)
{
    struct {
        PyObject **at;
        const char *name;
    } names[] = {{&s_state, "state"}, {&s_exchange, "exchange"}, {&s_framer, "framer"}, {&s_raw, "raw"},
                 {&s_need, "need"},   {&s_tail, "tail"},         {&s_reads, "reads"}};
    for (size_t i = 0; i < sizeof names / sizeof *names; i++)
        if (!(*names[i].at = PyUnicode_InternFromString(names[i].name)))
            return NULL;
    PyObject *made = PyModule_Create(&module);
    if (made && PyModule_AddStringConstant(made, "SOURCE", SOURCE_DIGEST) < 0)
        Py_CLEAR(made);
    return made;
}
