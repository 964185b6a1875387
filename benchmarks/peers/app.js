// The applications that are measured, as in ../app.py and ../sessions.py.
'use strict';

const { WebSocketServer } = require('ws');

// Answer with the process id, and echo WebSocket messages.
exports.serve = function serve(server) {
  const body = String(process.pid);

  server.on('request', (request, response) => {
    response.writeHead(200, { 'Content-Type': 'text/plain', 'Content-Length': body.length });
    response.end(body);
  });

  const sockets = new WebSocketServer({ noServer: true });
  server.on('upgrade', (request, socket, head) => {
    sockets.handleUpgrade(request, socket, head, (websocket) => {
      websocket.on('error', () => websocket.terminate());
      websocket.on('message', (message) => websocket.send(message, { binary: false }));
      websocket.send(body);
    });
  });
};

// Acknowledge an event with its argument and the process id.
exports.serveSessions = function serveSessions(io) {
  io.on('connection', (socket) => socket.on('echo', (text, acknowledge) => acknowledge(text, process.pid)));
};
