"use strict";

// Nothing here makes HTML of text: what people write goes into the page by textContent and append() only.

const element = (id) => document.getElementById(id);
const asked = new URLSearchParams(location.search);
const LOBBY = "lobby";
const GUEST = `Guest ${Math.floor(Math.random() * 1000)}`;
const SHOWN = 200; // messages and events that stay in the page
const ANSWER_MS = 5000;
const TYPING_MS = 4000; // how long somebody types who says nothing more about it; we say it twice as often

const state = {
  name: asked.get("name") || localStorage.getItem("name") || GUEST, // wanted at first, then as the server took it
  wanted: asked.get("room") || LOBBY, // where we are, or were before the connection was lost
  room: null, // where the server has us
  me: null, // as the server knows us: sid, slot, pid
  mine: new Set(), // the sids we have had
  people: new Map(), // sid -> participant, of this room
  typing: new Map(), // sid -> timer
  versions: { rooms: -1, people: -1 },
};

// --- the page ------------------------------------------------------------------------------------------------

function make(tag, className, ...content) {
  const made = document.createElement(tag);
  made.className = className;
  made.append(...content);
  return made;
}

const isolated = (text) => make("bdi", "", text); // right-to-left names don't turn the words around them

// Neighbouring slots get colours far from each other (the golden angle).
function colour(target, slot) {
  target.style.setProperty("--hue", String(Math.round((255 + (slot ?? 0) * 137.5) % 360)));
  target.classList.toggle("slotless", slot === null);
  return target;
}

const slotName = (slot) => (slot === null ? "no slot" : `slot ${slot}`);
const chip = (slot) => colour(make("span", "slot", slotName(slot)), slot);

// Makes the children of parent those of items, in their order; what stays keeps its element, and with it the focus.
function arrange(parent, items, key, build, update) {
  const old = new Map([...parent.children].map((child) => [child.dataset.key, child]));
  const children = items.map((item) => {
    const child = old.get(key(item)) ?? build(item);
    old.delete(key(item));
    child.dataset.key = key(item);
    update(child, item);
    return child;
  });
  old.forEach((child) => child.remove());
  children.forEach((child, at) => {
    if (parent.children[at] !== child) parent.insertBefore(child, parent.children[at] ?? null);
  });
}

function showState(name, words) {
  element("state").dataset.state = name;
  element("state").textContent = words;
  document.querySelector("#say button").disabled = name !== "connected";
  // Nobody tells us of those who go while we are away.
  document.body.classList.toggle("stale", name !== "connected");
  element("people-words").textContent = name === "connected" ? "Here, by worker" : "Last seen, by worker";
}

function showWorker() {
  const { slot, pid } = state.me;
  const worker = element("worker");
  worker.hidden = false;
  worker.querySelector(".slot").replaceWith(chip(slot));
  worker.querySelector(".pid").textContent = pid;
  worker.dataset.slot = slot ?? "";
  worker.dataset.pid = pid;
}

function showRoom() {
  element("room").textContent = state.room ?? "…";
  element("leave").hidden = state.room === null || state.room === LOBBY;
  for (const item of element("rooms").children) {
    if (item.dataset.key === state.room) item.firstElementChild.setAttribute("aria-current", "true");
    else item.firstElementChild.removeAttribute("aria-current");
  }
}

function showRooms(rooms) {
  const lobby = rooms.find(({ room }) => room === LOBBY) ?? { room: LOBBY, people: 0 };
  const all = [lobby, ...rooms.filter(({ room }) => room !== LOBBY)];
  const build = ({ room }) => {
    const button = make("button", "", isolated(room), make("span", "count"));
    button.type = "button";
    button.addEventListener("click", () => join(room));
    return make("li", "", button);
  };
  arrange(element("rooms"), all, ({ room }) => room, build, (item, { room, people }) => {
    const button = item.firstElementChild;
    button.querySelector(".count").textContent = people;
    button.setAttribute("aria-label", `${room}, ${people} here`);
  });
  showRoom();
}

function showPeople() {
  const people = [...state.people.values()];
  const groups = new Map();
  for (const person of people) {
    const key = `${person.slot} ${person.pid}`;
    if (!groups.has(key)) groups.set(key, { key, slot: person.slot, pid: person.pid, people: [] });
    groups.get(key).people.push(person);
  }
  const buildGroup = ({ slot, pid }) => {
    const head = make("h3", "", chip(slot), make("span", "pid", `process ${pid}`));
    return colour(make("section", "worker-group", head, make("ul", "")), slot);
  };
  arrange(element("workers"), [...groups.values()], ({ key }) => key, buildGroup, (group, worker) => {
    const build = () => make("li", "", make("bdi", "name"), make("span", "note"));
    arrange(group.querySelector("ul"), worker.people, ({ sid }) => sid, build, (item, { sid, name }) => {
      item.querySelector(".name").textContent = name;
      item.querySelector(".note").textContent = sid === state.me?.sid ? "you" : "";
    });
  });
  element("count").textContent = people.length;
}

