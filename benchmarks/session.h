/*
 * A Socket.IO session over HTTP long-polling, seen from the client: what to send next, and whether the answer is the
 * right one. It knows no sockets and no HTTP answers, only their bodies.
 *
 * A session is ten requests, each sent when the one before has been answered: the handshake (GET), the connection to
 * the default namespace (POST, GET), three events and their acknowledgements (POST, GET each), and the end (POST).
 *
 * Engine.IO protocol, revision 4: https://socket.io/docs/v4/engine-io-protocol/
 * Socket.IO protocol, revision 5: https://socket.io/docs/v4/socket-io-protocol/
 */
#ifndef SESSION_H
#define SESSION_H

#include <stddef.h>
#include <stdint.h>

#define SESSION_REQUEST_BYTES 512
#define SESSION_ID_BYTES 64

struct session {
    int step;
    char id[SESSION_ID_BYTES];
};

enum answer { WRONG_ANSWER, GOOD_ANSWER, LAST_ANSWER };

/* Begin anew. */
void session_begin(struct session *session);

/* Write the next request, and return its length: at most SESSION_REQUEST_BYTES. */
size_t session_request(const struct session *session, int port, char *out);

/*
 * Take the body of the answer to that request. An acknowledgement says which process has served the event; `pid` is set
 * to that, or to 0.
 */
enum answer session_answer(struct session *session, const char *body, size_t length, int32_t *pid);

#endif
