// The client alone, in Node, at a real server.

import assert from "node:assert/strict";
import { after, before, beforeEach, describe, test } from "node:test";

import { connect } from "../aftercommit.js";
import { Front } from "./front.js";
import { eventually, sleep, System } from "./servers.js";

let system, sse, front;
let serial = 0;
let order; // a topic of the test's own

before(async () => {
  system = await System.start();
  ({ sse } = system);
  await sse.start();
  front = await Front.start(sse);
});
after(async () => {
  await front?.end();
  await system?.end();
});
beforeEach(() => {
  order = `order:${++serial}`;
  front.streams.length = 0;
  front.answer = undefined;
});

const numbers = (count) => [...Array(count).keys()];

/** Subscribes to topics and notes what comes. Ends with the test. */
const listen = (t, topics, options, handlers = {}) => {
  const seen = { states: [], refetches: [], errors: [], log: [], ids: [] };
  const client = connect({
    url: `${front.url}/streams`,
    token: () => system.token(["order:*"]),
    onState: (live) => seen.states.push(live),
    ...options,
  });
  t.after(() => client.close());
  for (const topic of topics) {
    seen[topic] = [];
    client.subscribe(topic, {
      onEvent(event) {
        seen[topic].push(event.data.n);
        seen.ids.push(event.id);
        seen.log.push(event.data.n);
        assert.equal(event.topic, topic);
        assert.equal(event.type, "N");
      },
      refetch(reason) {
        seen.refetches.push(reason);
        seen.log.push(reason);
      },
      onError: (error) => seen.errors.push(error),
      ...handlers,
    });
  }
  seen.client = client;
  seen.started = () => eventually("each topic has its place", () => seen.refetches.length == topics.length);
  return seen;
};

for (const signal of ["SIGKILL", "SIGTERM"]) {
  test(`every event comes once and in order across servers that end by ${signal}`, async (t) => {
    const seen = listen(t, [order]);
    await seen.started();
    const stop = system.keepAppending(order);
    for (let round = 1; round <= 2; round++) {
      const before = seen[order].length;
      await eventually("events", () => seen[order].length > before + 20);
      await sse.end(signal);
      await eventually("the page is told", () => seen.states.at(-1) == false);
      await sse.start();
      await eventually("the page is told", () => seen.states.at(-1) == true);
    }
    const count = await stop();
    await eventually("all events", () => seen[order].length >= count);
    assert.deepEqual(seen[order], numbers(count));
    assert.deepEqual(seen.refetches, ["start"]);
    assert.deepEqual(seen.states, [true, false, true, false, true]);
  });
}

test("topics share a stream, and each keeps its place when the server is killed", async (t) => {
  const topics = [order, `${order}:b`, `${order}:c`];
  const seen = listen(t, topics);
  await seen.started();
  const stop = system.keepAppending(...topics);
  await eventually("events", () => seen[topics[2]].length > 10);
  await sse.end("SIGKILL");
  await sse.start();
  const count = await stop();
  for (const topic of topics) {
    await eventually("all events", () => seen[topic].length >= count);
    assert.deepEqual(seen[topic], numbers(count));
  }
  assert.deepEqual(front.streams.at(-1).searchParams.getAll("topic").sort(), topics);
});

test("more topics than a stream may have are read by several streams", async (t) => {
  const topics = numbers(40).map((n) => `${order}:${n}`);
  const seen = listen(t, topics);
  await seen.started();
  for (const topic of topics) await system.append(topic, 0, 1);
  for (const topic of topics) await eventually("its event", () => seen[topic].length == 1);
});

test("a stream that ends with its token is opened again with a new one", async (t) => {
  const renewals = [];
  const token = (renew) => {
    renewals.push(renew);
    return system.token(["order:*"], 2);
  };
  const seen = listen(t, [order], { token });
  await seen.started();
  const stop = system.keepAppending(order);
  await eventually("three tokens", () => renewals.length > 3);
  const count = await stop();
  await eventually("all events", () => seen[order].length >= count);
  assert.deepEqual(seen[order], numbers(count));
  assert.deepEqual(seen.errors, []);
  assert.ok(renewals.slice(1).every(Boolean), "each but the first renews one that has expired");
  assert.deepEqual(seen.states, [true], "the page sees no interruption");
});

