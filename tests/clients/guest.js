'use strict';
// One participant of the chat example, told who and where by one JSON argument:
//
//   {"port": 8000, "address": "127.1.1.1", "name": "Grace", "room": "lobby", "transports": ["polling"]}
//
// It prints a line of JSON for all it hears, [event, data], and does what messages tell it: "Grace: type",
// "Grace: say hello", "Grace: go kitchen", "Grace: leave". Events that don't come are for the test to miss.

const http = require('node:http');
const socket = require('socket.io-client');

const plan = JSON.parse(process.argv[2]);
const agent = new http.Agent({localAddress: plan.address});
const client = socket.io(`http://127.0.0.1:${plan.port}`, {agent, transports: plan.transports, forceNew: true});

const print = (...words) => process.stdout.write(`${JSON.stringify(words)}\n`);
const go = (room) => client.emit('join', {name: plan.name, room}, (answer) => print('join', answer));
const leave = () => { client.disconnect(); process.exitCode = 0; };

const commands = {
  type: () => client.emit('typing', {typing: true}),
  say: (text) => client.emit('say', {text}),
  go,
  leave,
};

client.on('connect', () => go(plan.room));
client.on('disconnect', (reason) => print('disconnect', reason));
client.onAny((event, data) => {
  print(event, data);
  const [, name, command, rest] = (event === 'said' && /^(.+?): (\w+) ?(.*)$/.exec(data.text)) || [];
  if (name === plan.name) commands[command](rest);
});
process.on('SIGTERM', leave);