function showTyping() {
  const names = [...state.typing.keys()].map((sid) => state.people.get(sid)?.name).filter(Boolean);
  const words = names.length === 1 ? " is typing…" : " are typing…";
  const shown = names.slice(0, 3).flatMap((name, at) => [at ? ", " : "", isolated(name)]);
  if (names.length > 3) shown.push(` and ${names.length - 3} more`);
  element("typing").replaceChildren(...(names.length ? [...shown, words] : []));
}

// The end of the messages stays in sight, unless the user has scrolled up to read.
let following = true;

function follow() {
  const list = element("messages");
  if (following) list.scrollTop = list.scrollHeight;
}

element("messages").addEventListener("scroll", ({ target }) => {
  following = target.scrollHeight - target.scrollTop - target.clientHeight < 80;
});
new ResizeObserver(follow).observe(element("messages"));

function add(item, before = null) {
  const list = element("messages");
  list.insertBefore(item, before);
  while (list.children.length > SHOWN) list.firstElementChild.remove();
  follow();
}

function showEvent(...words) {
  add(make("li", "event", ...words));
}

function showMessage({ id, sid, name, slot, text, at }) {
  const list = element("messages");
  if (list.querySelector(`[data-id="${Number(id)}"]`)) return; // from the history, and again by itself
  const time = make("time", "", new Date(at * 1000).toLocaleTimeString([], { hour: "2-digit", minute: "2-digit" }));
  time.dateTime = new Date(at * 1000).toISOString();
  const head = make("div", "head", make("bdi", "name", name), chip(slot), time);
  const body = make("p", "text", text);
  body.dir = "auto";
  const item = colour(make("li", "message", head, body), slot);
  item.dataset.id = id;
  item.classList.toggle("mine", state.mine.has(sid));
  // Two workers' messages may overtake each other on the way; their ids put them in the same order for everybody.
  add(item, [...list.children].find((other) => Number(other.dataset.id) > id));
}

// --- the conversation with the server ------------------------------------------------------------------------

let socket;

// Of taken and refused one is called; refused without an answer if there is none, though it may have been done.
function ask(event, data, taken, refused) {
  if (!socket.connected) {
    refused?.();
    return;
  }
  socket.timeout(ANSWER_MS).emit(event, data, (late, answer) => {
    if (!late && answer.ok) {
      taken?.(answer);
      return;
    }
    if (!late) showEvent(`Not done: ${answer.why}.`);
    else if (socket.connected) showEvent(`The worker didn't answer within ${ANSWER_MS / 1000} seconds; try again.`);
    refused?.(answer);
  });
}

function join(room, name = state.name, done = null) {
  ask("join", { name, room }, (answer) => {
    const before = state.me;
    const moved = state.wanted !== answer.you.room;
    state.me = answer.you;
    state.mine.add(state.me.sid);
    state.room = state.wanted = answer.you.room;
    state.name = answer.you.name;
    done?.();
    showWorker();
    element("name").value = state.name;
    showRoom();
    const here = new URLSearchParams(location.search);
    here.set("room", state.room);
    if (here.has("name")) here.set("name", state.name);
    history.replaceState(null, "", `?${here}`);

    const list = element("messages");
    list.setAttribute("aria-busy", "true"); // a history isn't read aloud
    if (moved) {
      following = true;
      list.replaceChildren();
      state.typing.forEach(clearTimeout);
      state.typing.clear();
    }
    answer.history.forEach(showMessage);
    list.removeAttribute("aria-busy");

    state.versions.people = -1;
    setPeople(answer);
    if (before === null) showEvent("You are on ", chip(state.me.slot), `, process ${state.me.pid}.`);
    else if (before.sid !== state.me.sid) {
      const process = before.pid === state.me.pid ? "the same process" : `process ${state.me.pid}, not ${before.pid} any more`;
      showEvent("You are back on ", chip(state.me.slot), `, ${process}.`);
    }
  }, (answer) => {
    element("name").value = state.name;
    showRoom();
    if (answer && state.me === null && (room !== LOBBY || name !== GUEST)) {
      // What the address or the storage says can't be had: better to be somewhere, and choose from there.
      state.wanted = LOBBY;
      join(LOBBY, GUEST);
    }
  });
}

