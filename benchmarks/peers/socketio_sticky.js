// @socket.io/sticky with the benchmarks' application: node socketio_sticky.js PORT WORKERS
'use strict';

const cluster = require('cluster');
const http = require('http');
const { Server } = require('socket.io');
const { setupPrimary, setupWorker } = require('@socket.io/sticky');
const { serve } = require('./app');

const [port, workers] = process.argv.slice(2).map(Number);
const server = http.createServer();

if (cluster.isPrimary) {
  // Its default counts Engine.IO sessions, of which plain requests have none: all would go to one worker.
  setupPrimary(server, { loadBalancingMethod: 'round-robin' });
  cluster.setupPrimary({ serialization: 'advanced' }); // it sends buffers to its workers
  server.listen(port, '127.0.0.1');
  for (let i = 0; i < workers; i++)
    cluster.fork();
} else {
  serve(server);
  // Upgrades on other paths than Socket.IO's are the application's.
  setupWorker(new Server(server, { destroyUpgrade: false }));
}
