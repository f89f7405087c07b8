// A websocket that reconnects as aiohttp_session_ws says, and WAMP calls over it.

export const SESSION_ENDED = 4401;
export const RECONNECT = 4403;
export const TOO_MANY_CONNECTIONS = 4429;

// Milliseconds, or null: not by itself.
export function reconnectAfter(code, failures) {
  if (code === SESSION_ENDED || code === TOO_MANY_CONNECTIONS) return null;
  if (code === RECONNECT && !failures) return Math.random() * 1000; // or all come at once
  return Math.min(30000, 500 * 2 ** failures) * (0.5 + Math.random() / 2);
}

class Stateful extends EventTarget {
  state = "closed";
  set(state, detail) {
    this.state = state;
    this.dispatchEvent(new CustomEvent("state", { detail: { ...detail, state } }));
  }
}

// `state` is "connecting", "open", "waiting" or "closed"; its event has code, reason and wait (ms
// or null) in detail after a close.
export class SessionSocket extends Stateful {
  #url;
  #protocols;
  #ws = null;
  #timer;
  #failures = 0;

  // `url` may be a function, asked each time.
  constructor(url, protocols = []) {
    super();
    this.#url = url;
    this.#protocols = protocols;
    this.#open();
  }

  // At once, with a new back-off.
  connect() {
    this.#failures = 0;
    this.#open();
  }

