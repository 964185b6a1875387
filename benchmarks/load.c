/*
 * Load generator for HTTP/1.1 and WebSocket servers on the loopback network. One thread, one epoll loop.
 *
 *     load --port 3000 --mode new --connections 32 --seconds 3 --sources 4096 --first 127.1.0.1
 *
 * Modes, each with `--connections` clients that send, wait for the whole answer, and send again:
 *
 *     new              a new connection for each request, from the next source address
 *     keepalive        all requests of a client on one connection
 *     moving           the same, but each request on a connection is of the next of `--clients`
 *     websocket        echo of text messages of `--bytes` bytes; the server greets first, with its process id
 *     polling          Socket.IO sessions over long-polling (session.h), a new connection for each of their requests
 *     idle             one request on each connection, then nothing until standard input ends
 *     idle-websocket   a handshake and the greeting, then nothing until standard input ends
 *     idle-session     a Socket.IO session over WebSocket, connected to its namespace, then nothing as well
 *
 * With `--wait` it prints a line when the mode's connections are open, and goes on when it reads one: so that what
 * opening costs can be left out. The CPU time in its report is its own from then on.
 *
 * It stops after `--seconds`, or `--count` requests if that comes first, and prints one line of JSON. The idle modes
 * print their line as soon as all connections are open.
 *
 * Clients: a connection binds its source address, `--first` plus 0 to `--sources` - 1, before it connects, so the
 * server sees that many different clients. IP_BIND_ADDRESS_NO_PORT leaves the choice of the port to connect(), which
 * then has 28,000 ports for each address: ports in TIME_WAIT don't run out, and no SO_LINGER trick is needed.
 *
 * Proxies: with `--clients` each request says in X-Forwarded-For which of these addresses it is of. A connection takes
 * the next one when it is opened, and keeps it but in the mode moving.
 *
 * Stickiness: where an answer's body (or a greeting) is a number, it is taken as the id of the process that served it.
 * An answer to a source address (with `--clients`: to a client) that has had one before is a repeat; if that was from
 * another process, it is a violation too. A session that the server doesn't know (status 400) is lost.
 *
 * With `--rate` the modes new and keepalive send so many requests a second on average, at times (a Poisson process's)
 * that are fixed in advance, whether those before have been answered or not. Latencies are from these times on: a
 * request that has to wait for one of the connections, because the server is slow, is not spared the wait.
 *
 * It talks to 127.0.0.1 only, from 127.0.0.0/8 only, and all its counts and times have upper bounds.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <getopt.h>
#include <math.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <sys/epoll.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#include "session.h"

#define MAX_CONNECTIONS 20000
#define MAX_SECONDS 300
#define MAX_REQUESTS 10000000
#define MAX_MESSAGE_BYTES (1 << 20)
#define MAX_SOURCES (1 << 20)
#define MAX_ERRORS 100000
#define MAX_RATE 1000000
#define MAX_SERVERS 64
#define MAX_CLIENTS 4096
#define OPENING_AT_ONCE 64
#define HEAD_BYTES 4096
#define EVENTS 256
#define DRAIN_NANOSECONDS 5000000000LL
#define CLOSE_NANOSECONDS 1000000000LL
#define OPENING_NANOSECONDS 30000000000LL

enum mode { NEW, KEEPALIVE, MOVING, WEBSOCKET, POLLING };
enum state { CLOSED, HTTP, UPGRADE, GREETING, RESTING, ECHO, CLOSING };

struct connection {
    int descriptor;
    enum state state;
    uint32_t watched;
    int source;
    int client;
    int64_t began;
    const char *out;
    size_t out_length;
    size_t sent;
    char *in;
    size_t have;
    struct session *session;
    char *text; /* the session's next request */
};

