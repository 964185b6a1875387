"""A WSGI app for proxies' connections: it says who answers, and what of the request has reached it."""

import hashlib
import json
import sys

import whoami


def app(environ, start_response):
    """Answer /digest, /begin and /unread; whoami.py answers everything else."""
    path = environ["PATH_INFO"]
    if path not in ("/digest", "/begin", "/unread"):
        return whoami.app(environ, start_response)
    answer = {**whoami.whoami(environ), "query": environ["QUERY_STRING"]}
    if path == "/begin":
        # In one piece: print() writes the line's end by itself, and other workers' lines could come between.
        sys.stderr.write(f"begun {environ['QUERY_STRING']}\n")
    if path != "/unread":
        body = environ["wsgi.input"].read()
        answer["digest"] = hashlib.sha256(body).hexdigest()
    text = json.dumps(answer).encode()
    start_response("200 OK", [("Content-Type", "application/json"), ("Content-Length", str(len(text)))])
    return [text]
