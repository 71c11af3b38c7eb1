// The story of the orders application, played on each of its three versions in a real browser.

import assert from "node:assert/strict";
import { readFileSync } from "node:fs";
import { join } from "node:path";
import { test } from "node:test";
import { Browser } from "./browser.mjs";
import { Dev, EXAMPLES, Process, atEnd, eventually, freePort } from "./harness.mjs";

const APPS = {
  "orders-python": (port) => [join(EXAMPLES, ".venv/bin/flask"), "--app", "app", "run", "--port", `${port}`],
  "orders-node": () => ["node", "app.js"],
  "orders-rust": () => [process.env.ORDERS_RUST ?? join(EXAMPLES, "orders-rust/target/debug/orders-rust")],
};
/** Tokens are so short here that the page renews its own several times. */
const TOKEN_SECONDS = 3;
const CUSTOMER_ORDERS = 12;

/** A customer who uses the application's interface without a browser. */
class Customer {
  static async signIn(app, name) {
    const customer = Object.assign(new Customer(), { app, topic: `customer:${name}` });
    const response = await customer.post("/sign-in", { customer: name });
    customer.cookie = response.headers.getSetCookie().map((cookie) => cookie.split(";")[0]).join("; ");
    return customer;
  }

  async asks(path, options, status) {
    const headers = { "Content-Type": "application/json", ...(this.cookie && { Cookie: this.cookie }) };
    const response = await fetch(this.app + path, { headers, ...options });
    const expected = status ? response.status === status : response.ok;
    assert(expected, `${path}: ${response.status} ${response.ok ? "" : await response.text()}`);
    return response;
  }

  post(path, body = {}, status) {
    return this.asks(path, { method: "POST", body: JSON.stringify(body) }, status);
  }

  async get(path) {
    return (await this.asks(path)).json();
  }

  /** Places an order, pays it and has it shipped. */
  async buys(item) {
    const { id } = await (await this.post("/orders", { item }, 201)).json();
    await this.post(`/orders/${id}/pay`);
    await this.post(`/orders/${id}/ship`);
  }
}

/** The events that the page lists, as they came. */
const seen = (browser) => browser.runs(
  "return [...document.querySelectorAll('ol li')].map((line) => ({ id: line.id, text: line.innerText }))");

/** How often the page has asked for a token. */
const tokens = (browser) => browser.runs(
  "return performance.getEntriesByType('resource').filter(({ name }) => name.endsWith('/token')).length");

/** Waits until the page has as many events as its topic in the log, and compares them one by one. */
async function assertSeen(browser, dev, topic, before) {
  const expected = (await dev.events(topic)).slice(before).map(({ type, payload }) => `${type} ${payload}`);
  await eventually("the page has as many events as the log", async () =>
    (await seen(browser)).length >= expected.length);
  const lines = await seen(browser);
  assert.deepEqual(lines.map(({ text }) => text), expected, "every event, once and in order");
  const numbers = lines.map(({ id }) => Number(/^[0-9a-f]+-(\d+)$/.exec(id)[1]));
  assert(numbers.every((number, at) => at === 0 || number > numbers[at - 1]), `ids that grow: ${numbers}`);
}

