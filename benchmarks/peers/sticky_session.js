// npm's sticky-session with an application of the benchmarks: node sticky_session.js PORT WORKERS [sessions]
'use strict';

const http = require('http');
const sticky = require('sticky-session');
const { Server } = require('socket.io');
const { serve, serveSessions } = require('./app');

const [port, workers] = process.argv.slice(2).map(Number);
const server = http.createServer();

serve(server);
if (process.argv[4] === 'sessions')
  serveSessions(new Server(server));
// The master passes its second argument on to net.Server.listen(), which takes an object too.
if (sticky.listen(server, { host: '127.0.0.1', port }, { workers }))
  console.log('worker ready');
