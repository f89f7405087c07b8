"use strict";

const $ = (id) => document.getElementById(id);

let socket = null;
let failures = 0; // connections in a row that did not live long

function connect() {
  socket = new WebSocket(new URL("/chat/ws", location.href.replace(/^http/, "ws")));
  let opened = null; // when
  socket.onmessage = (event) => {
    opened ??= performance.now();
    const message = JSON.parse(event.data);
    if (message.type !== "chat") return; // what the first page says in the same session
    show("open", "Connected");
    record(message);
  };
  socket.onclose = ({ code, reason }) => {
    if (opened !== null && performance.now() - opened >= LIVED * 1000) failures = 0;
    const wait = reconnectAfter(code, failures);
    failures += 1;
    if (wait === null) {
      const what = code === SESSION_ENDED ? "Log in on the first page, then reload" : "Reload";
      show("stopped", `Closed: ${reason}. ${what} to return.`);
      return;
    }
    show("waiting", "Reconnecting");
    setTimeout(connect, wait * 1000);
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