for (const [name, command] of Object.entries(APPS)) {
  test(`${name}: a customer sees every event of their own orders once and in order`, async (t) => {
    const dev = await Dev.start(t);
    const [ssePort, appPort] = [await freePort(), await freePort()];
    const app = `http://127.0.0.1:${appPort}`;
    const settings = {
      AFTERCOMMIT_SSE_CORS_ORIGINS: app, AFTERCOMMIT_SSE_RETRY_MS: "200", AFTERCOMMIT_SSE_DRAIN_SECONDS: "0",
      AFTERCOMMIT_JWT_LEEWAY_SECONDS: "0", // a token ends when it says so
    };
    let server = await dev.sse(t, ssePort, settings);
    const env = {
      ...dev.env, SSE_URL: `http://127.0.0.1:${ssePort}`, PORT: `${appPort}`, SESSION_SECRET: dev.secret,
      TOKEN_SECONDS: `${TOKEN_SECONDS}`,
    };
    const ready = /127\.0\.0\.1:\d+/;
    const process = new Process(command(appPort), { cwd: join(EXAMPLES, name), env, ready });
    atEnd(t, () => process.end());
    await process.ready;
    const ana = await Customer.signIn(app, "ana");
    const ben = await Customer.signIn(app, "ben");

    // An order from before the page is opened: it comes by the state, and not by the stream.
    await ana.post("/orders", { item: "book" }, 201);
    const browser = await Browser.start(t);
    await browser.goes(app);
    await browser.types("[name=customer]", "ana");
    await browser.clicks("#sign-in button");
    await browser.waits("#order-1", /placed/);
    assert.deepEqual(await seen(browser), []);

    await t.test("a person orders, pays and gets a book", async () => {
      await browser.clicks("[data-item=book]");
      await browser.waits("#order-2", /book\s+placed/);
      await browser.clicks("#order-2 button");
      await browser.waits("#order-2", /paid/);
      await browser.clicks("#order-2 button");
      await browser.waits("#order-2", /shipped/);
      await assertSeen(browser, dev, ana.topic, 1);
    });

    await t.test("an order that is rolled back is never seen", async () => {
      await browser.clicks("[data-item=violin]");
      await browser.waits("#order-3", /violin\s+placed/);
      await browser.clicks("[data-item=violin]");
      await browser.waits("output", /violin is sold out/);
      await ana.post("/orders", { item: "book" }, 201);
      await assertSeen(browser, dev, ana.topic, 1);
      const lines = await seen(browser);
      assert.equal(lines.filter(({ text }) => text.includes("violin")).length, 1);
      assert.equal((await ana.get("/orders")).orders.filter(({ item }) => item === "violin").length, 1);
    });

    await t.test("two requests of one customer at once leave their events in order", async () => {
      // The first request has appended its event, and cannot commit: the test holds the row that it needs.
      const holder = await dev.session(t);
      await holder.query("begin; update stock set amount = amount where item = 'book'");
      const placing = ana.post("/orders", { item: "book" }, 201);
      await dev.waitingForLocks(1);
      // The second one must wait for it. Without the lock of the topic, its later event would come first.
      const paying = ana.post("/orders/1/pay");
      await Promise.race([dev.waitingForLocks(2), paying.then(() => browser.waits("#order-1", /paid/))]);
      await holder.query("commit");
      await Promise.all([placing, paying]);
      await assertSeen(browser, dev, ana.topic, 1);
    });

    await t.test("the SSE server is killed in the middle, and nothing is lost or repeated", async () => {
      const before = (await seen(browser)).length;
      const buying = Promise.all(Array.from({ length: CUSTOMER_ORDERS }, (_, number) =>
        (number % 4 ? ana : ben).buys("book")));
      await eventually("the page gets events of the many orders", async () =>
        (await seen(browser)).length > before + 3);
      assert.equal(await server.end("SIGKILL"), "SIGKILL");
      await buying;
      await ana.buys("book");
      server = await dev.sse(t, ssePort, settings);
      await assertSeen(browser, dev, ana.topic, 1);
    });

    await t.test("a token that expires is renewed, and the stream goes on after its last event", async () => {
      const asked = await tokens(browser);
      // Committed while no stream may be open: the page has to continue after the last event that it has.
      for (let renewed = 1; renewed <= 2; renewed++) {
        await eventually("the page asks for another token", async () => {
          await ana.buys("book");
          return (await tokens(browser)) >= asked + renewed;
        });
      }
      await assertSeen(browser, dev, ana.topic, 1);
    });

    await t.test("another customer's topic and orders are refused", async () => {
      const { token, topic } = await (await ana.post("/token")).json();
      assert.equal(topic, "customer:ana");
      const headers = { Authorization: `Bearer ${token}` };
      const status = async (path) => {
        const response = await fetch(env.SSE_URL + path, { headers });
        await response.body.cancel();
        return response.status;
      };
      assert.equal(await status("/streams/customer:ana"), 200);
      assert.equal(await status("/streams/customer:ben"), 403);
      assert.equal(await status("/streams?topic=customer:ana&topic=customer:ben"), 403);
      assert.equal(await status("/streams/customer:anabel"), 403);
      const { orders: [{ id }] } = await ben.get("/orders");
      await ana.post(`/orders/${id}/pay`, {}, 409);
      await Object.assign(new Customer(), { app }).post("/token", {}, 401);
      assert(!(await seen(browser)).some(({ text }) => JSON.parse(text.split(/ (.*)/s)[1]).id === id));
    });
  });
}

test("the three applications have the same page", () => {
  const page = (name) => readFileSync(join(EXAMPLES, name, "index.html"), "utf8");
  const [first, ...others] = Object.keys(APPS).map(page);
  others.forEach((page) => assert.equal(page, first));
});
