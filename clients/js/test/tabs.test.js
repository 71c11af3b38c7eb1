// The client in the tabs of a real browser, at a real server.

import assert from "node:assert/strict";
import { join } from "node:path";
import { after, afterEach, before, beforeEach, test } from "node:test";
import { isDeepStrictEqual } from "node:util";

import { build } from "esbuild";

import { Browser } from "./browser.js";
import { Front } from "./front.js";
import { eventually, sleep, System } from "./servers.js";

const PAGE = `<!doctype html><meta charset="utf-8"><title>A page</title><script type="module">
  import { connect } from "/aftercommit.js";
  // Not all browsers tell a page that they freeze it.
  addEventListener("freeze", (event) => { if (window.untold) event.stopImmediatePropagation(); }, true);
  const real = fetch;
  window.streams = 0; // that this tab has asked for
  window.fetch = (url, options) => {
    if (String(url).includes("/streams")) streams++;
    return real(url, options);
  };
  const json = { "Content-Type": "application/json" };
  window.credentials = {
    token: (token) => ({ token: () => token }),
    ticket: (token, server) => ({
      ticket: (topics) => fetch(server + "/api/stream-tickets", {
        method: "POST",
        headers: { ...json, Authorization: "Bearer " + token },
        body: JSON.stringify({ topics }),
      }),
    }),
  };
  window.listen = (topics, { credential, ...options } = {}) => {
    if (credential) Object.assign(options, credentials[credential[0]](...credential.slice(1)));
    window.seen = { numbers: {}, refetches: [], states: [], errors: [] };
    window.client = connect({ silenceMs: 3000, onState: (live) => seen.states.push(live), ...options });
    window.stops = topics.map((topic) => {
      seen.numbers[topic] = [];
      return client.subscribe(topic, {
        onEvent: ({ data }) => seen.numbers[topic].push(data.n),
        refetch: (reason) => { seen.refetches.push(topic + " " + reason); },
        onError: (error) => { seen.errors.push(error); },
      });
    });
  };
</script>`;

// An order that is loaded, and then kept by its events; beside it a topic that is not allowed.
const REACT = `
  import { StrictMode } from "react";
  import { createRoot } from "react-dom/client";
  import { connect } from "aftercommit";
  import { useTopic } from "aftercommit/react";

  const client = connect({ silenceMs: 3000 });
  window.renders = [];
  const load = async (topic) => {
    const answer = await fetch("/state?topic=" + topic);
    if (!answer.ok) throw Error("no state: " + answer.status);
    return { n: Number(await answer.text()), from: "state" };
  };
  const apply = (_, event) => ({ n: event.data.n, from: event.type });
  const Order = ({ topic }) => {
    const { data, error } = useTopic(client, topic, { load, apply });
    renders.push({ topic, n: data?.n });
    return JSON.stringify({ topic, data, error: error && String(error.status ?? error.message) });
  };
  const root = createRoot(document.body);
  window.show = (topic) => root.render(<StrictMode><Order topic={topic} /></StrictMode>);
  window.shown = () => JSON.parse(document.body.textContent || "{}");
`;

const bundle = async () => {
  const { outputFiles } = await build({
    stdin: { contents: REACT, loader: "jsx", resolveDir: join(import.meta.dirname, "..") },
    bundle: true,
    write: false,
    format: "esm",
    jsx: "automatic",
    define: { "process.env.NODE_ENV": '"development"' },
  });
  return outputFiles[0].text;
};

let system, sse, front, browser, context;
let serial = 0;
let order; // a topic of the test's own

