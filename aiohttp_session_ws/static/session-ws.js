// A websocket that reconnects as aiohttp_session_ws says, and WAMP calls over it. What is public is
// told in session-ws.d.ts.

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

export class SessionSocket extends Stateful {
  #make;
  #ws = null;
  #timer;
  #failures = 0;

  constructor(url, protocols = []) {
    super();
    this.#make = () => {
      const full = new URL(valueOf(url), location);
      full.protocol = full.protocol.replace("http", "ws");
      return new WebSocket(full, protocols);
    };
    this.#open();
  }

  connect() {
    this.#failures = 0;
    this.#open();
  }

  #open() {
    if (this.#ws) return;
    const ws = (this.#ws = this.#make());
    clearTimeout(this.#timer);
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
      const retry = () => {
        this.#timer = setTimeout(retry, 5000); // unless there is a URL
        this.#open();
      };
      if (wait !== null) this.#timer = setTimeout(retry, wait);
      this.set(wait === null ? "closed" : "waiting", { code, reason, wait });
    };
    this.set("connecting");
  }

  send(data) {
    if (this.state !== "open") throw new Error("the socket is not open");
    this.#ws.send(data);
  }

  close(code = 1000, reason = "") {
    this.#ws?.close(code, reason);
    this.#ws = null;
    clearTimeout(this.#timer);
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
const run = async (fn, ...args) => fn(...args); // if it throws, the others go on

// Bytes are Base64 behind a NUL.
const write = (text, byte) => text + String.fromCharCode(byte);
const encode = (message) => JSON.stringify(message, (_, value) =>
  value instanceof Uint8Array ? "\0" + btoa(value.reduce(write, "")) : value);
const decode = (text) => JSON.parse(text, text.includes("\\u0000") ? (_, value) =>
  value?.[0] === "\0" ? Uint8Array.from(atob(value.slice(1)), (c) => c.charCodeAt(0)) : value : null);

// Calls, both ways.
export class Client extends Stateful {
  #socket;
  #options;
  #proof;
  #number = 1;
  #calls = new Map(); // with `send` as long as they wait
  #kept = new Set(); // subscriptions and registrations
  #error = null;
  #turn = 0;

  constructor(url, options = {}) {
    super();
    this.#options = options;
    const socket = (this.#socket = new SessionSocket(url, ["wamp.2.json"]));
    this.state = socket.state;
    socket.addEventListener("state", ({ detail }) => this.#onState(detail));
    socket.addEventListener("message", ({ data }) => this.#onMessage(decode(data)));
  }

  call(name, args = [], { signal, timeout, onProgress } = {}) {
    const options = { timeout, receive_progress: !!onProgress };
    const payload = Array.isArray(args) ? [args] : [[], { ...args }];
    return this.#ask([48, options, name, ...payload], signal, onProgress);
  }

  async *stream(name, args, { signal, timeout } = {}) {
    const left = new AbortController();
    const parts = [];
    let wake, ended;
    const onProgress = (part) => (parts.push(part), wake?.());
    const both = signal ? AbortSignal.any([signal, left.signal]) : left.signal;
    const call = this.call(name, args, { timeout, signal: both, onProgress });
    const end = () => (ended = true, wake?.());
    call.then(end, end);
    try {
      for (;;) {
        while (parts.length) yield parts.shift();
        if (ended) return await call;
        await new Promise((resolve) => (wake = resolve));
      }
    } finally {
      left.abort();
    }
  }

  subscribe = (topic, fn) => this.#keep(32, topic, fn);
  register = (name, fn) => this.#keep(64, name, fn);
  connect = () => this.#socket.connect();
  close = () => this.#socket.close();

  async #keep(kind, name, fn) {
    const entry = { kind, name, fn };
    const drop = () => this.#kept.delete(entry);
    this.#kept.add(entry);
    try {
      if (this.state === "joined") await this.#begin(entry);
    } catch (error) {
      drop();
      throw error;
    }
    return async () => drop() && this.#leave(entry);
  }

  async #begin(entry) {
    entry.topic = valueOf(entry.name);
    entry.id = await this.#ask([entry.kind, {}, entry.topic]);
    if (!this.#kept.has(entry)) await this.#leave(entry);
  }

  async #leave({ kind, id, topic }) {
    const shared = (other) => kind === 32 && other.kind === 32 && other.topic === topic;
    if (!id || this.state !== "joined" || [...this.#kept].some(shared)) return;
    await this.#ask([kind + 2, id]);
  }

  // It is sent once we have joined.
  #ask([kind, ...rest], signal, onProgress) {
    return new Promise((resolve, reject) => {
      signal?.throwIfAborted();
      if (this.state === "closed") throw this.#error;
      const number = this.#number++;
      const abort = () => {
        if (!this.#end(number).send) this.#send(encode([49, number, {}]));
        reject(signal.reason);
      };
      const text = encode([kind, number, ...rest]);
      const send = () => {
        call.send = null;
        this.#send(text);
      };
      const call = { send, resolve, reject, onProgress, signal, abort };
      this.#calls.set(number, call);
      signal?.addEventListener("abort", abort);
      if (this.state === "joined") send();
    });
  }

  #send = (text) => this.#socket.state === "open" && this.#socket.send(text);

  #onState(detail) {
    const { state, reason } = detail;
    this.#turn++;
    if (state === "open") return this.#say(this.#hello());
    this.#error ??= new CallError("session_ws.error.gone", [reason || "not connected"]);
    for (const [number, { send }] of this.#calls) {
      if (!send || state === "closed") this.#end(number).reject(this.#error);
    }
    for (const entry of this.#kept) entry.id = null;
    if (state !== "closed") this.#error = null;
    this.set(state, detail);
  }

  // What is late is not said on the next connection.
  #say(making, failed = this.#fail) {
    const turn = this.#turn;
    const timely = (act) => (it) => turn === this.#turn && act(it);
    making.then(timely(this.#send), timely(failed));
  }

  async #hello() {
    const { realm = "", authenticate } = this.#options;
    this.#proof = authenticate?.();
    const { authid, ticket } = (await this.#proof) ?? {};
    const authmethods = ticket ? ["ticket"] : authid ? ["wampcra"] : [];
    const roles = { caller: {}, callee: {}, subscriber: {} };
    // With _whole_values a list of one isn't taken for what is in it.
    return encode([1, realm, { roles, _whole_values: true, authid, authmethods }]);
  }

  async #prove(extra) {
    const { ticket, sign = () => ticket } = await this.#proof;
    return encode([5, await sign(extra.challenge, extra), {}]);
  }

  #fail = (error) => {
    this.#error = error;
    this.close();
  };

  #join() {
    this.state = "joined";
    const report = (error) => this.state === "joined" && reportError(error);
    for (const entry of [...this.#kept]) this.#begin(entry).catch(report);
    for (const { send } of this.#calls.values()) send?.();
    this.set("joined");
  }

  #onMessage([kind, first, second, third, fourth, ...rest]) {
    if (kind === 2) this.#join();
    else if (kind === 3 && !/runtime_error|timeout/.test(second))
      this.#fail(new CallError(second, first.message ? [first.message] : []));
    else if (kind === 4) this.#say(this.#prove(second));
    else if (kind === 6) this.#send('[6,{},"wamp.close.goodbye_and_out"]');
    else if (kind === 8) this.#end(second)?.reject(new CallError(fourth, ...rest));
    else if (kind === 36) {
      for (const { kind, id, fn } of this.#kept) {
        if (kind === 32 && id === first) run(fn, ...(fourth ?? []), rest[0] ?? {});
      }
    } else if (kind === 50) {
      let value = third?.length > 1 ? third : third?.[0] ?? null;
      if (fourth) value = { args: third, kwargs: fourth };
      if (second.progress) this.#calls.get(first)?.onProgress?.(value);
      else this.#end(first)?.resolve(value);
    } else if (kind === 68) this.#say(this.#answer(first, second, fourth, ...rest), reportError);
    else if (kind !== 69) this.#end(first)?.resolve(second); // SUBSCRIBED, REGISTERED, …
  }

  #end(number) {
    const call = this.#calls.get(number);
    this.#calls.delete(number);
    call?.signal?.removeEventListener("abort", call.abort);
    return call;
  }

  async #answer(number, registration, args = [], kwargs = {}) {
    try {
      const { fn } = [...this.#kept].find(({ id }) => id === registration);
      return encode([70, number, {}, [(await fn(...args, kwargs)) ?? null]]);
    } catch (error) {
      const { uri = "wamp.error.runtime_error", args, kwargs = {}, message } = error ?? {};
      return encode([8, 68, number, {}, uri, args ?? [message ?? `${error}`], kwargs]);
    }
  }
}

export const connect = (url, options) => new Client(url, options);
