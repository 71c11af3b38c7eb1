// The page: an upload, five clients, the switches, and the proof.

import { at, say } from "./dom.js";
import { Client } from "./client.js";
import { Own } from "./own.js";
import { compare, judge, sum } from "./proof.js";
import { call, hasKey, post } from "./server.js";
import { Upload } from "./upload.js";

const LOOK_MS = 300;
// With everything running, an event arrives within milliseconds, and a client is back within seconds.
const CALM_MS = 12000;
const TOLD_MS = 6000;
// Shorter than the time for which a ticket opens streams.
const TICKET_MS = 60000;

const page = { committed: [], relay: true, redis: true, moved: 0, clients: [], upload: null };

begin();

async function begin() {
  prepareTabs();
  if (!hasKey) return lose("This address has no key: open the one that `aftercommit dev` has printed.");
  let info;
  try {
    info = await call("/live/page");
  } catch (error) {
    if (error.status === 0) return setTimeout(begin, 1000);
    return lose(error.message);
  }
  at("console").href = info.console;
  page.clients = info.clients.map((origin, n) => new Client(n + 1, origin, {
    changed: () => moved(),
    cut: (run) => flip(page.clients[n].button, `/live/clients/${n}`, run),
  }));
  at("clients").replaceChildren(...page.clients.map(({ element }) => element));
  const began = (session) => listen(info, session);
  page.upload = new Upload(info.token, { began, changed: moved, failed: tell });
  prepareSwitch("relay", () => page.relay);
  prepareSwitch("redis", () => page.redis);
  at("switch-all").addEventListener("click", () => flipAll());
  new Own(info);
  look();
}

/** Opens the five streams of a session. */
async function listen(info, session) {
  page.committed = [];
  const ticket = tickets(info, `upload-session:${session}`);
  await Promise.all(page.clients.map((client) => client.listen(session, ticket)));
  moved();
}

/** A function that returns a ticket for a topic. One serves all clients for a while. */
function tickets({ own, token }, topic) {
  let asked = null;
  let since = 0;
  return () => {
    if (asked === null || performance.now() - since > TICKET_MS) {
      since = performance.now();
      asked = post(`${own}/api/stream-tickets`, { topic }, token).then(({ ticket }) => ticket);
      asked.catch(() => (asked = null));
    }
    return asked;
  };
}

/** Looks at what runs and what is committed, again and again. */
async function look() {
  const session = page.upload.session;
  try {
    const state = await call("/live/state");
    showState(state);
    if (session) {
      const rows = await call(`/live/committed?topic=upload-session:${session}`);
      if (session === page.upload.session) {
        if (rows.length !== page.committed.length) page.moved = performance.now();
        page.committed = rows;
      }
    }
    link("live", "Live");
    at("lost").hidden = true;
  } catch (error) {
    link("lost", "Connection lost");
    if (error.status === 0 || error.status === 401) lose(`${error.message}. Trying again …`);
  }
  show();
  setTimeout(look, LOOK_MS);
}

/** Something has arrived or was sent: the counts change, and what is late is not late yet. */
function moved() {
  page.moved = performance.now();
  page.drawing ??= requestAnimationFrame(() => {
    page.drawing = null;
    show();
  });
}

function show() {
  if (!page.upload?.session) return;
  const { clients, committed, upload } = page;
  const counts = clients.map(({ received }) => compare(committed, received));
  clients.forEach((client, n) => client.showCounts(counts[n]));
  const cut = clients.filter(({ isConnected }) => !isConnected).map(({ number }) => number);
  const isCalm = page.relay && page.redis && !cut.length && !upload.isRunning &&
    performance.now() - page.moved > CALM_MS;
  const { relay, redis } = page;
  const state = { photos: upload.total, sent: upload.sent, relay, redis, cut, isCalm };
  const { proof, text } = judge(counts, committed.length, state);
  at("proof").dataset.proof = proof;
  say(at("verdict-text"), text);
  // The text changes with every event. It is read aloud only when the matter changes.
  const matter = [proof, page.relay, page.redis, cut].join();
  if (page.spoken !== matter) say(at("spoken"), text);
  page.spoken = matter;
  say(at("n-committed"), String(committed.length));
  say(at("n-received"), `${sum(counts, "received")} of ${clients.length * committed.length}`);
  say(at("n-missing"), String(sum(counts, "missing") + (isCalm ? sum(counts, "behind") : 0)));
  say(at("n-twice"), String(sum(counts, "twice")));
  say(at("way-committed"), String(committed.length));
}