before(async () => {
  [system, browser] = await Promise.all([System.start(), Browser.start()]);
  ({ sse } = system);
  await system.psql.run("create table state (topic text primary key, n int)");
  front = await Front.start(sse, {
    "/": PAGE,
    "/react": '<!doctype html><meta charset="utf-8"><body><script type="module" src="/page.js"></script>',
    "/page.js": await bundle(),
    "/state": async (url) =>
      (await system.psql.run(`select n from state where topic = '${url.searchParams.get("topic")}'`))[0],
    "/sandbox": '<!doctype html><iframe sandbox="allow-scripts" src="/framed"></iframe>',
    "/framed": `${PAGE}<script type="module">listen(["order:framed"])</script>`,
  });
  sse.env.AFTERCOMMIT_SSE_CORS_ORIGINS = front.url;
  await sse.start();
});
after(async () => {
  await Promise.all([front?.end(), browser?.end()]);
  await system?.end();
});
afterEach(() => context?.end());
beforeEach(async () => {
  order = `order:${++serial}`;
  front.streams.length = 0;
  front.answer = undefined;
  context = await browser.context();
  const tab = await context.open(`${front.url}/sign-in?token=${system.token(["order:*"])}`);
  await tab.close();
});

const numbers = (count) => [...Array(count).keys()];
const seenBy = (tab) => tab.run(() => window.seen);

/** Opens a tab that listens to topics, and waits until each has its place. */
const listening = async (topics = [order], options = {}) => {
  const tab = await context.open(front.url);
  await eventually("the client is loaded", () => tab.run(() => Boolean(window.listen)));
  await tab.run((topics, options) => listen(topics, options), topics, options);
  await eventually("each topic has its place", async () =>
    (await seenBy(tab)).refetches.length == topics.length);
  return tab;
};

const isLeader = (tab) => tab.run(() => window.streams > 0);
const came = (tab, topic, count) =>
  eventually(`${count} events of ${topic}`, async () => (await seenBy(tab)).numbers[topic].length >= count);

/** Each tab has taken all numbers once, and in order, and has never been told to fetch the state again. */
const assertWhole = async (tabs, count, topics = [order]) => {
  for (const tab of tabs) {
    for (const topic of topics) await came(tab, topic, count);
    const seen = await seenBy(tab);
    for (const topic of topics) assert.deepEqual(seen.numbers[topic], numbers(count));
    assert.deepEqual(seen.refetches, Object.keys(seen.numbers).map((topic) => `${topic} start`));
    assert.deepEqual(tab.errors, []);
  }
};

test("eight tabs share one stream, and each gets every event once", async () => {
  const tabs = await Promise.all(numbers(8).map(() => listening()));
  await system.append(order, 0, 20);
  await assertWhole(tabs, 20);
  assert.equal(await sse.metric("aftercommit_sse_connections"), 1);
  assert.equal(front.streams.length, 1);
});

test("tabs stay whole when the server is killed", async () => {
  const tabs = await Promise.all(numbers(2).map(() => listening()));
  const stop = system.keepAppending(order);
  await came(tabs[1], order, 10);
  await sse.end("SIGKILL");
  await eventually("both tabs are told", async () => {
    const states = await Promise.all(tabs.map(async (tab) => (await seenBy(tab)).states.at(-1)));
    return states.every((live) => live === false);
  });
  await sse.start();
  await assertWhole(tabs, await stop());
  for (const tab of tabs) assert.deepEqual((await seenBy(tab)).states, [true, false, true]);
});

for (const [how, end] of [["is closed", (tab) => tab.close()], ["crashes", (tab) => tab.crash()]]) {
  test(`a leading tab that ${how} hands over without loss or repeat`, async () => {
    const tabs = await Promise.all(numbers(3).map(() => listening()));
    const stop = system.keepAppending(order);
    for (let round = 0; round < 2; round++) {
      const before = (await seenBy(tabs.at(-1))).numbers[order].length;
      await came(tabs.at(-1), order, before + 20);
      const leaders = await Promise.all(tabs.map(isLeader));
      assert.equal(leaders.filter(Boolean).length, 1);
      const [leader] = tabs.splice(leaders.indexOf(true), 1);
      await end(leader);
      await eventually("another tab leads", async () =>
        (await Promise.all(tabs.map(isLeader))).some(Boolean));
    }
    await assertWhole(tabs, await stop());
    });
}

test("a leading tab that hangs is replaced, and both have everything once when it goes on", async () => {
  const first = await listening();
  const second = await listening();
  const stop = system.keepAppending(order);
  await came(second, order, 10);
  assert.ok(await isLeader(first));
  const hanging = first.run(() => {
    const until = Date.now() + 6000;
    while (Date.now() < until);
  });
  await eventually("the other tab leads", () => isLeader(second));
  const { length } = (await seenBy(second)).numbers[order];
  await came(second, order, length + 20);
  await hanging;
  await assertWhole([first, second], await stop());
  await eventually("one stream is left", async () => await sse.metric("aftercommit_sse_connections") == 1);
});

