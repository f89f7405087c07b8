// The real clients for JavaScript: node clients.js autobahn|wsrpc URL
"use strict";

const assert = require("assert");
const [which, url] = process.argv.slice(2);

function report(seen) {
  console.log(JSON.stringify(seen));
  process.exit(0);
}

function fail(error) {
  console.error(error);
  process.exit(1);
}

function autobahn() {
  const autobahn = require("autobahn");
  const serializers = [
    new autobahn.serializer.MsgpackSerializer(),
    new autobahn.serializer.JSONSerializer(),
  ];
  const connection = new autobahn.Connection({
    url, realm: "realm", serializers, max_retries: 0,
    authmethods: ["ticket"], authid: "ali", onchallenge: () => "sesame",
  });
  connection.onopen = async (session) => {
    const seen = { progress: [], events: [] };
    try {
      seen.sum = await session.call("calc.add", [2, 3]);
      seen.named = await session.call("calc.add", [], { a: 1, b: 4 });
      seen.error = await session.call("calc.add", ["x", 3]).catch((e) => e.error);
      await session.call("calc.count", [3], {}, { receive_progress: true })
        .then(null, null, (n) => seen.progress.push(n));
      await session.register("allow", (args) => args[0] + "!");
      seen.asked = await session.call("calc.confirm", ["really"]);
      await new Promise((done, failed) => {
        session.subscribe("calc.news", (args) => { seen.events.push(args[0]); done(); })
          .then(() => session.call("calc.tell", ["hi"])).catch(failed);
      });
      const call = session.call("calc.wait", [], {}, { receive_progress: true });
      call.cancel({ mode: "kill" });
      seen.cancelled = await call.catch((e) => e.error);
      connection.onclose = () => report(seen);
      connection.close();
    } catch (error) { fail(error); }
  };
  connection.onclose = (reason, details) => fail([reason, details]);
  connection.open();
}

async function wsrpc() {
  globalThis.window = globalThis;
  globalThis.WebSocket = require("ws");
  globalThis.document = globalThis.document || {};
  globalThis.location = new URL(url.replace("ws", "http"));
  const module = require("@wsrpc/client");
  const WSRPC = module.default || module.WSRPC || module;
  const client = new WSRPC(url, 5000);
  const seen = { events: [] };
  client.addRoute("allow", function (params) { return (params.question || params[0]) + "!"; });
  client.connect();
  try {
    seen.sum = await client.call("calc.add", [2, 3]);
    seen.named = await client.call("calc.add", { a: 1, b: 4 });
    seen.error = await client.call("calc.add", { a: "x" }).catch((e) => e.type || String(e));
    seen.unknown = await client.call("nothing").catch((e) => e.type || String(e));
    seen.asked = await client.call("calc.confirm", ["really"]);
    report(seen);
  } catch (error) { fail(error); }
}

assert(which in { autobahn, wsrpc });
({ autobahn, wsrpc })[which]();
