import { connect, type Client_, type Item, type Order } from "./session-ws.js";

const client = connect("/rpc", { realm: "shop" });
const item: Item = { name: "tea", size: "large", picture: new Uint8Array([1]) };

async function fits(): Promise<void> {
  const order: Order = await client.call("shop.order.7.add", [item, 2]);
  await client.call("shop.order.7.add", { item, count: 2 });
  const total: number | null = await client.call("shop.total", [1, 2, 3]);
  await client.call("shop.anything");
  const one: Client_ = await client.call("shop.order.7");
  const several: Client_[] = await client.call("shop.order.list", { page: 1 });
  await client.call("shop.find", { default: 1, by: one.name + several.length });
  for await (const part of client.stream("shop.prices", [["x"]])) {
    const [symbol, price]: [string, number] = part;
    console.log(symbol, price, order.items[0].name, total);
  }
  await client.subscribe("shop.stock.x", (left: number) => console.log(left));
  await client.subscribe(() => "shop.stock.y", () => undefined);
}

async function doesNot(): Promise<void> {
  // @ts-expect-error an unknown procedure
  await client.call("shop.nothing", []);
  // @ts-expect-error a wrong type
  await client.call("shop.order.7.add", ["tea"]);
  // @ts-expect-error a missing argument
  await client.call("shop.order.7.add");
  // @ts-expect-error an unknown name
  await client.call("shop.order.7.add", { item, number: 2 });
  // @ts-expect-error an argument that must be named
  await client.call("shop.order.list", [1]);
  // @ts-expect-error the result is no text
  const text: string = await client.call("shop.total", [1]);
  // @ts-expect-error an unknown topic
  await client.subscribe("shop.news", () => undefined);
  console.log(text);
}

void fits().then(doesNot);
