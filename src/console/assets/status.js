// The verdict, the relays, Redis and the SSE server.

import { age, at, fill, made, say } from "./dom.js";
import { ask, post } from "./ask.js";
import { count, counted, duration, grow, rate } from "./text.js";

// The verdicts in words, each with a sign that differs by shape as well as by colour.
const CHECK = "M5 12.5l4.5 4.5L19 7.5";
const CROSS = "M6 6l12 12M18 6L6 18";
const BANG = "M12 4v10M12 19v.5";
const BARS = "M8 5v14M16 5v14";
const BOX = "M5 5h14v14H5zM5 12h14";
const DOTS = "M5 12h.01M12 12h.01M19 12h.01";
const VERDICTS = {
  delivering: ["is delivering", CHECK],
  parked: ["has parked topics", BOX],
  late: ["is late", BANG],
  failing: ["is failing", BANG],
  paused: ["is paused", BARS],
  noLeader: ["has no leader", CROSS],
  blind: ["cannot see the log", CROSS],
  unknown: ["…", DOTS],
};

/** Shows the feed's `status` event. */
export function showStatus(status, own) {
  const said = new Said();
  showVerdict(status, own, said);
  if (!status.error) {
    at("relays").querySelector(".empty")?.remove();
    for (const relay of status.relays) showRelay(relay, relay.relay === own, said);
    if (!status.relays.length) fill(at("relays"), made("p", { class: "empty" }, "No relay has run on this log yet."));
  }
  showNeighbours(status.neighbours, said);
  showStreams(status.streams);
  grow();
}

// The shortest sentence that is worth a reference instead of a repetition.
const QUOTED_MIN = 24;

/** The errors that the page says already. When Redis is away, each part of the system reports it. */
class Said {
  #places = [];

  /** Adds a sentence, and the place where it stands. */
  add(place, sentence) {
    if (sentence && sentence.length >= QUOTED_MIN) this.#places.push([place, sentence]);
  }

  /** The text with a sentence that the page says already, or that is a part of one, as a reference to it. */
  once(text) {
    for (const [place, sentence] of this.#places) {
      if (text.length >= QUOTED_MIN && sentence.includes(text)) return `see ${place}`;
      if (text.includes(sentence)) return text.replaceAll(sentence, `see ${place}`);
    }
    return text;
  }
}

function showVerdict(status, own, said) {
  const relay = status.relays.find((relay) => relay.relay === own);
  const verdict = status.error ? "blind" : (relay?.verdict ?? "unknown");
  const [word, sign] = VERDICTS[verdict];
  at("verdict").dataset.verdict = verdict;
  at("verdict-sign").setAttribute("d", sign);
  say(at("verdict-relay"), own);
  say(at("verdict-word"), word);
  say(at("verdict-sentence"), status.error ?? relay?.sentence ?? "It has not written its first position yet.");
  said.add("above", status.error);
  if (verdict === "failing") for (const one of relay.processes) if (relay.sentence.includes(one.error ?? "\0")) said.add("above", one.error);
  document.title = `${own} ${word} · aftercommit`;
  const button = at("verdict-button");
  button.hidden = !relay;
  if (relay) steer(button, relay);
}

/** Makes a button pause or resume a relay. */
function steer(button, relay) {
  const wants = relay.paused ? "resume" : "pause";
  if (button.dataset.wants === wants) return;
  button.dataset.wants = wants;
  say(button, relay.paused ? "Resume" : "Pause");
  button.className = relay.paused ? "primary" : "";
  button.setAttribute("aria-label", `${relay.paused ? "Resume" : "Pause"} relay ${relay.relay}`);
  button.onclick = () =>
    ask({
      title: `${relay.paused ? "Resume" : "Pause"} relay ${relay.relay}?`,
      text: relay.paused
        ? "It delivers what has waited, in order, and then goes on."
        : "Nothing that is committed from now on is delivered until somebody resumes it, also after a restart; a backlog stops within a second. Events wait in the log; none is lost.",
      yes: relay.paused ? "Resume" : "Pause",
      does: async (reason, signal) => (await post(wants, { relay: relay.relay, reason }, { signal })).says,
    });
}

const cards = new Map();

function showRelay(relay, isOwn, said) {
  if (!cards.has(relay.relay)) {
    const button = made("button", {});
    const word = made("span", { class: "word" });
    const rows = made("dl", {});
    const title = made("h3", {}, relay.relay, " ", word, isOwn ? null : button);
    const card = made("article", { class: "relay" }, title, rows);
    cards.set(relay.relay, { card, word, rows, button, known: new Map() });
    at("relays").append(card);
  }
  const { card, word, rows, button, known } = cards.get(relay.relay);
  card.dataset.verdict = relay.verdict;
  say(word, VERDICTS[relay.verdict][0]);
  if (!isOwn) steer(button, relay);
  const row = (name, ...parts) => setRow(rows, known, name, parts);
  const leading = relay.leader && newestOf(relay, "leading")[0];
  const standby = newestOf(relay, "standby");
  row("Leader", !relay.leader ? "none" : (leading?.process ?? relay.leader));
  row("Standing by", standby.length ? standby.map((one) => one.process).join(", ") : "none");
  row("Position", relay.lastId, ", moved ", age(relay.movedAt));
  row("Waiting", waiting(relay));
  row("Rate", leading ? `${rate(leading.rate)} events/s` : "–");
  if (relay.paused) row("Paused", age(relay.paused.since), ` by ${relay.paused.who}: ${relay.paused.reason}`);
  else drop(known, "Paused");
  row("Parked", parked(relay));
  row("Rotation", leading?.rotationBlocked ? `blocked: ${leading.rotationBlocked}` : "not blocked");
  const failing = relay.processes.filter((one) => one.error);
  if (failing.length) row("Error", errors(failing, said));
  else row("Error", ...lastError(relay));
}

