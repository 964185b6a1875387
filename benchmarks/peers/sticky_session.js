// npm's sticky-session with the benchmarks' application: node sticky_session.js PORT WORKERS
'use strict';

const http = require('http');
const sticky = require('sticky-session');
const { serve } = require('./app');

const [port, workers] = process.argv.slice(2).map(Number);
const server = http.createServer();

serve(server);
// The master passes its second argument on to net.Server.listen(), which takes an object too.
sticky.listen(server, { host: '127.0.0.1', port }, { workers });