test("a stream whose tokens are revoked goes on with a new one, or ends for good", async (t) => {
  const old = system.token(["order:*"]);
  let renewals = 0;
  const token = (renew) => {
    renewals += Boolean(renew);
    return renew ? system.token(["order:*"]) : old;
  };
  const seen = listen(t, [order], { token });
  const out = listen(t, [order], { token: () => old, share: "out" });
  await seen.started();
  await out.started();
  await system.append(order, 0, 5);
  await eventually("events", () => seen[order].length == 5 && out[order].length == 5);
  await system.revoke(order);
  await eventually("a refusal", () => out.errors.length == 1);
  assert.deepEqual(out.errors, [{ topic: order, status: 401 }]);
  await eventually("a new token", () => renewals);
  await system.append(order, 5, 10);
  await eventually("events", () => seen[order].length == 10);
  assert.deepEqual(seen[order], numbers(10));
  assert.deepEqual([seen.errors, out[order].length, renewals], [[], 5, 1]);
});

test("a ticket is fetched for each stream, for exactly its topics", async (t) => {
  const asked = [];
  const ticket = (topics) => {
    asked.push(topics);
    return fetch(`${sse.url}/api/stream-tickets`, {
      method: "POST",
      headers: { "Content-Type": "application/json", Authorization: `Bearer ${system.token(["order:*"])}` },
      body: JSON.stringify({ topics }),
    });
  };
  const seen = listen(t, [order], { token: undefined, ticket });
  await seen.started();
  await system.append(order, 0, 5);
  await eventually("events", () => seen[order].length == 5);
  await sse.end("SIGKILL");
  await sse.start();
  await system.append(order, 5, 10);
  await eventually("events", () => seen[order].length == 10);
  assert.deepEqual(seen[order], numbers(10));
  assert.ok(asked.length >= 2);
  assert.ok(asked.every((topics) => topics.length == 1 && topics[0] == order));
  assert.ok(front.streams.every((url) => url.searchParams.get("ticket")));
});

test("a credential that is refused is renewed once, and then the refusal is final", async (t) => {
  const renewals = [];
  const seen = listen(t, [order, `${order}:b`], {
    token(renew) {
      renewals.push(Boolean(renew));
      return "no token";
    },
  });
  await eventually("refusals", () => seen.errors.length == 2);
  assert.deepEqual(seen.errors, [order, `${order}:b`].map((topic) => ({ topic, status: 401 })));
  assert.deepEqual(renewals, [false, true]);
  await sleep(500);
  assert.equal(front.streams.length, 2, "it does not ask again");
});

test("a topic that is not allowed is refused alone, and the others go on without a hole", async (t) => {
  const topics = [order, `${order}:b`, `${order}:c`, "secret:1"];
  const seen = listen(t, topics.slice(0, 3));
  await seen.started();
  const stop = system.keepAppending(...topics.slice(0, 3));
  const errors = [];
  seen.client.subscribe("secret:1", { onError: (error) => errors.push(error) });
  await eventually("a refusal", () => errors.length);
  const { length } = seen[order];
  await eventually("events", () => seen[order].length > length + 10);
  const count = await stop();
  for (const topic of topics.slice(0, 3)) {
    await eventually("all events", () => seen[topic].length >= count);
    assert.deepEqual(seen[topic], numbers(count));
  }
  assert.deepEqual(errors, [{ topic: "secret:1", status: 403 }]);
  assert.deepEqual(seen.errors, []);
  const asked = front.streams.length;
  await sleep(500);
  assert.equal(front.streams.length, asked, "it does not ask again");
  assert.deepEqual(front.streams.at(-1).searchParams.getAll("topic").sort(), topics.slice(0, 3));
});

for (const status of [403, 404, 410]) {
  test(`${status} is final`, async (t) => {
    front.answer = (_, response) => response.writeHead(status).end();
    const seen = listen(t, [order]);
    await eventually("a refusal", () => seen.errors.length);
    assert.deepEqual(seen.errors, [{ topic: order, status }]);
    await sleep(500);
    assert.equal(front.streams.length, 1);
  });
}

