// Pages that swap HTML: htmx's SSE extension and Turbo Streams take the text of an event as it comes.

import { readFileSync } from "node:fs";
import { createServer } from "node:http";
import { join } from "node:path";
import { test } from "node:test";
import { Browser } from "./browser.mjs";
import { Dev, EXAMPLES, atEnd, freePort } from "./harness.mjs";

const SCRIPTS = {
  "/htmx.js": "htmx.org/dist/htmx.min.js",
  "/sse.js": "htmx-ext-sse/dist/sse.min.js",
  "/turbo.js": "@hotwired/turbo/dist/turbo.es2017-umd.js",
};

/** Serves a page with `body`, and the scripts as their packages have them. */
async function serve(t, body) {
  const port = await freePort();
  const server = createServer((request, response) => {
    const script = SCRIPTS[request.url];
    response.setHeader("Content-Type", script ? "text/javascript" : "text/html; charset=utf-8");
    response.end(script ? readFileSync(join(EXAMPLES, "node_modules", script)) : body());
  });
  await new Promise((listening) => server.listen(port, "127.0.0.1", listening));
  atEnd(t, () => new Promise((closed) => {
    server.close(closed);
    server.closeAllConnections();
  }));
  return `http://127.0.0.1:${port}`;
}

/** An SSE server, a page in a browser, and the URL of `topic` as text. */
async function stage(t, topic, body) {
  const dev = await Dev.start(t);
  const ssePort = await freePort();
  const url = { stream: "" };
  const page = await serve(t, () => body(url.stream));
  await dev.sse(t, ssePort, { AFTERCOMMIT_SSE_CORS_ORIGINS: page });
  const server = `http://127.0.0.1:${ssePort}`;
  const token = (await dev.runs("token", "--user", "t", "--subscribe", topic)).trim();
  const headers = { Authorization: `Bearer ${token}`, "Content-Type": "application/json" };
  const asked = { method: "POST", headers, body: JSON.stringify({ topic }) };
  const { ticket } = await (await fetch(`${server}/api/stream-tickets`, asked)).json();
  url.stream = `${server}/streams/${topic}?data=text&from=earliest&ticket=${ticket}`;
  const append = (type, html) =>
    dev.query("select outbox.append($1, $2, $3::json)", [topic, type, JSON.stringify(html)]);
  const browser = await Browser.start(t);
  await browser.goes(page);
  return { append, browser };
}

test("htmx swaps in each event's HTML, also one of several lines", async (t) => {
  const { append, browser } = await stage(t, "rows", (stream) => `<!doctype html><title>t</title>
    <script src="/htmx.js"></script><script src="/sse.js"></script>
    <ul hx-ext="sse" sse-connect="${stream.replaceAll("&", "&amp;")}" sse-swap="ROW" hx-swap="beforeend"></ul>`);
  await append("ROW", "<li>one</li>");
  await append("ROW", "<li>\n  <b>two</b>\r\n  &amp; more\n</li>");
  await append("OTHER", "<li>not this one</li>");
  await append("ROW", "<li>three: \"ü\"</li>");
  await browser.waits("ul li:nth-child(3)", /^three: "ü"$/);
  await browser.waits("ul", /^one\s+two & more\s+three/);
  await browser.waits("ul li:nth-child(2) b", /^two$/);
});

test("Turbo applies each event's stream actions", async (t) => {
  const { append, browser } = await stage(t, "board", (stream) => `<!doctype html><title>t</title>
    <script src="/turbo.js"></script>
    <turbo-stream-source src="${stream.replaceAll("&", "&amp;")}"></turbo-stream-source>
    <p id="state">old</p><div id="list"></div>`);
  const action = (name, target, html) =>
    `<turbo-stream action="${name}" target="${target}">\n  <template>\n    ${html}\n  </template>\n</turbo-stream>`;
  // Turbo listens to events of the browser's default name.
  await append("message", action("update", "state", "<em>new</em>"));
  await append("message", action("append", "list", "<i>one</i>") + "\n" + action("append", "list", "<i>two</i>"));
  await browser.waits("#state em", /^new$/);
  await browser.waits("#list i:nth-child(2)", /^two$/);
});
