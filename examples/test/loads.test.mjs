// A page that loads its state and then opens its stream, again and again, while the state changes: with a
// resume token it misses nothing and gets nothing twice. Without one it does, which shows that the test can
// tell. LOADS=1000 makes more of them.

import assert from "node:assert/strict";
import { createServer } from "node:http";
import { test } from "node:test";
import { Browser } from "./browser.mjs";
import { Dev, atEnd, eventually, freePort } from "./harness.mjs";

const LOADS = Number(process.env.LOADS ?? 200);
/** Each of these counts up its own topic's number, one commit after the other. */
const WRITERS = 8;
const COMMITS_A_SECOND = 200;

// The number of a topic, and which events it holds: one statement reads both.
const STATE = `select n::int, outbox.resume_token() as token from counter where topic = $1`;

/** Counts up `topic` until `stop.now`; its events carry the number. */
async function write(dev, topic, stop) {
  const pause = (1000 * WRITERS) / COMMITS_A_SECOND;
  let due = performance.now();
  for (; !stop.now; stop.commits++) {
    await dev.query(`with counted as (update counter set n = n + 1 where topic = $1 returning n)
      select outbox.append($1, 'N', n::text::json) from counted`, [topic]);
    due += pause;
    await new Promise((done) => setTimeout(done, Math.max(0, due - performance.now())));
  }
}

/** Serves the state of each topic, and an empty page. */
async function serve(t, dev) {
  const port = await freePort();
  const server = createServer(async (request, response) => {
    const topic = new URL(request.url, "http://x").searchParams.get("topic");
    if (!topic) return response.setHeader("Content-Type", "text/html").end("<!doctype html><title>t</title>");
    const [state] = await dev.query(STATE, [topic]);
    response.setHeader("Content-Type", "application/json").end(JSON.stringify(state));
  });
  await new Promise((listening) => server.listen(port, "127.0.0.1", listening));
  atEnd(t, () => new Promise((closed) => {
    server.close(closed);
    server.closeAllConnections();
  }));
  return `http://127.0.0.1:${port}`;
}

/** In the page: loads so many times, and counts what does not fit behind the state. */
const LOADING = `
  const [streams, topics, loads, isResumed] = arguments;
  window.result = undefined;
  const load = async (topic) => {
    const { n, token } = await (await fetch("/state?topic=" + topic)).json();
    const source = new EventSource(streams[topic] + (isResumed ? "&resume=" + token : ""));
    const first = await new Promise((told) => {
      source.addEventListener("N", ({ data }) => told(Number(data)));
      source.addEventListener("reset", () => told(NaN));
    });
    source.close();
    return first - (n + 1);
  };
  (async () => {
    const counts = { loads, gaps: 0, doubles: 0, resets: 0 };
    for (let at = 0; at < loads; at++) {
      const off = await load(topics[at % topics.length]);
      if (Number.isNaN(off)) counts.resets++;
      else if (off > 0) counts.gaps++;
      else if (off < 0) counts.doubles++;
    }
    window.result = counts;
  })().catch((error) => { window.result = { error: String(error) }; });
`;

test("a page that loads under many commits misses nothing and gets nothing twice", async (t) => {
  const dev = await Dev.start(t);
  const ssePort = await freePort();
  const topics = Array.from({ length: WRITERS }, (_, at) => `count:${at}`);
  await dev.query("create table counter (topic text primary key, n bigint not null)");
  await dev.query("insert into counter select unnest($1::text[]), 0", [topics]);
  const page = await serve(t, dev);
  await dev.sse(t, ssePort, { AFTERCOMMIT_SSE_CORS_ORIGINS: page });
  const server = `http://127.0.0.1:${ssePort}`;
  const token = (await dev.runs("token", "--user", "t", "--subscribe", "count:*")).trim();
  const headers = { Authorization: `Bearer ${token}`, "Content-Type": "application/json" };
  const ticketFor = async (topic) => {
    const asked = { method: "POST", headers, body: JSON.stringify({ topic }) };
    return (await (await fetch(`${server}/api/stream-tickets`, asked)).json()).ticket;
  };
  const streams = {};
  for (const topic of topics) streams[topic] = `${server}/streams/${topic}?ticket=${await ticketFor(topic)}`;
  const stop = { now: false, commits: 0 };
  const begun = performance.now();
  const writing = topics.map((topic) => write(dev, topic, stop));
  const browser = await Browser.start(t);
  await browser.goes(page);
  const loads = async (count, isResumed) => {
    await browser.runs(LOADING, streams, topics, count, isResumed);
    return eventually("the loads are done", () => browser.runs("return window.result"), 280_000);
  };
  const resumed = await loads(LOADS, true);
  const without = await loads(LOADS, false);
  const rate = Math.round(stop.commits / ((performance.now() - begun) / 1000));
  stop.now = true;
  await Promise.all(writing);
  t.diagnostic(`${rate} commits/s; with a token ${JSON.stringify(resumed)}; without ${JSON.stringify(without)}`);
  assert.deepEqual(resumed, { loads: LOADS, gaps: 0, doubles: 0, resets: 0 });
  assert(without.gaps + without.doubles > 0, `without a token: ${JSON.stringify(without)}`);
});
