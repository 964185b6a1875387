#include "session.h"

#include <stdio.h>
#include <string.h>

#define EVENTS 3
#define TEXT "hello"

/* Steps 3, 5 and 7 send events, 4, 6 and 8 fetch their acknowledgements. */
enum { HANDSHAKE, CONNECT, CONNECTED, FIRST_EVENT, LAST = FIRST_EVENT + 2 * EVENTS };

static int posts(int step)
{
    return step == CONNECT || step == LAST || (step >= FIRST_EVENT && (step - FIRST_EVENT) % 2 == 0);
}

static int event_number(int step)
{
    return (step - FIRST_EVENT) / 2;
}

void session_begin(struct session *session)
{
    session->step = HANDSHAKE;
    session->id[0] = '\0';
}

size_t session_request(const struct session *session, int port, char *out)
{
    char body[64] = "";
    size_t length;

    if (session->step == CONNECT)
        snprintf(body, sizeof body, "40");
    else if (session->step == LAST)
        snprintf(body, sizeof body, "1");
    else if (posts(session->step))
        snprintf(body, sizeof body, "42%d[\"echo\",\"" TEXT "\"]", event_number(session->step));
    length = (size_t)snprintf(out, SESSION_REQUEST_BYTES,
                              "%s /socket.io/?EIO=4&transport=polling%s%s HTTP/1.1\r\nHost: 127.0.0.1:%d\r\n"
                              "Connection: close\r\n",
                              posts(session->step) ? "POST" : "GET", session->id[0] ? "&sid=" : "", session->id, port);
    if (posts(session->step))
        length += (size_t)snprintf(out + length, SESSION_REQUEST_BYTES - length,
                                   "Content-Type: text/plain;charset=UTF-8\r\nContent-Length: %zu\r\n", strlen(body));
    length += (size_t)snprintf(out + length, SESSION_REQUEST_BYTES - length, "\r\n%s", body);
    return length;
}

/* Copy the session id out of `0{"sid":"...",...}`. */
static int take_id(struct session *session, const char *body)
{
    static const char before[] = "0{\"sid\":\"";
    size_t length;

    if (strncmp(body, before, sizeof before - 1) != 0)
        return 0;
    body += sizeof before - 1;
    length = strcspn(body, "\"&\\");
    if (length == 0 || length >= SESSION_ID_BYTES || body[length] != '"')
        return 0;
    memcpy(session->id, body, length);
    session->id[length] = '\0';
    return 1;
}

enum answer session_answer(struct session *session, const char *body, size_t length, int32_t *pid)
{
    char text[256];
    int number, end = 0, good;

    *pid = 0;
    if (length >= sizeof text || memchr(body, '\0', length) != NULL)
        return WRONG_ANSWER;
    memcpy(text, body, length);
    text[length] = '\0';

    if (posts(session->step)) /* "ok" here, "OK" there */
        good = length == 2 && (text[0] | 0x20) == 'o' && (text[1] | 0x20) == 'k';
    else if (session->step == HANDSHAKE)
        good = take_id(session, text);
    else if (session->step == CONNECTED)
        good = strncmp(text, "40{\"sid\":\"", 10) == 0;
    else
        good = sscanf(text, "43%d[\"" TEXT "\",%d]%n", &number, pid, &end) == 2 && (size_t)end == length &&
               number == event_number(session->step);
    if (!good)
        return WRONG_ANSWER;
    return session->step++ == LAST ? LAST_ANSWER : GOOD_ANSWER;
}