test("a topic that was refused is asked for again by a new subscription", async (t) => {
  let allowed = ["news"];
  const seen = listen(t, [order], { token: () => system.token(allowed) });
  await eventually("a refusal", () => seen.errors.length);
  allowed = ["order:*"];
  const events = [];
  seen.client.subscribe(order, {
    onEvent: ({ data }) => events.push(data.n),
    refetch: (reason) => events.push(reason),
  });
  await eventually("a start", () => events.length);
  await system.append(order, 0, 3);
  await eventually("events", () => events.length == 4);
  assert.deepEqual(events, ["start", 0, 1, 2]);
});

test("503 with Retry-After is asked again after that time, and not before", async (t) => {
  const asked = [];
  front.answer = (_, response) => {
    asked.push(Date.now());
    response.writeHead(503, { "retry-after": "3" }).end();
    return true;
  };
  // A wait is no silence.
  const seen = listen(t, [order], { silenceMs: 300 });
  await eventually("two requests", () => asked.length == 2);
  seen.client.close();
  const waited = asked[1] - asked[0];
  assert.ok(waited >= 2990 && waited < 6000, `${waited} ms`);
});

test("a server that fails is asked less and less often, at random times", async (t) => {
  const asked = [];
  front.answer = (_, response) => {
    asked.push(Date.now());
    response.writeHead(500).end();
    return true;
  };
  listen(t, [order]);
  await eventually("three requests", () => asked.length == 3);
  const [first, second] = [asked[1] - asked[0], asked[2] - asked[1]];
  assert.ok(first >= 990 && first < 1900, `${first} ms`);
  assert.ok(second >= 1990 && second < 3500, `${second} ms`);
});

test("where the history no longer reaches back, the state is fetched before later events", async (t) => {
  let release;
  const seen = listen(t, [order], {}, {
    async refetch(reason) {
      if (reason != "start") await new Promise((resolve) => { release = resolve; });
      seen.refetches.push(reason);
      seen.log.push(reason);
    },
  });
  await seen.started();
  await system.append(order, 0, 2);
  await eventually("events", () => seen[order].length == 2);
  await sse.end("SIGKILL");
  await system.append(order, 2, 600);
  await sse.start();
  await eventually("a reset", () => release);
  await system.append(order, 600, 603);
  await sleep(300);
  assert.deepEqual(seen.log, ["start", 0, 1], "events wait for the state");
  release();
  await eventually("events", () => seen.log.includes(602));
  assert.deepEqual(seen.log, ["start", 0, 1, "history_gone", 600, 601, 602]);
});

test("a handler that throws does not stop the events", async (t) => {
  const reported = t.mock.method(console, "error", () => {});
  const events = [];
  const seen = listen(t, [order], {}, {
    onEvent({ data }) {
      events.push(data.n);
      throw new Error("the page's own");
    },
  });
  await seen.started();
  await system.append(order, 0, 3);
  await eventually("events", () => events.length == 3);
  assert.equal(reported.mock.callCount(), 3);
});

test("a server that stops answering is noticed, and no event is lost", async (t) => {
  const seen = listen(t, [order], { silenceMs: 3000 });
  await seen.started();
  await system.append(order, 0, 3);
  await eventually("events", () => seen[order].length == 3);
  const streams = front.streams.length;
  t.after(() => sse.process.kill("SIGCONT"));
  sse.process.kill("SIGSTOP");
  await system.append(order, 3, 6);
  await eventually("a new attempt", () => front.streams.length > streams);
  sse.process.kill("SIGCONT");
  await eventually("events", () => seen[order].length == 6);
  assert.deepEqual(seen[order], numbers(6));
});

