// Socket.IO, websockets only. A session is a room.
const http = require("http");
const { Server } = require("socket.io");

const flag = process.argv.indexOf("--redis");
const redis = flag < 0 ? 0 : +process.argv[flag + 1];
const now = () => Number(process.hrtime.bigint());
const emit = (answer) => process.stdout.write(JSON.stringify(answer) + "\n");
const sleep = (seconds) => new Promise((done) => setTimeout(done, seconds * 1000));

async function timed(act) {
  const begin = now();
  await act();
  return { begin, end: now() };
}

async function each(act, sids, pause) {
  const begins = [];
  for (const sid of sids) {
    await sleep(pause);
    begins.push(now());
    act(sid);
  }
  return { begins };
}

async function main() {
  const server = http.createServer((request, response) => response.end());
  const io = new Server(server, { transports: ["websocket"], serveClient: false, pingInterval: 30000 });
  if (redis) {
    const { createClient } = require("redis");
    const { createAdapter } = require("@socket.io/redis-adapter");
    const publisher = createClient({ url: `redis://127.0.0.1:${redis}` });
    const subscriber = publisher.duplicate();
    await Promise.all([publisher.connect(), subscriber.connect()]);
    io.adapter(createAdapter(publisher, subscriber));
  }
  io.on("connection", (socket) => socket.join(socket.handshake.query.session));
  const order = (sid) => io.in(sid).disconnectSockets(true);
  const ops = {
    count: async () => ({ open: io.engine.clientsCount }),
    collect: async () => global.gc(),
    close_session: ({ sid }) => timed(() => io.in(sid).local.disconnectSockets(true)),
    shutdown: () => timed(() => new Promise((done) => io.close(done))),
    broadcast: ({ size }) => timed(() => io.local.emit("m", "x".repeat(size))),
    close_sessions: ({ sids, pause }) => each((sid) => io.in(sid).local.disconnectSockets(true), sids, pause),
    orders: ({ sids, pause }) => each(order, sids, pause),
    flood: async ({ count, marker }) => {
      const begin = now();
      for (let i = 0; i < count; i++) {
        order(`nobody${i}`);
        if (i % 64 === 63) await new Promise(setImmediate);
      }
      order(marker);
      return { begin };
    },
  };
  let buffer = "";
  process.stdin.on("end", () => process.exit(0)); // whoever measured is gone
  process.stdin.on("data", (data) => {
    const lines = (buffer + data).split("\n");
    buffer = lines.pop();
    for (const line of lines) {
      const { op, ...args } = JSON.parse(line);
      ops[op](args).then(
        (answer) => emit(answer || {}),
        (error) => emit({ error: error.stack }),
      );
    }
  });
  server.listen({ port: 0, host: "127.0.0.1", backlog: 1024 }, () => emit({ port: server.address().port }));
}

main();