function showState({ relay, redis, clients }) {
  if (relay !== page.relay || redis !== page.redis) page.moved = performance.now();
  Object.assign(page, { relay, redis });
  clients.forEach((isConnected, n) => {
    if (page.clients[n].isConnected !== isConnected) page.moved = performance.now();
    page.clients[n].showConnected(isConnected);
  });
  const relayDoes = redis ? "delivers" : "waits for Redis";
  showPart("relay", relay, relay ? relayDoes : "killed", relay ? "Kill" : "Restart", "the relay");
  showPart("redis", redis, redis ? "runs" : "stopped", redis ? "Stop" : "Start", "Redis");
  const connected = clients.filter(Boolean).length;
  const all = connected > 0;
  const lines = `${connected} of ${clients.length} lines`;
  showPart("sse", all, lines, all ? "Cut all" : "Restore all", "", at("switch-all"));
}

function showPart(part, runs, word, action, name, button = at(`switch-${part}`)) {
  document.querySelector(`[data-part=${part}]`).dataset.runs = runs;
  say(at(`way-${part}`), word);
  say(button, action);
  if (name) button.setAttribute("aria-label", `${action} ${name}`);
}

function prepareSwitch(part, runs) {
  const button = at(`switch-${part}`);
  button.addEventListener("click", () => flip(button, `/live/parts/${part}`, !runs()));
}

async function flipAll() {
  const run = !page.clients.some(({ isConnected }) => isConnected);
  await flip(at("switch-all"), page.clients.map((_, n) => `/live/clients/${n}`), run);
}

/** Sends a switch. The button keeps the focus meanwhile, and takes no second press. */
async function flip(button, paths, run) {
  if (button.getAttribute("aria-busy") === "true") return;
  button.setAttribute("aria-busy", "true");
  try {
    await Promise.all([paths].flat().map((path) => post(path, { run })));
    showState(await call("/live/state"));
    show();
  } catch (error) {
    tell(error.message);
  } finally {
    button.removeAttribute("aria-busy");
  }
}

function link(state, word) {
  at("link").dataset.state = state;
  say(at("link"), word);
}

function lose(text) {
  link("lost", "Not connected");
  at("lost").hidden = false;
  say(at("lost"), text);
}

function tell(text) {
  at("told").hidden = false;
  say(at("told"), text);
  clearTimeout(page.telling);
  page.telling = setTimeout(() => (at("told").hidden = true), TOLD_MS);
}

/** Two tabs, as keyboards and screen readers expect them. */
function prepareTabs() {
  const tabs = [...document.querySelectorAll("[role=tab]")];
  const choose = (chosen) => {
    for (const tab of tabs) {
      const isChosen = tab === chosen;
      tab.setAttribute("aria-selected", String(isChosen));
      tab.tabIndex = isChosen ? 0 : -1;
      at(tab.getAttribute("aria-controls")).hidden = !isChosen;
    }
  };
  tabs.forEach((tab, n) => {
    tab.onclick = () => choose(tab);
    tab.onkeydown = ({ key }) => {
      if (key !== "ArrowRight" && key !== "ArrowLeft") return;
      const next = tabs[(n + (key === "ArrowRight" ? 1 : tabs.length - 1)) % tabs.length];
      choose(next);
      next.focus();
    };
  });
}