test("subscriptions that come and go quickly share a few streams", async (t) => {
  const began = Date.now();
  let opened = 0;
  const token = () => {
    opened++;
    return system.token(["order:*"]);
  };
  const seen = listen(t, [order], { token });
  for (let n = 0; n < 30; n++) {
    const stop = seen.client.subscribe(`${order}:${n}`, {});
    await sleep(1);
    stop();
  }
  // Changes within 50 ms are one.
  const most = (Date.now() - began) / 50 + 3;
  await seen.started();
  await system.append(order, 0, 3);
  await eventually("events", () => seen[order].length == 3);
  assert.ok(opened <= most, `${opened} streams, not ${most}`);
});

test("a second subscription of a topic starts at once, without another stream", async (t) => {
  const seen = listen(t, [order]);
  await seen.started();
  const { length } = front.streams;
  const log = [];
  const stop = seen.client.subscribe(order, {
    onEvent: ({ data }) => log.push(data.n),
    refetch: (reason) => log.push(reason),
  });
  await eventually("its start", () => log.length);
  await system.append(order, 0, 2);
  await eventually("events", () => log.length == 3);
  stop();
  await system.append(order, 2, 4);
  await eventually("events", () => seen[order].length == 4);
  assert.deepEqual(log, ["start", 0, 1]);
  assert.equal(front.streams.length, length);
});

test("a topic that nobody wants leaves the stream, and a client without topics the server", async (t) => {
  const seen = listen(t, [], { silenceMs: 3000 });
  const stops = ["a", "b"].map((name) => seen.client.subscribe(`${order}:${name}`, {}));
  const topics = () => front.streams.at(-1)?.searchParams.getAll("topic").length;
  await eventually("a stream of both", () => topics() == 2);
  await eventually("one stream", async () => await sse.metric("aftercommit_sse_connections") == 1);
  stops[0]();
  await eventually("a stream of one topic", () => topics() == 1);
  assert.equal(front.streams.at(-1).searchParams.get("topic"), `${order}:b`);
  stops[1]();
  await eventually("no stream", async () => await sse.metric("aftercommit_sse_connections") == 0);
});

// Two leaders at once, one of which hung: its messages are late, and no real browser can be made to time them.
test("a reset of a leader that hung brings the state again, and no event twice", async (t) => {
  const share = `a test of ${order}`;
  const messages = new BroadcastChannel(`aftercommit 1 ${share}`);
  globalThis.navigator = { locks: { request: () => new Promise(() => {}) } };
  t.after(() => {
    messages.close();
    delete globalThis.navigator;
  });
  let tag;
  messages.onmessage = ({ data }) => data.topics?.forEach((_, key) => { tag = key; });
  const seen = listen(t, [order], { share });
  await eventually("the tab's topics", () => tag);
  const event = (n) => messages.postMessage(
    { tag, from: `1-${n - 1}`, id: `1-${n}`, type: "N", data: JSON.stringify({ n }) },
  );
  const reset = (n, reason) => messages.postMessage(
    { tag, from: `1-${n}`, id: `1-${n}`, type: "reset", data: JSON.stringify({ reason }) },
  );
  [1, 2, 3, 4].forEach(event);
  reset(2, "late");
  [3, 4, 5].forEach(event);
  reset(7, "history_gone");
  [7, 8].forEach(event);
  // Another log has begun.
  reset(1, "unknown_id");
  [2, 3].forEach(event);
  await eventually("the last event", () => seen.log.at(-1) == 3);
  assert.deepEqual(seen.log, ["start", 1, 2, 3, 4, "late", 5, "history_gone", 8, "unknown_id", 2, 3]);
});

describe("refused by a full server", () => {
  before(async () => {
    await sse.end("SIGTERM");
    await sse.start({ AFTERCOMMIT_SSE_MAX_CONNECTIONS: "1" });
  });
  after(async () => {
    await sse.end("SIGTERM");
    await sse.start();
  });

  test("a client comes back by itself and gets in", async (t) => {
    const first = listen(t, [order]);
    await first.started();
    const seen = listen(t, [order]);
    await eventually("a refusal", async () => front.streams.length >= 3);
    first.client.close();
    await seen.started();
    await system.append(order, 0, 3);
    await eventually("events", () => seen[order].length == 3);
    assert.deepEqual(seen.errors, []);
  });
});
