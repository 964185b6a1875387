'use strict';
// N real clients in one process, each with a loopback address of its own, told what to do by one JSON argument:
//
//   {"port": 8000, "library": "socket.io" | "engine.io", "mode": "polling" | "upgrade" | "websocket",
//    "addresses": ["127.1.1.1", ...]}
//
// and these, if they are to be true: "keepAlive": several HTTP requests for a TCP connection, else each is a new one
// (a list of booleans: for one client each); "withCredentials": cookies are kept; "reconnection": a client that is
// disconnected goes on when it has connected again. "ca": the file of a certificate; TLS is spoken, and it is trusted.
//
// Lines on standard input say what comes next: a number, that each client asks for so many events; "on", that all go
// on until the next line, which is "off". Each event waits for its answer, [data, pid], before the next one is sent.
// Upgrading clients wait for the upgrade after the first half of their first events. When a number is done, or "off",
// what has happened so far is printed as one line, a JSON array with an object per client. The end of the input ends it.

const diagnostics = require('node:diagnostics_channel');
const fs = require('node:fs');
const http = require('node:http');
const https = require('node:https');
const readline = require('node:readline');
const engine = require('engine.io-client');
const socket = require('socket.io-client');

const ANSWER_MS = 20000;
const plan = JSON.parse(process.argv[2]);

diagnostics.subscribe('http.client.request.start', ({request}) => { request.agent.requests += 1; });
diagnostics.subscribe('http.client.response.finish', ({request, response}) => {
  const {statuses} = request.agent;
  statuses[response.statusCode] = (statuses[response.statusCode] || 0) + 1;
});

function agentAt(localAddress, keepAlive) {
  const Agent = plan.ca ? https.Agent : http.Agent;
  return new class extends Agent {
    constructor() {
      super({localAddress, keepAlive, ...(plan.ca && {ca: fs.readFileSync(plan.ca)})});
      this.connections = 0;
      this.requests = 0;
      this.statuses = {};
    }

    createConnection(...args) {
      this.connections += 1;
      return super.createConnection(...args);
    }
  }();
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
const url = `${plan.ca ? 'https' : 'http'}://127.0.0.1:${plan.port}`;
const {withCredentials = false, reconnection = false} = plan;

// One object per library with the same functions, so that the course of a client is written once.

function socketIo(agent) {
  const client = socket.io(url, {
    agent, transports, withCredentials, reconnection, reconnectionDelay: 100, reconnectionDelayMax: 100, forceNew: true,
  });
  return {
    opened: (resolve, reject) => client.once('connect', resolve).once('connect_error', reject),
    // With a timeout, which is not meant to pass, the answer is an error as soon as the client is disconnected.
    ask: (data) => (resolve, reject) => client.timeout(2 * ANSWER_MS).emit('echo', data, (error, ...answer) => {
      if (error) reject(error);
      else resolve(answer);
    }),
    engine: () => client.io.engine,
    onClose: (report) => client.on('disconnect', report),
    onReconnect: (report) => client.io.on('reconnect', report),
    close: () => client.disconnect(),
  };
}

function engineIo(agent) {
  const client = new engine.Socket(url, {agent, transports, withCredentials});
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

class Course {
  constructor(address, index) {
    const {keepAlive = false} = plan;
    this.agent = agentAt(address, Array.isArray(keepAlive) ? keepAlive[index] : keepAlive);
    this.client = {'socket.io': socketIo, 'engine.io': engineIo}[plan.library](this.agent);
    this.result = {address, answers: 0, transport: null, reconnects: 0, errors: [], pids: []};
    this.closing = false;
    this.upgrades = plan.mode === 'upgrade';
    this.client.onClose((reason) => { if (!this.closing) this.result.errors.push(`closed: ${reason}`); });
    this.client.onReconnect(() => { this.result.reconnects += 1; });
    this.opened = within('connect', this.client.opened).catch((error) => this.result.errors.push(error.message));
  }

  async ask(more, half) {
    await this.opened;
    for (let event = 0; more(event) && (reconnection || this.result.errors.length === 0); event += 1) {
      try {
        if (this.upgrades && event === half) {
          await within('upgrade', (resolve) => {
            if (this.client.engine().transport.name === 'websocket') resolve();
            else this.client.engine().once('upgrade', resolve);
          });
          this.upgrades = false;
        }
        await this.event(`event ${this.result.answers} of ${this.result.address}`);
      } catch (error) {
        this.result.errors.push(error.message);
      }
    }
    this.result.transport = this.client.engine().transport.name;
  }

  async event(data) {
    const [echoed, pid] = await within(data, this.client.ask(data));
    if (echoed !== data) throw new Error(`${data} came back as ${echoed}`);
    if (this.result.pids.at(-1) !== pid) this.result.pids.push(pid);
    this.result.answers += 1;
  }

  report() {
    const {connections, requests, statuses} = this.agent;
    return {...this.result, connections, requests, statuses};
  }

  close() {
    this.closing = true;
    this.client.close();
  }
}

async function main() {
  const courses = plan.addresses.map((address, index) => new Course(address, index));
  let on = false;
  let going = null;
  for await (const line of readline.createInterface({input: process.stdin})) {
    if (line === 'on') {
      on = true;
      going = Promise.all(courses.map((course) => course.ask(() => on, 0)));
      continue;
    }
    if (line === 'off') {
      on = false;
      await going;
    } else {
      const events = Number(line);
      await Promise.all(courses.map((course) => course.ask((event) => event < events, Math.floor(events / 2))));
    }
    process.stdout.write(`${JSON.stringify(courses.map((course) => course.report()))}\n`);
  }
  courses.forEach((course) => course.close());
}

main();
