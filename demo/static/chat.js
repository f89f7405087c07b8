import { SESSION_ENDED, SessionSocket } from "./session-ws.js";
import { $, record } from "./page.js";

const socket = new SessionSocket("/chat/ws"); // reconnects by itself, but after 4401 and 4429

socket.addEventListener("message", ({ data }) => {
  const { type, who, what, text } = JSON.parse(data);
  if (type !== "chat") return; // what the first page says in the same session
  show("open", "Connected");
  record(what, what === "says" ? `${who}: ${text}` : who);
});

socket.addEventListener("state", ({ detail: { state, code, reason } }) => {
  if (state === "waiting") show("waiting", "Reconnecting");
  if (state !== "closed") return;
  const what = code === SESSION_ENDED ? "Log in on the first page, then reload" : "Reload";
  show("stopped", `Closed: ${reason}. ${what} to return.`);
});

function show(state, text) {
  document.body.dataset.state = state;
  $("status").textContent = text;
  $("send").disabled = state !== "open";
}

$("say").addEventListener("submit", (event) => {
  event.preventDefault();
  socket.send(event.target.elements.text.value);
  event.target.reset();
});

show("waiting", "Connecting");