test("a tab that hung while its topic was dropped, and wanted by another tab, misses nothing", async () => {
  const first = await listening();
  const topic = `${order}:b`;
  const second = await listening([topic]);
  assert.ok(await isLeader(first));
  await system.append(topic, 0, 5);
  await came(second, topic, 5);
  const hanging = second.run(() => {
    const until = Date.now() + 8000;
    while (Date.now() < until);
  });
  await eventually("the topic is dropped", () =>
    front.streams.at(-1).searchParams.getAll("topic").join() == order);
  await system.append(topic, 5, 10);
  const third = await listening([topic]);
  await system.append(topic, 10, 15);
  await came(third, topic, 5);
  await hanging;
  await assertWhole([second], 15, [topic]);
  assert.deepEqual((await seenBy(third)).numbers[topic], [10, 11, 12, 13, 14]);
});

test("a frozen tab has everything once when it goes on", async () => {
  const first = await listening();
  const second = await listening();
  const stop = system.keepAppending(order);
  await came(second, order, 10);
  for (const tab of [second, first]) {
    const other = tab == first ? second : first;
    await tab.call("Page.setWebLifecycleState", { state: "frozen" });
    const { length } = (await seenBy(other)).numbers[order];
    await came(other, order, length + 20);
    await tab.call("Page.setWebLifecycleState", { state: "active" });
    await tab.show();
  }
  await assertWhole([first, second], await stop());
});

test("tabs with different topics share one stream", async () => {
  const [a, b, c] = ["a", "b", "c"].map((name) => `${order}:${name}`);
  const first = await listening([a, b]);
  const stop = system.keepAppending(a, b, c);
  await came(first, a, 5);
  const second = await context.open(front.url);
  await eventually("the client is loaded", () => second.run(() => Boolean(window.listen)));
  await second.run((topics) => listen(topics), [b, c]);
  await came(second, c, 10);
  assert.equal(await sse.metric("aftercommit_sse_connections"), 1);
  await first.close();
  await eventually("the other tab leads", () => isLeader(second));
  const count = await stop();
  await eventually("all events", async () =>
    Object.values((await seenBy(second)).numbers).every((list) => list.at(-1) == count - 1));
  const seen = await seenBy(second);
  for (const list of Object.values(seen.numbers)) {
    assert.deepEqual(list, numbers(count).slice(list[0]), "no hole and no repeat from its start on");
  }
  assert.deepEqual(seen.refetches.sort(), [`${b} start`, `${c} start`]);
  await eventually("its topics alone", () =>
    front.streams.at(-1).searchParams.getAll("topic").sort().join() == [b, c].join());
});

test("a topic that is refused to one tab does not disturb another", async () => {
  const first = await listening();
  const stop = system.keepAppending(order);
  await came(first, order, 5);
  const second = await context.open(front.url);
  await eventually("the client is loaded", () => second.run(() => Boolean(window.listen)));
  await second.run((topics) => listen(topics), ["secret:1"]);
  await eventually("a refusal", async () => (await seenBy(second)).errors.length);
  assert.deepEqual((await seenBy(second)).errors, [{ topic: "secret:1", status: 403 }]);
  await assertWhole([first], await stop());
  assert.deepEqual((await seenBy(first)).errors, []);
});

test("a hidden tab lets go, and comes back without loss", async () => {
  const first = await listening([order], { hiddenMs: 500 });
  const other = await context.open("about:blank");
  const stop = system.keepAppending(order);
  await other.show();
  await eventually("no stream", async () => await sse.metric("aftercommit_sse_connections") == 0);
  const { length } = (await seenBy(first)).numbers[order];
  await sleep(300);
  assert.equal((await seenBy(first)).numbers[order].length, length);
  await first.show();
  await came(first, order, length + 20);
  await assertWhole([first], await stop());
});

