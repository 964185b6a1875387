"""A bare Engine.IO app; its messages say which worker sent them."""

import json
import os

import engineio

eio = engineio.Server(async_mode="gevent")
app = engineio.WSGIApp(eio)


@eio.on("message")
def echo(sid, data):
    eio.send(sid, json.dumps([data, os.getpid()]))