function setPeople({ version, people }) {
  if (version < state.versions.people) return;
  state.versions.people = version;
  state.people = new Map(people.map((person) => [person.sid, person]));
  for (const sid of state.typing.keys()) if (!state.people.has(sid)) setTyping({ sid, typing: false });
  showPeople();
  showTyping();
}

function setTyping({ sid, typing }) {
  clearTimeout(state.typing.get(sid));
  state.typing.delete(sid);
  if (typing) state.typing.set(sid, setTimeout(() => setTyping({ sid, typing: false }), TYPING_MS));
  showTyping();
}

const happened = {
  joined: ({ name, slot }) => [isolated(name), " joined on ", chip(slot)],
  left: ({ name }) => [isolated(name), " left"],
  lost: ({ name, slot, pid }) => [isolated(name), " was cut off: process ", String(pid), " of ", chip(slot), " has ended"],
  renamed: ({ name }, was) => [isolated(was), " is now ", isolated(name)],
};

const transportName = { websocket: "WebSocket", polling: "long-polling" };

function chat() {
  // ?transports=polling stays on long-polling: every request is routed anew, and still finds its worker.
  const transports = asked.get("transports")?.split(",").filter((name) => Object.hasOwn(transportName, name));
  socket = io(transports?.length ? { transports } : {});
  const manager = socket.io;

  const connected = () => {
    const { name } = manager.engine.transport;
    showState("connected", `Connected · ${transportName[name] ?? name}`);
    element("state").dataset.transport = name;
  };
  socket.on("connect", () => {
    connected();
    manager.engine.once("upgrade", connected);
    state.versions = { rooms: -1, people: -1 };
    state.room = null;
    join(state.wanted);
  });
  socket.on("disconnect", () => {
    showState(socket.active ? "reconnecting" : "offline", socket.active ? "Reconnecting…" : "Disconnected");
    showEvent(`Connection lost; ${socket.active ? "trying to get it back" : "reload the page to come back"}.`);
  });
  manager.on("reconnect_attempt", (attempt) => showState("reconnecting", `Reconnecting, attempt ${attempt}…`));
  socket.on("connect_error", () => {
    if (element("state").dataset.state !== "reconnecting") showState("connecting", "Trying again…");
  });

  socket.on("rooms", ({ version, rooms }) => {
    if (version < state.versions.rooms) return;
    state.versions.rooms = version;
    showRooms(rooms);
  });
  socket.on("people", (told) => {
    if (told.room !== state.room) return;
    const { what, who, was } = told;
    if (what) { // else it is only the list, to be sure
      const ours = who.sid === socket.id || state.mine.has(who.sid); // we know when we come and go
      if (!ours || what === "renamed") showEvent(...happened[what](who, was));
    }
    setPeople(told);
  });
  socket.on("said", (message) => {
    if (message.room !== state.room) return;
    setTyping({ sid: message.sid, typing: false });
    showMessage(message);
  });
  socket.on("typing", (told) => {
    if (told.room === state.room) setTyping(told);
  });
}

// --- what the user does --------------------------------------------------------------------------------------

function onSubmit(id, act) {
  element(id).addEventListener("submit", (submitted) => {
    submitted.preventDefault();
    act();
  });
}

let typingSince = 0; // when we said last that we type; 0: not since the last message

function tellTyping() {
  const typing = element("text").value.trim() !== "";
  if (typing ? Date.now() - typingSince < TYPING_MS / 2 : typingSince === 0) return;
  typingSince = typing ? Date.now() : 0;
  if (state.room) ask("typing", { typing });
}

element("text").addEventListener("input", tellTyping);
onSubmit("say", () => {
  const text = element("text");
  const sent = text.value;
  if (sent.trim() === "") return;
  text.value = "";
  typingSince = 0;
  ask("say", { text: sent }, null, () => {
    if (text.value === "") text.value = sent;
  });
});
onSubmit("create", () => {
  join(element("new-room").value);
  element("new-room").value = "";
});
onSubmit("rename", () => {
  join(state.room ?? state.wanted, element("name").value, () => localStorage.setItem("name", state.name));
});
element("leave").addEventListener("click", () => {
  join(LOBBY);
  element("text").focus();
});

element("name").value = state.name;
showRooms([]);
if (typeof io === "undefined") {
  showState("offline", "Client missing");
  showEvent("The Socket.IO client isn't installed: run npm ci in examples/chat, then reload.");
} else {
  chat();
}