/** The errors of processes, each said once with all processes that have it. */
function errors(failing, said) {
  const processes = new Map();
  for (const { process, error } of failing) processes.set(error, [...(processes.get(error) ?? []), process]);
  const texts = [...processes].map(([error, names]) => `${names.join(", ")}: ${said.once(error)}`);
  for (const error of processes.keys()) said.add("the relay’s error", error);
  return texts.join("; ");
}

/** The processes of a relay in a role, by their newest heartbeat. */
function newestOf(relay, role) {
  return relay.processes.filter((one) => one.role === role).sort((a, b) => Date.parse(b.at) - Date.parse(a.at));
}

function waiting(relay) {
  if (relay.oldestPendingSeconds == null) {
    if (!relay.oldestIsSampled) return "nothing";
    return `nothing seen; ${counted(relay.backlogAtMost, "row")} of open or rolled-back transactions`;
  }
  const events = counted(Math.max(relay.backlogAtMost, 1), "event");
  return `at most ${events}, the oldest for ${duration(relay.oldestPendingSeconds)}${relay.oldestIsSampled ? " or longer" : ""}`;
}

function parked(relay) {
  if (!relay.parkedEvents) return "nothing";
  return `${counted(relay.parkedEvents, "event")}, ${counted(relay.parkedTopics, "topic")} held`;
}

function lastError(relay) {
  const times = relay.processes.map((one) => one.errorAt).filter(Boolean).sort();
  return times.length ? ["none now; the last ", age(times.at(-1))] : ["none"];
}

/** Changes a row of a list only if its parts differ, so that a reader's selection stays. */
function setRow(rows, known, name, parts) {
  const key = parts.map((part) => (typeof part === "string" ? part : part.dataset.age)).join(" ");
  let row = known.get(name);
  if (!row) {
    row = { line: made("div", {}, made("dt", {}, name), made("dd", {})) };
    known.set(name, row);
    rows.append(row.line);
  }
  if (row.key !== key) {
    fill(row.line.lastChild, ...parts);
    row.key = key;
  }
}

function drop(known, name) {
  known.get(name)?.line.remove();
  known.delete(name);
}

const NEIGHBOURS = { redis: "Redis", sse: "SSE server" };

function showNeighbours(all, said) {
  const neighbours = all.map((one) => {
    const reason = one.ok ? one.reason : said.once(one.reason);
    if (!one.ok) said.add(NEIGHBOURS[one.name] ?? one.name, one.reason);
    return { ...one, reason };
  });
  const list = at("neighbours");
  const text = JSON.stringify(neighbours);
  if (list.dataset.shown === text || !neighbours.length) return;
  list.dataset.shown = text;
  const item = ({ name, ok, reason }) =>
    made(
      "li",
      { "data-ok": String(ok) },
      made("strong", {}, NEIGHBOURS[name] ?? name),
      made("span", { class: "state" }, ok ? "answers" : "DOWN"),
      made("span", { class: "says" }, reason),
    );
  fill(list, ...neighbours.map(item));
}

const REASONS = {
  full: "the server was full",
  user_limit: "the user’s streams",
  topics_full: "the server’s topics",
  user_topics_limit: "the user’s topics",
  draining: "the server was ending",
  unavailable: "rights not known",
};

// From this part of the limit on, the number of streams is a warning.
const NEARLY_FULL = 0.9;

/** Shows the SSE server's streams. A server that does not answer is a neighbour that is down. */
function showStreams(streams) {
  at("streams").hidden = !streams;
  if (!streams) return;
  const { open, limit, topics, refused, slow } = streams;
  say(at("streams-open"), `${count(open)} of ${counted(limit, "stream")}, ${counted(topics, "topic")}`);
  const reasons = Object.entries(refused);
  const all = reasons.reduce((sum, [, n]) => sum + n, 0);
  const why = reasons.map(([reason, n]) => `${count(n)} for ${REASONS[reason] ?? reason}`).join(", ");
  say(at("streams-refused"), all ? `${count(all)}: ${why}` : "none");
  say(at("streams-slow"), slow ? `${counted(slow, "client")} cut off` : "none cut off");
  at("streams-open").classList.toggle("warn", open >= limit * NEARLY_FULL);
  at("streams-refused").classList.toggle("warn", all > 0);
  at("streams-slow").classList.toggle("warn", slow > 0);
}
