import { RECONNECT, SESSION_ENDED, SessionSocket, reconnectAfter } from "./session-ws.js";
import { $, post, record, seconds } from "./page.js";

const plural = (number, noun) => `${number} ${noun}${number === 1 ? "" : "s"}`;

// ---- The connection

const socket = new SessionSocket("/ws"); // reconnects by itself, but after 4401 and 4429
let timer = null;
let refused = 0; // times in a row that the session had ended

// Not "open": the server accepts a socket even to refuse it, since a script sees a close
// code but never an HTTP status. The first message says that we are in.
socket.addEventListener("message", ({ data }) => receive(JSON.parse(data)));

socket.addEventListener("state", ({ detail: { state, code, reason, wait } }) => {
  if (state === "connecting") show("connecting");
  else if (state === "waiting") {
    const what = code === RECONNECT && wait <= 1000 ? "reconnecting" : "trying again";
    closed(code, reason, `${what} in ${seconds(wait / 1000)}`, "waiting");
  } else if (state === "closed" && code === SESSION_ENDED) askAgain(code, reason);
  else if (state === "closed") closed(code, reason, "staying away until you connect", "stopped");
});

function closed(code, reason, text, state) {
  record("close", `${reason || "connection lost"}: ${text}`, code);
  show(state);
}

// Visitors may connect here, so the page asks for a fresh session and goes on with that.
function askAgain(code, reason) {
  const wait = refused ? reconnectAfter(1006, refused) : 0;
  const when = refused++ ? ` in ${seconds(wait / 1000)}` : "";
  closed(code, reason, `asking for a fresh session${when}`, "waiting");
  timer = setTimeout(refreshAndConnect, wait);
}

// The answer sets a new cookie if ours is that of an ended session. Another tab may have
// got it already; tabs share their cookies.
async function refreshAndConnect() {
  clearTimeout(timer);
  show("connecting");
  try {
    const response = await fetch("/state");
    if (!response.ok) throw new Error(response.statusText);
    describe(await response.json());
  } catch {
    askAgain(undefined, "the server doesn't answer");
    return;
  }
  socket.connect();
}

function receive(message) {
  if (message.type === "session") {
    refused = 0;
    describe(message);
    show("open");
    const who = message.user === null ? "not logged in" : `logged in as ${message.user}`;
    record("open", `session ${message.id}, ${who}`);
  } else if (message.type === "sockets") {
    document.body.dataset.sockets = $("sockets").textContent = message.count;
  } else if (message.type === "everywhere") {
    $("everywhere").textContent = `${message.sockets} in ${plural(message.sessions, "session")}`;
  } else if (message.type === "said") {
    record("said", message.text);
  }
}

// ---- The page

const STATES = {
  connecting: "Connecting",
  open: "Connected",
  waiting: "Reconnecting",
  stopped: "Closed",
};

function show(state) {
  document.body.dataset.state = state;
  $("status").textContent = STATES[state];
  $("connect").hidden = state !== "waiting" && state !== "stopped";
  $("send").disabled = state !== "open";
  if (state === "open") return;
  document.body.dataset.sockets = $("sockets").textContent = $("everywhere").textContent = "–";
}

function describe({ id, user }) {
  const { dataset } = document.body;
  dataset.id = id ?? "";
  dataset.user = user ?? "";
  $("id").textContent = id ?? "–";
  $("user").textContent = user ?? "Nobody";
  $("log-in").hidden = user !== null;
  for (const item of document.querySelectorAll(".logged-in")) item.hidden = user === null;
}

$("log-in").addEventListener("submit", async (event) => {
  event.preventDefault();
  const form = event.target;
  await post("/login", new FormData(form));
  form.reset();
});

$("say").addEventListener("submit", (event) => {
  event.preventDefault();
  socket.send(event.target.elements.text.value);
  event.target.reset();
});

for (const [id, path] of [
  ["log-out", "/logout"],
  ["log-out-everywhere", "/logout-everywhere"],
  ["log-out-elsewhere", "/logout-elsewhere"],
  ["reset", "/reset"],
]) {
  $(id).addEventListener("click", () => post(path));
}

$("connect").addEventListener("click", refreshAndConnect);

describe({ id: null, user: null });
show("connecting");