test("a hidden tab that led leaves the lead to one that is seen, and catches up later", async () => {
  const first = await listening([order], { hiddenMs: 500 });
  const second = await listening([order], { hiddenMs: 500 });
  const stop = system.keepAppending(order);
  await second.show();
  await eventually("the tab that is seen leads", () => isLeader(second));
  const { length } = (await seenBy(second)).numbers[order];
  await came(second, order, length + 20);
  await first.show();
  const count = await stop();
  await assertWhole([first], count);
  await second.show();
  await assertWhole([second], count);
});

test("a page that was left and comes back from the cache goes on without loss", async () => {
  const tab = await listening();
  const stop = system.keepAppending(order);
  await came(tab, order, 10);
  await tab.run(() => {
    window.untold = true;
    addEventListener("pageshow", ({ persisted }) => { window.persisted = persisted; });
  });
  await tab.goTo(`${front.url}/elsewhere`);
  await eventually("no stream", async () => await sse.metric("aftercommit_sse_connections") == 0);
  await tab.goBack();
  await eventually("the same page", () => tab.run(() => window.persisted === true));
  await assertWhole([tab], await stop());
});

test("tabs that share nothing have a stream each", async () => {
  const tabs = await Promise.all(numbers(2).map(() => listening([order], { share: false })));
  await system.append(order, 0, 5);
  await assertWhole(tabs, 5);
  assert.equal(await sse.metric("aftercommit_sse_connections"), 2);
});

for (const kind of ["token", "ticket"]) {
  test(`a page of another site with a ${kind} stays whole when the server is killed`, async () => {
    const credential = [kind, system.token(["order:*"]), sse.url];
    const tabs = await Promise.all(numbers(2).map(() =>
      listening([order], { url: `${sse.url}/streams`, credential })));
    const stop = system.keepAppending(order);
    await came(tabs[1], order, 10);
    await sse.end("SIGKILL");
    await sse.start();
    await assertWhole(tabs, await stop());
    assert.equal(await sse.metric("aftercommit_sse_connections"), 1);
    assert.equal(front.streams.length, 0, "nothing went by its own site");
  });
}

test("a page without a right to locks leads alone", async () => {
  front.answer = (request, response) => {
    response.setHeader("access-control-allow-origin", "null");
    response.setHeader("access-control-allow-credentials", "true");
    return false;
  };
  const tab = await context.open(`${front.url}/sandbox`);
  await eventually("its stream", () => front.streams.length);
  await sleep(1000);
  assert.ok(front.streams.length <= 3, `${front.streams.length} streams`);
  assert.deepEqual(tab.errors, []);
});

test("a hook shows the state and then the events, and loads it again where events are missing", async () => {
  const other = `${order}:other`;
  const set = async (topic, n) => {
    const update = "on conflict (topic) do update set n = excluded.n";
    await system.psql.run(`insert into state values ('${topic}', ${n}) ${update}`);
  };
  await set(order, 7);
  await set(other, 70);
  const tab = await context.open(`${front.url}/react`);
  const shows = (topic, data, error) => eventually(`${topic} shows ${JSON.stringify(data)}`, async () => {
    const shown = await tab.run(() => window.shown?.());
    return isDeepStrictEqual(shown, JSON.parse(JSON.stringify({ topic, data, error })));
  });
  await eventually("the page is loaded", () => tab.run(() => Boolean(window.show)));
  await tab.run((topic) => show(topic), order);
  await shows(order, { n: 7, from: "state" });
  await system.append(order, 8, 10);
  await shows(order, { n: 9, from: "N" });
  await tab.run((topic) => show(topic), other);
  await shows(other, { n: 70, from: "state" });
  await system.append(other, 71, 72);
  await shows(other, { n: 71, from: "N" });
  await sse.end("SIGKILL");
  await system.append(other, 72, 600);
  await set(other, 599);
  await sse.start();
  await shows(other, { n: 599, from: "state" });
  const mixed = (await tab.run(() => renders)).filter(({ topic, n }) => topic == other && n < 70);
  assert.deepEqual(mixed, [], "one topic's state is never shown as another's");
  await tab.run((topic) => show(topic), "secret:1");
  await shows("secret:1", undefined, "403");
  assert.deepEqual(tab.errors, []);
});
