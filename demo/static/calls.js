// @ts-check
import { SESSION_ENDED, connect } from "./session-ws.js";
import { $, post, record, seconds } from "./page.js";

// The types of what is called come from the server's annotations: session-ws.d.ts, beside this.
const client = connect("/calls/ws");

client.addEventListener("state", (event) => {
  const { state, code, reason } = /** @type {CustomEvent} */ (event).detail;
  if (code !== undefined) record("close", reason || "connection lost", code);
  show(state, code === SESSION_ENDED ? `Closed: ${reason}` : undefined);
  if (code !== undefined) answer?.(false); // nobody waits for it any more
});

// ---- A stream: leaving the loop, or the signal, cancels it

const TOTAL = 5; // seconds
/** @type {AbortController | undefined} */
let running;

async function countDown() {
  const { signal } = (running = new AbortController());
  $("cancel").hidden = false;
  $("start").disabled = true;
  let left = TOTAL;
  try {
    for await (left of client.stream("demo.countdown", [TOTAL], { signal })) {
      $("progress").value = 1 - left / TOTAL;
      $("left").textContent = `${seconds(left)} left`;
    }
    $("progress").value = 1;
    $("left").textContent = "Done.";
  } catch (error) {
    const why = signal.aborted ? "Cancelled" : `Ended (${reasonOf(error)})`;
    $("left").textContent = `${why} with ${seconds(left)} left.`;
  }
  $("cancel").hidden = true;
  $("start").disabled = client.state !== "joined";
}

$("countdown").addEventListener("submit", (/** @type {SubmitEvent} */ event) => {
  event.preventDefault();
  countDown();
});
$("cancel").addEventListener("click", () => running?.abort());

// ---- A topic: notes for all, also after a reconnect

client.subscribe("demo.board", (/** @type {{ who: string, text: string }} */ note) => {
  record("note", `${note.who}: ${note.text}`);
});

$("write").addEventListener("submit", async (/** @type {SubmitEvent} */ event) => {
  event.preventDefault();
  const form = /** @type {HTMLFormElement} */ (event.target);
  const text = String(new FormData(form).get("text"));
  form.reset();
  try {
    await client.call("demo.write", [text]);
  } catch (error) {
    record("error", reasonOf(error));
  }
});

// ---- A question: the server calls this tab, and goes on with the answer

/** @type {((allowed: boolean) => void) | undefined} */
let answer;

client.register("allow", async (question) => {
  answer?.(false); // there is one question at a time
  $("asked").textContent = question;
  $("question").hidden = false;
  /** @type {typeof answer} */
  let own;
  const allowed = await new Promise((resolve) => (answer = own = resolve));
  if (answer === own) $("question").hidden = true;
  return allowed;
});
$("allow").addEventListener("click", () => answer?.(true));
$("decline").addEventListener("click", () => answer?.(false));

$("pay").addEventListener("submit", async (/** @type {SubmitEvent} */ event) => {
  event.preventDefault();
  const form = new FormData(/** @type {HTMLFormElement} */ (event.target));
  try {
    record("paid", await client.call("demo.pay", { amount: Number(form.get("amount")) }));
  } catch (error) {
    record("error", reasonOf(error));
  }
});

// ---- The session

$("log-in").addEventListener("submit", async (/** @type {SubmitEvent} */ event) => {
  event.preventDefault();
  const form = /** @type {HTMLFormElement} */ (event.target);
  if (!(await post("/login", new FormData(form)))) return;
  form.reset();
  client.connect();
});
$("log-out").addEventListener("click", () => post("/logout"));
$("connect").addEventListener("click", () => client.connect());

/** @param {unknown} error */
function reasonOf(error) {
  const { args, message } = /** @type {{ args?: unknown[], message?: string }} */ (error);
  return String(args?.[0] ?? message);
}

/** @type {Record<string, string>} */
const STATES = {
  connecting: "Connecting",
  open: "Connecting",
  joined: "Connected",
  waiting: "Reconnecting",
  closed: "Closed",
};

/** @param {string} state @param {string} [text] */
async function show(state, text = STATES[state]) {
  document.body.dataset.state = state === "joined" ? "open" : state === "closed" ? "stopped" : state;
  $("status").textContent = text;
  for (const button of document.querySelectorAll("form:not(#log-in) button")) {
    if (button.id !== "cancel") button.toggleAttribute("disabled", state !== "joined");
  }
  $("log-out").hidden = state !== "joined";
  $("log-in").hidden = state !== "closed";
  $("connect").hidden = state !== "waiting" && state !== "closed";
  if (state !== "joined" && state !== "closed") return;
  const { user } = await (await fetch("/state")).json();
  document.body.dataset.user = user ?? "";
  $("user").textContent = user ?? "Nobody";
}

show(client.state);