  #open() {
    if (this.#ws) return;
    clearTimeout(this.#timer);
    const url = new URL(valueOf(this.#url), location);
    url.protocol = url.protocol.replace("http", "ws");
    const ws = (this.#ws = new WebSocket(url, this.#protocols));
    let opened = Infinity;
    ws.binaryType = "arraybuffer";
    ws.onopen = () => {
      opened = performance.now();
      this.set("open");
    };
    ws.onmessage = ({ data }) => this.dispatchEvent(new MessageEvent("message", { data }));
    ws.onclose = ({ code, reason }) => {
      if (this.#ws !== ws) return;
      this.#ws = null;
      if (performance.now() - opened >= 5000) this.#failures = 0;
      const wait = reconnectAfter(code, this.#failures++);
      if (wait !== null) this.#timer = setTimeout(() => this.#open(), wait);
      this.set(wait === null ? "closed" : "waiting", { code, reason, wait });
    };
    this.set("connecting");
  }

  send(data) {
    if (this.state !== "open") throw new Error("the socket is not open");
    this.#ws.send(data);
  }

  // Close, and stay away until connect().
  close(code = 1000, reason = "") {
    clearTimeout(this.#timer);
    const ws = this.#ws;
    this.#ws = null;
    ws?.close(code, reason);
    if (this.state !== "closed") this.set("closed", { code, reason, wait: null });
  }
}

export class CallError extends Error {
  constructor(uri, args = [], kwargs = {}) {
    super([uri, ...args].join(" "));
    Object.assign(this, { uri, args, kwargs });
  }
}

const valueOf = (it) => (typeof it === "function" ? it() : it);

// Bytes are Base64 behind a NUL.
const encode = (message) => JSON.stringify(message, (_, value) =>
  value instanceof Uint8Array ? "\0" + btoa(String.fromCharCode(...value)) : value);
const decode = (text) => JSON.parse(text, text.includes("\\u0000") ? (_, value) =>
  value?.[0] === "\0" ? Uint8Array.from(atob(value.slice(1)), (c) => c.charCodeAt(0)) : value : null);

// Calls, both ways. `state` is the socket's, and "joined" once calls are heard. `authenticate` is
// asked before each HELLO: {authid, ticket}, or {authid, sign(challenge, extra)} for wampcra.
export class Client extends Stateful {
  #socket;
  #options;
  #sign;
  #number = 1;
  #calls = new Map();
  #unsent = new Set(); // until we have joined
  #kept = new Set(); // subscriptions and registrations
  #error = null;

  constructor(url, options = {}) {
    super();
    this.#options = options;
    const socket = (this.#socket = new SessionSocket(url, ["wamp.2.json"]));
    this.state = socket.state;
    socket.addEventListener("state", ({ detail }) => this.#onState(detail));
    socket.addEventListener("message", ({ data }) => this.#onMessage(decode(data)));
  }

  // `args` is a list or an object of names, `timeout` in ms.
  call(name, args = [], { signal, timeout, onProgress } = {}) {
    const options = { timeout, receive_progress: !!onProgress };
    return new Promise((resolve, reject) => {
      signal?.throwIfAborted();
      const payload = Array.isArray(args) ? [args] : [[], args];
      const call = { message: [48, options, name, ...payload], resolve, reject, onProgress };
      signal?.addEventListener("abort", () => {
        this.#unsent.delete(call);
        if (this.#calls.delete(call.number)) this.#send([49, call.number, {}]);
        reject(signal.reason);
      });
      if (this.state === "joined") this.#request(call);
      else if (this.state === "closed") reject(this.#gone());
      else this.#unsent.add(call);
    });
  }

  // Leaving a `for await` loop cancels.
  async *stream(name, args, { signal, timeout } = {}) {
    const left = new AbortController();
    const parts = [];
    let wake;
    let end;
    const onProgress = (part) => (parts.push(part), wake?.());
    const both = signal ? AbortSignal.any([signal, left.signal]) : left.signal;
    this.call(name, args, { timeout, signal: both, onProgress })
      .then((value) => (end = { value }), (error) => (end = { error }))
      .then(() => wake?.());
    try {
      for (;;) {
        while (parts.length) yield parts.shift();
        if (end?.error) throw end.error;
        if (end) return end.value;
        await new Promise((resolve) => (wake = resolve));
      }
    } finally {
      left.abort();
    }
  }

  // fn(...args, kwargs) has each event until the returned function is called. `topic` may be
  // a function, asked at each connection.
  subscribe = (topic, fn) => this.#keep(32, topic, fn);
  register = (name, fn) => this.#keep(64, name, fn);
  connect = () => this.#socket.connect();
  close = () => this.#socket.close();

  async #keep(kind, name, fn) {
    const entry = { kind, name, fn };
    this.#kept.add(entry);
    try {
      if (this.state === "joined") await this.#begin(entry);
    } catch (error) {
      this.#kept.delete(entry);
      throw error;
    }
    return async () => {
      const { id } = entry;
      const last = this.#kept.delete(entry) && ![...this.#kept].some((other) => other.id === id);
      if (last && id && this.state === "joined") await this.#ask([kind + 2, id]);
    };
  }

  async #begin(entry) {
    entry.id = await this.#ask([entry.kind, {}, valueOf(entry.name)]);
  }

  #ask(message) {
    return new Promise((resolve, reject) => this.#request({ message, resolve, reject }));
  }

  #request(call) {
    const [kind, ...rest] = call.message;
    call.number = this.#number++;
    this.#calls.set(call.number, call);
    this.#send([kind, call.number, ...rest]);
  }

  #send(message) {
    if (this.#socket.state === "open") this.#socket.send(encode(message));
  }

  #gone(reason = "not connected") {
    return this.#error ?? new CallError("session_ws.error.gone", [reason]);
  }

  #onState(detail) {
    if (detail.state === "open") return this.#hello().catch(this.#fail);
    if (detail.state === "connecting") this.#error = null;
    else this.#drop(detail);
    this.set(detail.state, detail);
  }

  async #hello() {
    const { realm = "", authenticate } = this.#options;
    const mark = (this.#sign = {});
    const { authid, ticket, sign = () => ticket } = (await authenticate?.()) ?? {};
    if (this.#sign !== mark) return; // another connection has begun
    this.#sign = sign;
    const authmethods = ticket ? ["ticket"] : authid ? ["wampcra"] : [];
    const roles = { caller: {}, callee: {}, subscriber: {} };
    // With _whole_values a list of one isn't taken for what is in it.
    this.#send([1, realm, { roles, _whole_values: true, authid, authmethods }]);
  }

  async #prove(extra) {
    this.#send([5, await this.#sign(extra.challenge, extra), {}]);
  }

  #fail = (error) => {
    this.#error = error;
    this.close();
  };

  #drop({ state, reason }) {
    for (const calls of state === "closed" ? [this.#calls, this.#unsent] : [this.#calls]) {
      for (const call of calls.values()) call.reject(this.#gone(reason));
      calls.clear();
    }
    for (const entry of this.#kept) entry.id = null;
  }

  #join() {
    this.set("joined");
    for (const entry of this.#kept) this.#begin(entry).catch(reportError);
    for (const call of this.#unsent) this.#request(call);
    this.#unsent.clear();
  }

  #onMessage([kind, first, second, third, fourth, ...rest]) {
    if (kind === 2) this.#join();
    else if (kind === 3) this.#fail(new CallError(second, first.message ? [first.message] : []));
    else if (kind === 4) this.#prove(second).catch(this.#fail);
    else if (kind === 6) this.#send([6, {}, "wamp.close.goodbye_and_out"]);
    else if (kind === 8) this.#end(second)?.reject(new CallError(fourth, ...rest));
    else if (kind === 36) {
      for (const { kind, id, fn } of this.#kept) {
        if (kind === 32 && id === first) fn(...(fourth ?? []), rest[0] ?? {});
      }
    } else if (kind === 50) {
      let value = third?.length > 1 ? third : third?.[0] ?? null;
      if (fourth) value = { args: third, kwargs: fourth };
      if (second.progress) this.#calls.get(first)?.onProgress?.(value);
      else this.#end(first)?.resolve(value);
    } else if (kind === 68) this.#answer(first, second, fourth, ...rest);
    else if (kind !== 69) this.#end(first)?.resolve(second); // SUBSCRIBED, REGISTERED, …
  }

  #end(number) {
    const call = this.#calls.get(number);
    this.#calls.delete(number);
    return call;
  }

  async #answer(number, registration, args = [], kwargs = {}) {
    let answer;
    try {
      const { fn } = [...this.#kept].find(({ id }) => id === registration);
      answer = [70, number, {}, [(await fn(...args, kwargs)) ?? null]];
    } catch ({ uri = "wamp.error.runtime_error", args, message }) {
      answer = [8, 68, number, {}, uri, args ?? [message]];
    }
    this.#send(answer);
  }
}

export const connect = (url, options) => new Client(url, options);