static struct {
    int port, connections, sources;
    enum mode mode;
    int hold, wait, session;
    double seconds;
    int64_t count;
    int64_t rate;
    size_t bytes;
    uint32_t first;
    const char *path;
} option = {.connections = 32, .sources = 4096, .seconds = 3, .count = MAX_REQUESTS, .bytes = 32, .path = "/"};

static struct connection *connections;
static size_t in_capacity;
static int epoll;
static int next_source;
static int next_client;

/* One for each client, or one for all. */
static struct request {
    char text[512];
    size_t length;
} *requests;
static const char *clients[MAX_CLIENTS];
static int client_count;
static char *message; /* the masked frame that every client sends */
static size_t message_length;
static char *payload; /* what it expects back */

static int opening = 1; /* the connections are being opened, nothing counts yet */
static int draining;
static int opened, in_flight;
static int64_t started, finished, errors, lost, repeats, violations;
static uint32_t *latencies; /* microseconds */
static size_t latencies_capacity;
static int32_t *server_of; /* by source, or by client */
static int32_t servers[MAX_SERVERS];
static int server_count;
static char first_error[128];

/* With a rate: when requests are due, which is the next, and the connections that wait for one, a queue. */
static int64_t *due;
static int64_t due_count, next_due;
static int arriving;
static struct connection **waiting;
static int waiting_first, waiting_count;

static __attribute__((noreturn, format(printf, 1, 2))) void die(const char *format, ...)
{
    va_list arguments;
    va_start(arguments, format);
    fputs("load: ", stderr);
    vfprintf(stderr, format, arguments);
    fputc('\n', stderr);
    va_end(arguments);
    exit(1);
}

static void *allocate(size_t count, size_t size)
{
    void *memory = calloc(count, size);
    if (memory == NULL)
        die("out of memory");
    return memory;
}

static int64_t now(void)
{
    struct timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    return time.tv_sec * 1000000000LL + time.tv_nsec;
}

static void open_connection(struct connection *c);
static void next_exchange(struct connection *c);

static void close_connection(struct connection *c)
{
    close(c->descriptor);
    c->descriptor = -1;
    c->state = CLOSED;
}

/* Whether all connections of the mode stay open. */
static int stays_open(void)
{
    return option.mode != NEW && option.mode != POLLING;
}

/* What the connection did, or began, is over: go on with something new. */
static void go_on(struct connection *c)
{
    if (option.rate > 0) {
        waiting[(waiting_first + waiting_count++) % option.connections] = c;
        return;
    }
    if (draining || started >= option.count)
        return;
    c->began = now();
    if (c->state == CLOSED)
        open_connection(c);
    else
        next_exchange(c);
}

static void failed(struct connection *c, const char *what, int error)
{
    if (first_error[0] == '\0')
        snprintf(first_error, sizeof first_error, "%s%s%s", what, error ? ": " : "", error ? strerror(error) : "");
    if (error == ECONNREFUSED)
        die("nobody listens on port %d", option.port);
    if (opening && stays_open())
        die("%s, while opening connection %d of %d", first_error, opened + 1, option.connections);
    if (++errors >= MAX_ERRORS)
        die("too many errors, the first: %s", first_error);
    in_flight--;
    close_connection(c);
    go_on(c);
}

static void watch(struct connection *c, uint32_t events)
{
    struct epoll_event event = {.events = events, .data.ptr = c};
    if (c->watched == events)
        return;
    if (epoll_ctl(epoll, c->watched ? EPOLL_CTL_MOD : EPOLL_CTL_ADD, c->descriptor, &event) < 0)
        die("epoll_ctl: %s", strerror(errno));
    c->watched = events;
}

/* Send what is left to send, then wait for the answer. */
static void send_rest(struct connection *c)
{
    while (c->sent < c->out_length) {
        ssize_t size = send(c->descriptor, c->out + c->sent, c->out_length - c->sent, MSG_NOSIGNAL);
        if (size >= 0) {
            c->sent += (size_t)size;
        } else if (errno == EAGAIN) {
            watch(c, EPOLLOUT);
            return;
        } else {
            failed(c, "send", errno);
            return;
        }
    }
    watch(c, EPOLLIN);
}

