// The application that is measured, as in ../app.py: it answers its process id, and echoes WebSocket messages.
'use strict';

const { WebSocketServer } = require('ws');

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
