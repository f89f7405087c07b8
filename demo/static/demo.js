"use strict";

const $ = (id) => document.getElementById(id);
const seconds = (number) => `${number.toFixed(1)}\u00a0s`;
const plural = (number, noun) => `${number} ${noun}${number === 1 ? "" : "s"}`;

let socket = null;
let timer = null;
let failures = 0; // connections in a row that did not live long

// ---- The connection

function connect() {
  clearTimeout(timer);
  show("connecting");
  const ws = (socket = new WebSocket(new URL("/ws", location.href.replace(/^http/, "ws"))));
  let welcomed = null; // when

  // Not "open": the server accepts a socket even to refuse it, since a script sees a close
  // code but never an HTTP status. The first message says that we are in.
  ws.onmessage = (event) => {
    if (welcomed === null) welcomed = performance.now();
    receive(JSON.parse(event.data));
  };

  // There is no use for "error": a close always follows, and says more.
  ws.onclose = (event) => {
    socket = null;
    const lived = welcomed !== null && performance.now() - welcomed >= LIVED * 1000;
    comeBack(event.code, event.reason, lived);
  };
}

function comeBack(code, reason, lived) {
  if (lived) failures = 0;
  const { wait, refresh, text } = plan(code, failures);
  failures += 1;
  record("close", `${reason || "connection lost"}: ${text}`, code);
  if (wait === null) {
    show("stopped");
    return;
  }
  show("waiting");
  timer = setTimeout(refresh ? refreshAndConnect : connect, wait * 1000);
}

// What to do about a close: seconds to wait (null for never), whether to ask for a fresh
// session first, and how to say so.
function plan(code, failures) {
  if (code === SESSION_ENDED) {
    // Visitors may connect here, so the page asks for a fresh session and goes on with that.
    if (failures === 0) return { wait: 0, refresh: true, text: "asking for a fresh session" };
    const wait = backOff(failures);
    return { wait, refresh: true, text: `asking for a fresh session in ${seconds(wait)}` };
  }
  const wait = reconnectAfter(code, failures);
  if (wait === null) return { wait, refresh: false, text: "staying away until you connect" };
  const what = code === RECONNECT && failures === 0 ? "reconnecting" : "trying again";
  return { wait, refresh: false, text: `${what} in ${seconds(wait)}` };
}

// The answer sets a new cookie if ours is that of an ended session. Another tab may have
// got it already; tabs share their cookies.
async function refreshAndConnect() {
  show("connecting");
  try {
    const response = await fetch("/state");
    if (!response.ok) throw new Error(response.statusText);
    describe(await response.json());
  } catch {
    comeBack(undefined, "the server doesn't answer", false);
    return;
  }
  connect();
}

function receive(message) {
  if (message.type === "session") {
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

function record(kind, text, code) {
  const item = document.createElement("li");
  item.dataset.kind = kind;
  if (code !== undefined) item.dataset.code = code;
  const time = document.createElement("time");
  time.textContent = new Date().toLocaleTimeString([], { hourCycle: "h23" });
  const tag = document.createElement("b");
  tag.textContent = code ?? kind;
  const words = document.createElement("span");
  words.textContent = text;
  item.append(time, tag, words);
  $("log").prepend(item); // the newest stands on top
  if ($("log").children.length > 200) $("log").lastChild.remove();
}

async function post(path, body) {
  failures = 0; // a person who asks is no sign of trouble
  try {
    const response = await fetch(path, { method: "POST", body });
    record("post", response.ok ? path : `${path}: ${response.status} ${response.statusText}`);
  } catch {
    record("post", `${path}: the server doesn't answer`);
  }
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

$("log-out").addEventListener("click", () => post("/logout"));
$("log-out-everywhere").addEventListener("click", () => post("/logout-everywhere"));
$("log-out-elsewhere").addEventListener("click", () => post("/logout-elsewhere"));
$("reset").addEventListener("click", () => post("/reset"));

$("connect").addEventListener("click", () => {
  failures = 0; // as above
  clearTimeout(timer);
  refreshAndConnect();
});

describe({ id: null, user: null });
connect();