static void begin_exchange(struct connection *c, enum state state, const char *out, size_t length)
{
    c->state = state;
    c->out = out;
    c->out_length = length;
    c->sent = 0;
    c->have = 0;
    in_flight++;
    send_rest(c);
}

static void begin_request(struct connection *c)
{
    const struct request *request = &requests[c->client];

    if (option.mode == POLLING) {
        begin_exchange(c, HTTP, c->text, session_request(c->session, option.port, c->text));
        return;
    }
    started++;
    begin_exchange(c, option.mode == WEBSOCKET ? UPGRADE : HTTP, request->text, request->length);
}

/* Connect from the connection's source address. */
static void reopen_connection(struct connection *c)
{
    static const int on = 1;
    struct sockaddr_in address = {.sin_family = AF_INET};

    c->descriptor = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    if (c->descriptor < 0)
        die("socket: %s", strerror(errno));
    c->watched = 0;
    setsockopt(c->descriptor, IPPROTO_IP, IP_BIND_ADDRESS_NO_PORT, &on, sizeof on);
    setsockopt(c->descriptor, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
    address.sin_addr.s_addr = htonl(option.first + (uint32_t)c->source);
    if (bind(c->descriptor, (struct sockaddr *)&address, sizeof address) < 0)
        die("bind: %s", strerror(errno));
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    address.sin_port = htons((uint16_t)option.port);
    /* If nobody listens, or no ports are left, it would be the same again. */
    if (connect(c->descriptor, (struct sockaddr *)&address, sizeof address) < 0 && errno != EINPROGRESS)
        die("connect: %s", strerror(errno));
    begin_request(c);
}

/* Connect as the next client. */
static void open_connection(struct connection *c)
{
    c->source = next_source;
    next_source = (next_source + 1) % option.sources;
    if (client_count > 0) {
        c->client = next_client;
        next_client = (next_client + 1) % client_count;
    }
    if (option.mode == POLLING) {
        started++;
        session_begin(c->session);
    }
    reopen_connection(c);
}

static void next_exchange(struct connection *c)
{
    if (option.mode == WEBSOCKET) {
        started++;
        begin_exchange(c, ECHO, message, message_length);
        return;
    }
    if (option.mode == MOVING)
        c->client = (c->client + 1) % client_count;
    begin_request(c);
}

static void open_next(void)
{
    static int next;
    if (next < option.connections)
        open_connection(&connections[next++]);
}

static void exchange_done(struct connection *c)
{
    int64_t latency = (now() - c->began) / 1000;

    in_flight--;
    c->have = 0;
    if (opening && stays_open()) {
        c->state = RESTING;
        opened++;
        open_next();
        return;
    }
    if ((size_t)finished == latencies_capacity) {
        latencies_capacity = latencies_capacity ? 2 * latencies_capacity : 1 << 16;
        latencies = realloc(latencies, latencies_capacity * sizeof *latencies);
        if (latencies == NULL)
            die("out of memory");
    }
    latencies[finished++] = latency > UINT32_MAX ? UINT32_MAX : (uint32_t)latency;
    if (stays_open())
        c->state = RESTING;
    else
        close_connection(c);
    go_on(c);
}

/* Note that a process has answered a client. */
static void note_server(const struct connection *c, int32_t pid)
{
    int index = 0, whose = client_count > 0 ? c->client : c->source;

    if (server_of[whose] != 0) {
        repeats++;
        violations += server_of[whose] != pid;
    }
    server_of[whose] = pid;
    while (index < server_count && servers[index] != pid)
        index++;
    if (index == server_count && server_count < MAX_SERVERS)
        servers[server_count++] = pid;
}

/* Check who answered: `text` is a process id, or something else that says nothing. */
static void check_server(const struct connection *c, const char *text, size_t length)
{
    int32_t pid = 0;

    for (size_t i = 0; i < length; i++) {
        if (text[i] < '0' || text[i] > '9' || pid > 100000000)
            return;
        pid = 10 * pid + (text[i] - '0');
    }
    if (pid != 0)
        note_server(c, pid);
}

/* A request of a session has been answered. */
static void session_answered(struct connection *c, const char *body, size_t length)
{
    int32_t pid;
    enum answer answer = session_answer(c->session, body, length, &pid);

    if (pid != 0)
        note_server(c, pid);
    if (answer == WRONG_ANSWER) {
        failed(c, "unexpected answer in a session", 0);
    } else if (answer == LAST_ANSWER) {
        exchange_done(c);
    } else {
        in_flight--;
        close_connection(c);
        reopen_connection(c);
    }
}

/* The value of a header in a head of `length` bytes, or NULL. */
static const char *header(const char *head, size_t length, const char *name)
{
    size_t name_length = strlen(name);
    const char *line = head;

    while ((line = memchr(line, '\n', (size_t)(head + length - line))) != NULL) {
        line++;
        if ((size_t)(head + length - line) > name_length && line[name_length] == ':' &&
            strncasecmp(line, name, name_length) == 0)
            return line + name_length + 1;
    }
    return NULL;
}

static void parse_response(struct connection *c)
{
    const char *end = memmem(c->in, c->have, "\r\n\r\n", 4), *field;
    size_t head_length, body_length;
    int status = 0;

    if (end == NULL) {
        if (c->have >= HEAD_BYTES)
            failed(c, "response head too long", 0);
        return;
    }
    head_length = (size_t)(end - c->in) + 4;
    if (sscanf(c->in, "HTTP/1.%*1[01] %d", &status) != 1 || status != (c->state == UPGRADE ? 101 : 200)) {
        char what[32];
        lost += option.mode == POLLING && c->session->id[0] != '\0' && status == 400;
        snprintf(what, sizeof what, "%.*s", (int)strcspn(c->in, "\r\""), c->in);
        failed(c, what, 0);
        return;
    }
    if (c->state == UPGRADE) {
        c->have -= head_length;
        memmove(c->in, c->in + head_length, c->have);
        c->state = GREETING;
        return;
    }
    field = header(c->in, head_length, "content-length");
    if (field == NULL) {
        failed(c, "response without Content-Length", 0);
        return;
    }
    body_length = strtoul(field, NULL, 10);
    if (head_length + body_length > in_capacity) {
        failed(c, "response too long", 0);
        return;
    }
    if (c->have < head_length + body_length)
        return;
    if (option.mode == POLLING) {
        session_answered(c, c->in + head_length, body_length);
        return;
    }
    check_server(c, c->in + head_length, body_length);
    exchange_done(c);
}

/* A Socket.IO session over WebSocket: the Engine.IO handshake, then the connection to the namespace and its answer. */
static void session_greeted(struct connection *c, const char *packet, size_t length)
{
    if (length > 2 && memcmp(packet, "0{", 2) == 0) {
        in_flight--;
        begin_exchange(c, GREETING, message, message_length);
    } else if (length > 3 && memcmp(packet, "40{", 3) == 0) {
        exchange_done(c);
    } else {
        failed(c, "unexpected packet in a session", 0);
    }
}

static void parse_frame(struct connection *c)
{
    const unsigned char *in = (const unsigned char *)c->in;
    size_t head_length = 2, length;

    if (c->have < 2)
        return;
    length = in[1];
    if (length == 126 || length == 127) {
        head_length = length == 126 ? 4 : 10;
        if (c->have < head_length)
            return;
        length = 0;
        for (size_t i = 2; i < head_length; i++)
            length = length << 8 | in[i];
    }
    if (in[0] != 0x81 || length > MAX_MESSAGE_BYTES || head_length + length > in_capacity) {
        failed(c, "unexpected frame", 0);
        return;
    }
    if (c->have < head_length + length)
        return;
    if (c->have > head_length + length) {
        failed(c, "more than one frame", 0);
    } else if (c->state == GREETING && option.session) {
        session_greeted(c, c->in + head_length, length);
    } else if (c->state == GREETING) {
        check_server(c, c->in + head_length, length);
        exchange_done(c);
    } else if (length != option.bytes || memcmp(c->in + head_length, payload, length) != 0) {
        failed(c, "echo differs", 0);
    } else {
        exchange_done(c);
    }
}

static void receive(struct connection *c)
{
    ssize_t size = recv(c->descriptor, c->in + c->have, in_capacity - c->have, 0);

    if (size < 0 && errno == EAGAIN)
        return;
    if (c->state == CLOSING) {
        if (size <= 0)
            close_connection(c);
        return;
    }
    if (c->state == RESTING)
        die("the server closed an idle connection");
    if (size <= 0) {
        failed(c, size < 0 ? "recv" : "closed before the response", size < 0 ? errno : 0);
        return;
    }
    c->have += (size_t)size;
    if (c->state == HTTP || c->state == UPGRADE)
        parse_response(c);
    if (c->state == GREETING || c->state == ECHO)
        parse_frame(c);
}

/* Begin what is due, as far as there are connections for it, and return when to come back: `until` at the latest. */
static int64_t begin_due(int64_t until)
{
    while (arriving && waiting_count > 0 && next_due < due_count) {
        struct connection *c = waiting[waiting_first];
        if (due[next_due] > now())
            return due[next_due] < until ? due[next_due] : until;
        waiting_first = (waiting_first + 1) % option.connections;
        waiting_count--;
        c->began = due[next_due++];
        if (c->state == CLOSED)
            open_connection(c);
        else
            next_exchange(c);
    }
    return until;
}

static void turn(int64_t until)
{
    struct epoll_event events[EVENTS];
    int64_t left = begin_due(until) - now();
    struct timespec timeout = {0};
    int count;

    if (left > 0)
        timeout = (struct timespec){.tv_sec = left / 1000000000, .tv_nsec = left % 1000000000};
    count = epoll_pwait2(epoll, events, EVENTS, &timeout, NULL);
    if (count < 0 && errno != EINTR)
        die("epoll_pwait2: %s", strerror(errno));
    for (int i = 0; i < count; i++) {
        struct connection *c = events[i].data.ptr;
        if (c == NULL) { /* standard input has ended */
            draining = 1;
            continue;
        }
        if (c->state == CLOSED)
            continue;
        if (events[i].events & EPOLLOUT)
            send_rest(c);
        else
            receive(c);
    }
}

/* Say goodbye on every WebSocket and give the servers a moment to answer; the other connections just close. */
static void close_all(void)
{
    static const char goodbye[] = {(char)0x88, (char)0x82, 0, 0, 0, 0, 0x03, (char)0xe8};
    int64_t until = now() + CLOSE_NANOSECONDS;
    int left = 0;

    for (int i = 0; i < option.connections; i++) {
        struct connection *c = &connections[i];
        if (c->state == CLOSED)
            continue;
        if (option.mode != WEBSOCKET || c->state != RESTING ||
            send(c->descriptor, goodbye, sizeof goodbye, MSG_NOSIGNAL) < 0) {
            close_connection(c);
        } else {
            c->state = CLOSING;
            c->have = 0;
            left++;
        }
    }
    while (left > 0 && now() < until) {
        turn(until);
        left = 0;
        for (int i = 0; i < option.connections; i++)
            left += connections[i].state == CLOSING;
    }
}

static int compare(const void *left, const void *right)
{
    uint32_t a = *(const uint32_t *)left, b = *(const uint32_t *)right;
    return (a > b) - (a < b);
}

static double percentile(double share)
{
    return finished ? latencies[(int64_t)(share * (double)(finished - 1))] / 1000.0 : 0;
}

static double cpu_seconds(void)
{
    struct rusage usage;

    getrusage(RUSAGE_SELF, &usage);
    return (double)(usage.ru_utime.tv_sec + usage.ru_stime.tv_sec) +
           (double)(usage.ru_utime.tv_usec + usage.ru_stime.tv_usec) / 1e6;
}

static void report(double seconds, double cpu)
{
    if (finished)
        qsort(latencies, (size_t)finished, sizeof *latencies, compare);
    printf("{\"requests\": %lld, \"errors\": %lld, \"first_error\": \"%s\", \"seconds\": %.6f, "
           "\"requests_per_second\": %.1f, \"p50_ms\": %.3f, \"p99_ms\": %.3f, \"p999_ms\": %.3f, "
           "\"lost\": %lld, \"unfinished\": %lld, \"opened\": %d, \"servers\": %d, \"repeats\": %lld, "
           "\"violations\": %lld, \"cpu_seconds\": %.6f}\n",
           (long long)finished, (long long)errors, first_error, seconds,
           seconds > 0 ? (double)finished / seconds : 0, percentile(0.5), percentile(0.99), percentile(0.999),
           (long long)lost, (long long)(in_flight + due_count - next_due), opened, server_count, (long long)repeats,
           (long long)violations, cpu);
    fflush(stdout);
}

static int64_t number(const char *name, const char *text, int64_t low, int64_t high)
{
    char *end;
    long long value = strtoll(text, &end, 10);
    if (*text == '\0' || *end != '\0' || value < low || value > high)
        die("--%s %s: expected a number from %lld to %lld", name, text, (long long)low, (long long)high);
    return value;
}

/* Addresses with commas between them. */
static void parse_clients(char *list)
{
    struct in6_addr address;

    for (char *client = strtok(list, ","); client != NULL; client = strtok(NULL, ",")) {
        if (client_count == MAX_CLIENTS)
            die("--clients: expected at most %d", MAX_CLIENTS);
        if (inet_pton(AF_INET, client, &address) != 1 && inet_pton(AF_INET6, client, &address) != 1)
            die("--clients %s: expected an address", client);
        clients[client_count++] = client;
    }
}

static void parse_options(int argc, char **argv)
{
    static const struct option names[] = {
        {"port", 1, NULL, 'p'},  {"mode", 1, NULL, 'm'},    {"connections", 1, NULL, 'c'},
        {"seconds", 1, NULL, 's'}, {"count", 1, NULL, 'n'}, {"bytes", 1, NULL, 'b'},
        {"sources", 1, NULL, 'a'}, {"first", 1, NULL, 'f'}, {"path", 1, NULL, 'u'},
        {"clients", 1, NULL, 'x'}, {"rate", 1, NULL, 'r'},  {"wait", 0, NULL, 'w'},
        {0},
    };
    const char *mode = "", *first = "127.1.0.1";
    struct in_addr address;
    int letter, index;

    while ((letter = getopt_long(argc, argv, "", names, &index)) != -1) {
        if (letter == '?')
            exit(1);
        if (letter == 'p')
            option.port = (int)number("port", optarg, 1, 65535);
        else if (letter == 'm')
            mode = optarg;
        else if (letter == 'c')
            option.connections = (int)number("connections", optarg, 1, MAX_CONNECTIONS);
        else if (letter == 's')
            option.seconds = (double)number("seconds", optarg, 1, MAX_SECONDS);
        else if (letter == 'n')
            option.count = number("count", optarg, 1, MAX_REQUESTS);
        else if (letter == 'b')
            option.bytes = (size_t)number("bytes", optarg, 1, MAX_MESSAGE_BYTES);
        else if (letter == 'a')
            option.sources = (int)number("sources", optarg, 1, MAX_SOURCES);
        else if (letter == 'f')
            first = optarg;
        else if (letter == 'u')
            option.path = optarg;
        else if (letter == 'r')
            option.rate = number("rate", optarg, 1, MAX_RATE);
        else if (letter == 'w')
            option.wait = 1;
        else if (letter == 'x')
            parse_clients(optarg);
    }
    if (optind < argc)
        die("unexpected argument: %s", argv[optind]);
    if (option.port == 0)
        die("--port is missing");
    if (strcmp(mode, "new") == 0)
        option.mode = NEW;
    else if (strcmp(mode, "keepalive") == 0 || strcmp(mode, "idle") == 0)
        option.mode = KEEPALIVE;
    else if (strcmp(mode, "moving") == 0)
        option.mode = MOVING;
    else if (strcmp(mode, "polling") == 0)
        option.mode = POLLING;
    else if (strcmp(mode, "websocket") == 0 || strcmp(mode, "idle-websocket") == 0 ||
             strcmp(mode, "idle-session") == 0)
        option.mode = WEBSOCKET;
    else
        die("--mode %s: expected new, keepalive, moving, websocket, polling, idle, idle-websocket or idle-session",
            mode);
    if (option.mode == MOVING && client_count == 0)
        die("--clients is missing");
    if (option.rate > 0 && option.mode != NEW && strcmp(mode, "keepalive") != 0)
        die("--rate: expected --mode new or keepalive");
    option.hold = strncmp(mode, "idle", 4) == 0;
    option.session = strcmp(mode, "idle-session") == 0;
    if (option.session) {
        option.path = "/socket.io/?EIO=4&transport=websocket";
        option.bytes = 2;
    }
    if (inet_pton(AF_INET, first, &address) != 1)
        die("--first %s: expected an IPv4 address", first);
    option.first = ntohl(address.s_addr);
    if (option.first >> 24 != 127 || (option.first + (uint32_t)option.sources - 1) >> 24 != 127)
        die("--first %s --sources %d: expected addresses of 127.0.0.0/8", first, option.sources);
}

static void write_request(struct request *request, const char *client)
{
    const char *fields = "Connection: keep-alive\r\n";

    if (option.mode == NEW)
        fields = "Connection: close\r\n";
    else if (option.mode == WEBSOCKET)
        fields = "Upgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Version: 13\r\n"
                 "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n";
    request->length = (size_t)snprintf(request->text, sizeof request->text,
                                       "GET %s HTTP/1.1\r\nHost: 127.0.0.1:%d\r\n%s%s%s%s\r\n",
                                       option.path, option.port, fields, client ? "X-Forwarded-For: " : "",
                                       client ? client : "", client ? "\r\n" : "");
    if (request->length >= sizeof request->text)
        die("--path is too long");
}

static void prepare(void)
{
    static const char mask[4] = {0x37, (char)0xfa, 0x21, 0x3d};
    struct rlimit limit;
    size_t head = option.bytes < 126 ? 2 : option.bytes < 65536 ? 4 : 10;

    getrlimit(RLIMIT_NOFILE, &limit);
    limit.rlim_cur = limit.rlim_max;
    setrlimit(RLIMIT_NOFILE, &limit);
    if (limit.rlim_cur < (rlim_t)option.connections + 16)
        die("%d connections need more than the %llu descriptors allowed", option.connections,
            (unsigned long long)limit.rlim_cur);

    requests = allocate(client_count > 0 ? (size_t)client_count : 1, sizeof *requests);
    for (int i = 0; i < client_count || i == 0; i++)
        write_request(&requests[i], client_count > 0 ? clients[i] : NULL);

    message_length = head + sizeof mask + option.bytes;
    message = allocate(1, message_length);
    payload = allocate(1, option.bytes);
    message[0] = (char)0x81;
    message[1] = (char)(0x80 | (head == 2 ? option.bytes : head == 4 ? 126 : 127));
    for (size_t i = 2; i < head; i++)
        message[i] = (char)(option.bytes >> 8 * (head - 1 - i));
    memcpy(message + head, mask, sizeof mask);
    for (size_t i = 0; i < option.bytes; i++) {
        payload[i] = option.session ? "40"[i] : (char)('a' + i % 26);
        message[head + sizeof mask + i] = (char)(payload[i] ^ mask[i % 4]);
    }

    in_capacity = HEAD_BYTES + option.bytes;
    connections = allocate((size_t)option.connections, sizeof *connections);
    for (int i = 0; i < option.connections; i++)
        connections[i].in = allocate(1, in_capacity);
    if (option.mode == POLLING) {
        for (int i = 0; i < option.connections; i++) {
            connections[i].session = allocate(1, sizeof *connections[i].session);
            connections[i].text = allocate(1, SESSION_REQUEST_BYTES);
        }
    }
    server_of = allocate((size_t)(client_count > option.sources ? client_count : option.sources), sizeof *server_of);
    epoll = epoll_create1(EPOLL_CLOEXEC);
    if (epoll < 0)
        die("epoll_create1: %s", strerror(errno));
    /* Nothing that is due at a time should be late by the kernel's 50 microseconds of slack. */
    prctl(PR_SET_TIMERSLACK, 1);
}

/* Fix when requests are due: a Poisson process from `begin` to `until`, the same in every run. */
static void plan_arrivals(int64_t begin, int64_t until)
{
    double at = (double)begin, mean = 1e9 / (double)option.rate;
    int64_t capacity = (int64_t)(2 * option.seconds * (double)option.rate) + 1000;

    due = allocate((size_t)capacity, sizeof *due);
    waiting = allocate((size_t)option.connections, sizeof *waiting);
    srand48(1);
    while (due_count < capacity && due_count < option.count && (at -= mean * log(1 - drand48())) < (double)until)
        due[due_count++] = (int64_t)at;
}

int main(int argc, char **argv)
{
    int64_t begin, until;
    double cpu;

    parse_options(argc, argv);
    prepare();
    begin = now();
    until = begin + OPENING_NANOSECONDS;

    if (stays_open()) {
        for (int i = 0; i < OPENING_AT_ONCE; i++)
            open_next();
        while (opened < option.connections && now() < until)
            turn(until);
        if (opened < option.connections)
            die("only %d of %d connections are open after %lld s", opened, option.connections,
                OPENING_NANOSECONDS / 1000000000);
    }
    opening = 0;

    if (option.hold) {
        struct epoll_event event = {.events = EPOLLIN | EPOLLHUP, .data.ptr = NULL};
        report((double)(now() - begin) / 1e9, cpu_seconds());
        if (epoll_ctl(epoll, EPOLL_CTL_ADD, STDIN_FILENO, &event) < 0)
            die("standard input: expected a pipe: %s", strerror(errno));
        until = now() + (int64_t)(option.seconds * 1e9);
        while (!draining && now() < until)
            turn(until);
        close_all();
        return 0;
    }

    if (option.wait) {
        puts("ready");
        fflush(stdout);
        if (getchar() == EOF)
            return 1;
    }
    started = 0;
    cpu = cpu_seconds();
    begin = now();
    until = begin + (int64_t)(option.seconds * 1e9);
    if (option.rate > 0)
        plan_arrivals(begin, until);
    arriving = option.rate > 0;
    for (int i = 0; i < option.connections; i++)
        go_on(&connections[i]);
    while ((in_flight > 0 || next_due < due_count) && now() < until)
        turn(until);
    draining = 1;
    until = now() + DRAIN_NANOSECONDS;
    while ((in_flight > 0 || next_due < due_count) && now() < until)
        turn(until);
    arriving = 0;
    until = now();
    for (int i = 0; i < option.connections; i++)
        if (connections[i].state == ECHO && connections[i].sent == message_length)
            connections[i].state = RESTING;
    report((double)(until - begin) / 1e9, cpu_seconds() - cpu);
    close_all();
    return 0;
}
