// The types of session-ws.js. For those of what an application serves, in place of the last lines:
// python -m aiohttp_session_ws.rpc typescript module:application > session-ws.d.ts

export declare const SESSION_ENDED: 4401;
export declare const RECONNECT: 4403;
export declare const TOO_MANY_CONNECTIONS: 4429;
/** Milliseconds after a close, or null: not by itself. */
export declare function reconnectAfter(code: number, failures: number): number | null;

export type SocketState = "connecting" | "open" | "waiting" | "closed";

/** What the event "state" has in `detail`; after a close, with its code and the ms until the next
 * connection, null if there is none. */
export interface StateDetail<S> {
  state: S;
  code?: number;
  reason?: string;
  wait?: number | null;
}

/** A websocket that reconnects. Its URL may be a function, asked each time. */
export declare class SessionSocket extends EventTarget {
  constructor(url: string | URL | (() => string | URL), protocols?: string | string[]);
  readonly state: SocketState;
  /** Connect at once, with a new back-off. */
  connect(): void;
  send(data: string | ArrayBufferLike | Blob | ArrayBufferView): void;
  /** Close, and stay away until connect(). */
  close(code?: number, reason?: string): void;
}

export declare class CallError extends Error {
  constructor(uri: string, args?: unknown[], kwargs?: Record<string, unknown>);
  uri: string;
  args: unknown[];
  kwargs: Record<string, unknown>;
}

export interface CallOptions<Progress = unknown> {
  signal?: AbortSignal;
  /** In milliseconds. */
  timeout?: number;
  onProgress?: (part: Progress) => void;
}

export interface Procedure {
  args: unknown[];
  named: object;
  result: unknown;
  progress: unknown;
}

type Args<N extends Name> = Called<N>["args"] | Called<N>["named"];

/** A ticket, or what signs the challenge of wampcra: HMAC-SHA256, in Base64. */
export interface Proof {
  authid?: string;
  ticket?: string;
  sign?: (challenge: string, extra: Challenge) => string | Promise<string>;
}

export interface Challenge {
  challenge: string;
  salt?: string;
  iterations?: number;
  keylen?: number;
}

export interface ClientOptions {
  realm?: string;
  /** Asked before each HELLO. */
  authenticate?: () => Proof | Promise<Proof>;
}

/** Calls, both ways; its state is "joined" once they are heard. What it is asked before that waits. */
export declare class Client extends EventTarget {
  constructor(url: string | URL | (() => string | URL), options?: ClientOptions);
  readonly state: SocketState | "joined";
  connect(): void;
  close(): void;
  /** `args` is a list, or an object of names. */
  call<N extends Name>(
    name: N,
    ...rest: [] extends Called<N>["args"]
      ? [args?: Args<N>, options?: CallOptions<Called<N>["progress"]>]
      : [args: Args<N>, options?: CallOptions<Called<N>["progress"]>]
  ): Promise<Called<N>["result"]>;
  /** Leaving a `for await` loop cancels. */
  stream<N extends Name>(
    name: N,
    args?: Args<N>,
    options?: Omit<CallOptions, "onProgress">,
  ): AsyncGenerator<Called<N>["progress"], Called<N>["result"], void>;
  /** fn(...args, kwargs) has each event until the returned function is called. A topic may be a
   * function, asked at each connection. */
  subscribe(
    topic: Topic | (() => Topic),
    fn: (...args: any[]) => void,
  ): Promise<() => Promise<void>>;
  /** fn(...args, kwargs) answers the server until the returned function is called. It isn't told
   * that the server waits no longer: a late answer is dropped. */
  register(name: string, fn: (...args: any[]) => unknown): Promise<() => Promise<void>>;
}

export declare function connect(
  url: string | URL | (() => string | URL),
  options?: ClientOptions,
): Client;

// What is served

export interface Procedures {
  /**
   * Count down; each part is the seconds that are left.
   */
  "demo.countdown": {
    args: [seconds: number];
    named: { seconds: number };
    result: null;
    progress: number;
  };
  /**
   * Pay, if this tab allows it.
   */
  "demo.pay": {
    args: [amount: number];
    named: { amount: number };
    result: string;
    progress: never;
  };
  /**
   * Write on the board; the result is how many tabs have it.
   */
  "demo.write": {
    args: [text: string];
    named: { text: string };
    result: number;
    progress: never;
  };
}

export type Name = Exclude<keyof Procedures, never>;

export type Called<N extends Name> =
  N extends keyof Procedures ? Procedures[N] :
  never;

export type Topic = "demo.board";
