"use strict";

const element = (id) => document.getElementById(id);

function show(state, words = state) {
  element("state").dataset.state = state;
  element("state").textContent = words;
  document.querySelector("#form button").disabled = state !== "connected";
}

// Neighbouring slots get colours far from each other (the golden angle).
const hue = (slot) => String(Math.round((220 + slot * 137.5) % 360));

function append(item) {
  const list = element("messages");
  list.append(item);
  while (list.children.length > 200) list.firstElementChild.remove();
  list.scrollTop = list.scrollHeight;
}

function event(words) {
  const item = document.createElement("li");
  item.className = "event";
  item.textContent = words;
  append(item);
}

function message({ name, text, slot, by }, mine) {
  const item = document.createElement("li");
  const who = document.createElement("div");
  const badge = document.createElement("span");
  who.className = "who";
  who.textContent = name;
  badge.className = "badge";
  badge.style.setProperty("--hue", hue(slot ?? 0));
  badge.textContent = slot === null ? "no slot" : `slot ${slot}`;
  who.append(badge);
  item.append(who, text);
  item.classList.toggle("mine", by === mine);
  append(item);
}

function chat() {
  // ?transports=polling stays on long-polling: every request is routed anew, and still finds its worker.
  const transports = new URLSearchParams(location.search).get("transports")?.split(",");
  const socket = io(transports ? { transports } : {});
  let pid = null;
  let reconnects = 0;

  socket.on("connect", () => {
    show("connected");
    const { engine } = socket.io;
    element("transport").textContent = engine.transport.name;
    engine.once("upgrade", () => { element("transport").textContent = engine.transport.name; });
  });
  socket.on("connect_error", () => show("connecting", "trying again"));
  socket.on("disconnect", (reason) => {
    show("offline", socket.active ? "reconnecting" : "disconnected");
    event(`connection lost: ${reason}`);
  });
  socket.io.on("reconnect", () => { element("reconnects").textContent = String(++reconnects); });

  socket.on("welcome", (worker) => {
    element("slot").textContent = worker.slot ?? "–";
    element("slot").style.setProperty("--hue", hue(worker.slot ?? 0));
    element("slot-name").textContent = worker.slot ?? "none";
    element("pid").textContent = worker.pid;
    const place = worker.slot === null ? "a process without slots" : `slot ${worker.slot}`;
    if (pid === null) event(`${place} serves you`);
    else event(`back on ${place}, ${pid === worker.pid ? "the same process" : "in another process"}`);
    pid = worker.pid;
  });
  socket.on("people", (count) => {
    element("people").textContent = count === 1 ? "only you" : `${count} clients`;
  });
  socket.on("said", (said) => message(said, socket.id));

  element("form").addEventListener("submit", (submitted) => {
    submitted.preventDefault();
    const text = element("text");
    localStorage.setItem("name", element("name").value);
    socket.timeout(5000).emit("say", { name: element("name").value, text: text.value }, (late, answer) => {
      if (late) event("the worker didn't answer within 5 seconds; try again");
      else if (!answer.ok) event(answer.why);
      else text.value = "";
    });
  });
}

element("name").value = localStorage.getItem("name") ?? `guest ${Math.floor(Math.random() * 1000)}`;
if (typeof io === "undefined") {
  show("offline", "client missing");
  event("The Socket.IO client isn't installed: run npm ci in examples/chat, then reload.");
} else {
  chat();
}
