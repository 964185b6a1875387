// @socket.io/sticky with an application of the benchmarks: node socketio_sticky.js PORT WORKERS [sessions]
'use strict';

const cluster = require('cluster');
const http = require('http');
const { Server } = require('socket.io');
const { createAdapter, setupPrimary: setupPrimaryAdapter } = require('@socket.io/cluster-adapter');
const { setupPrimary, setupWorker } = require('@socket.io/sticky');
const { serve, serveSessions } = require('./app');

const [port, workers] = process.argv.slice(2).map(Number);
const sessions = process.argv[4] === 'sessions';
const server = http.createServer();

if (cluster.isPrimary) {
  // Its default, which its documentation recommends, counts Engine.IO sessions. Plain requests have none: all of them
  // would go to one worker.
  setupPrimary(server, { loadBalancingMethod: sessions ? 'least-connection' : 'round-robin' });
  setupPrimaryAdapter();
  cluster.setupPrimary({ serialization: 'advanced' }); // it sends buffers to its workers
  server.listen(port, '127.0.0.1');
  for (let i = 0; i < workers; i++)
    cluster.fork();
} else {
  serve(server);
  // Upgrades on other paths than Socket.IO's are the application's.
  const io = new Server(server, { adapter: createAdapter(), destroyUpgrade: false });
  serveSessions(io);
  setupWorker(io);
  console.log('worker ready');
}
