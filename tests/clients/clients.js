'use strict';
// N real clients in one process, each with a loopback address of its own, told what to do by one JSON argument:
//
//   {"port": 8000, "library": "socket.io" | "engine.io", "mode": "polling" | "upgrade" | "websocket",
//    "addresses": ["127.1.1.1", ...], "events": 20, "keepAlive": false}
//
// Without keepAlive every HTTP request is a new TCP connection. Each event waits for its answer, [data, pid],
// before the next one is sent. Upgrading clients wait for the upgrade after the first half of their events. What
// happened until the last answer is printed as one JSON array with an object per client.

const diagnostics = require('node:diagnostics_channel');
const http = require('node:http');
const engine = require('engine.io-client');
const socket = require('socket.io-client');

const ANSWER_MS = 20000;
const plan = JSON.parse(process.argv[2]);

diagnostics.subscribe('http.client.request.start', ({request}) => { request.agent.requests += 1; });
diagnostics.subscribe('http.client.response.finish', ({request, response}) => {
  const {statuses} = request.agent;
  statuses[response.statusCode] = (statuses[response.statusCode] || 0) + 1;
});

class AgentAt extends http.Agent {
  constructor(localAddress) {
    super({localAddress, keepAlive: plan.keepAlive || false});
    this.connections = 0;
    this.requests = 0;
    this.statuses = {};
  }

  createConnection(...args) {
    this.connections += 1;
    return super.createConnection(...args);
  }
}

function within(what, executor) {
  return new Promise((resolve, reject) => {
    const timer = setTimeout(() => reject(new Error(`${what}: not within ${ANSWER_MS} ms`)), ANSWER_MS);
    executor((value) => { clearTimeout(timer); resolve(value); },
             (error) => { clearTimeout(timer); reject(new Error(`${what}: ${describe(error)}`)); });
  });
}

function describe(error) {
  const status = error.description === undefined ? '' : ` (${error.description.message || error.description})`;
  return `${error.message || error}${status}`;
}

const transports = {polling: ['polling'], upgrade: ['polling', 'websocket'], websocket: ['websocket']}[plan.mode];

// One object per library with the same five functions, so that the course of a client is written once.

function socketIo(agent) {
  const client = socket.io(`http://127.0.0.1:${plan.port}`, {agent, transports, forceNew: true});
  return {
    opened: (resolve, reject) => client.once('connect', resolve).once('connect_error', reject),
    ask: (data) => (resolve) => client.emit('echo', data, (...answer) => resolve(answer)),
    engine: () => client.io.engine,
    onClose: (report) => client.on('disconnect', report),
    onReconnect: (report) => client.io.on('reconnect', report),
    close: () => client.disconnect(),
  };
}

function engineIo(agent) {
  const client = new engine.Socket(`http://127.0.0.1:${plan.port}`, {agent, transports});
  return {
    opened: (resolve, reject) => client.once('open', resolve).once('error', reject),
    ask: (data) => (resolve) => {
      client.once('message', (text) => resolve(JSON.parse(text)));
      client.send(data);
    },
    engine: () => client,
    onClose: (report) => client.on('close', report),
    onReconnect: () => {},
    close: () => client.close(),
  };
}

async function run(address) {
  const agent = new AgentAt(address);
  const client = {'socket.io': socketIo, 'engine.io': engineIo}[plan.library](agent);
  const result = {address, answers: 0, transport: null, reconnects: 0, errors: []};
  const pids = new Set();
  let closing = false;
  client.onClose((reason) => { if (!closing) result.errors.push(`closed: ${reason}`); });
  client.onReconnect(() => { result.reconnects += 1; });
  try {
    await within('connect', client.opened);
    for (let event = 0; event < plan.events; event += 1) {
      if (plan.mode === 'upgrade' && event === Math.floor(plan.events / 2)) {
        await within('upgrade', (resolve) => {
          if (client.engine().transport.name === 'websocket') resolve();
          else client.engine().once('upgrade', resolve);
        });
      }
      const data = `event ${event} of ${address}`;
      const [echoed, pid] = await within(`event ${event}`, client.ask(data));
      if (echoed !== data) throw new Error(`event ${event}: ${data} came back as ${echoed}`);
      pids.add(pid);
      result.answers += 1;
    }
    result.transport = client.engine().transport.name;
  } catch (error) {
    result.errors.push(error.message);
  }
  result.pids = [...pids];
  result.connections = agent.connections;
  result.requests = agent.requests;
  result.statuses = {...agent.statuses};
  closing = true;
  client.close();
  return result;
}

Promise.all(plan.addresses.map(run)).then((results) => process.stdout.write(JSON.stringify(results)));
