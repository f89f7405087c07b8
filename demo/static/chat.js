"use strict";

const SESSION_ENDED = 4401;
const TOO_MANY_CONNECTIONS = 4429;

const $ = (id) => document.getElementById(id);

let socket = null;

function connect() {
  socket = new WebSocket(new URL("/chat/ws", location.href.replace(/^http/, "ws")));
  socket.onmessage = (event) => {
    const message = JSON.parse(event.data);
    if (message.type !== "chat") return; // what the first page says in the same session
    show("open", "Connected");
    record(message);
  };
  socket.onclose = ({ code, reason }) => {
    if (code === SESSION_ENDED || code === TOO_MANY_CONNECTIONS) {
      show("stopped", `Closed: ${reason}. Reload the page to come back.`);
      return;
    }
    show("waiting", "Coming back");
    setTimeout(connect, 500 + Math.random() * 500); // at random, or all would come at once
  };
}

function show(state, text) {
  document.body.dataset.state = state;
  $("status").textContent = text;
  $("send").disabled = state !== "open";
}

function record({ who, what, text }) {
  const item = document.createElement("li");
  item.dataset.kind = what;
  const time = document.createElement("time");
  time.textContent = new Date().toLocaleTimeString([], { hourCycle: "h23" });
  const tag = document.createElement("b");
  tag.textContent = what;
  const words = document.createElement("span");
  words.textContent = what === "says" ? `${who}: ${text}` : who;
  item.append(time, tag, words);
  $("log").prepend(item); // the newest stands on top
  if ($("log").children.length > 200) $("log").lastChild.remove();
}

$("say").addEventListener("submit", (event) => {
  event.preventDefault();
  socket.send(event.target.elements.text.value);
  event.target.reset();
});

show("waiting", "Connecting");
connect();
