// What there is to see beside the charts: the verdict, relays, neighbours, parked topics, the audit.

import { age, at, fill, made, say } from "./dom.js";
import { ask, post } from "./ask.js";
import { clock, count, counted, duration, grow, rate } from "./text.js";

// The verdicts in words, with a sign that is known by its shape as well as by its colour.
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

/** Shows what the feed calls `status`. */
export function showStatus(status, own) {
  showVerdict(status, own);
  if (!status.error) {
    at("relays").querySelector(".empty")?.remove();
    for (const relay of status.relays) showRelay(relay, relay.relay === own);
    if (!status.relays.length) fill(at("relays"), made("p", { class: "empty" }, "No relay has run on this log yet."));
  }
  showNeighbours(status.neighbours);
  grow();
}

function showVerdict(status, own) {
  const relay = status.relays.find((relay) => relay.relay === own);
  const verdict = status.error ? "blind" : (relay?.verdict ?? "unknown");
  const [word, sign] = VERDICTS[verdict];
  at("verdict").dataset.verdict = verdict;
  at("verdict-sign").setAttribute("d", sign);
  say(at("verdict-relay"), own);
  say(at("verdict-word"), word);
  say(at("verdict-sentence"), status.error ?? relay?.sentence ?? "It has not written its first position yet.");
  document.title = `${own} ${word} · aftercommit`;
  const button = at("verdict-button");
  button.hidden = !relay;
  if (relay) steer(button, relay);
}

/** Makes a button pause a relay, or resume it. */
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
        : "Nothing is delivered until somebody resumes it, also after a restart. Events wait in the log; none is lost.",
      yes: relay.paused ? "Resume" : "Pause",
      does: async (reason) => (await post(wants, { relay: relay.relay, reason })).says,
    });
}

const cards = new Map();

function showRelay(relay, isOwn) {
  if (!cards.has(relay.relay)) {
    const button = made("button", {});
    const word = made("span", { class: "word" });
    const rows = made("dl", {});
    const card = made("article", { class: "relay" }, made("h3", {}, relay.relay, " ", word, isOwn ? null : button), rows);
    cards.set(relay.relay, { card, word, rows, button, known: new Map() });
    at("relays").append(card);
  }
  const { card, word, rows, button, known } = cards.get(relay.relay);
  card.dataset.verdict = relay.verdict;
  say(word, VERDICTS[relay.verdict][0]);
  if (!isOwn) steer(button, relay);
  const row = (name, ...parts) => setRow(rows, known, name, parts);
  const leading = relay.leader && relay.processes.filter((one) => one.role === "leading").sort((a, b) => (a.at < b.at ? 1 : -1))[0];
  const standby = relay.processes.filter((one) => one.role === "standby");
  row("Leader", !relay.leader ? "none" : (leading?.process ?? relay.leader));
  row("Standing by", standby.length ? standby.map((one) => one.process).join(", ") : "none");
  row("Position", relay.lastId, ", moved ", age(relay.movedAt));
  row("Waiting", relay.oldestPendingSeconds == null ? "nothing" : `at most ${counted(Math.max(relay.backlogAtMost, 1), "event")}, the oldest for ${duration(relay.oldestPendingSeconds)}`);
  row("Rate", leading ? `${rate(leading.rate)} events/s` : "–");
  if (relay.paused) row("Paused", age(relay.paused.since), ` by ${relay.paused.who}: ${relay.paused.reason}`);
  else drop(known, "Paused");
  row("Parked", relay.parkedEvents ? `${counted(relay.parkedEvents, "event")}, ${counted(relay.parkedTopics, "topic")} held` : "nothing");
  row("Rotation", leading?.rotationBlocked ? `blocked: ${leading.rotationBlocked}` : "nothing in its way");
  const failing = relay.processes.filter((one) => one.error);
  if (failing.length) row("Error", ...failing.flatMap((one) => [`${one.process}: ${one.error}`]));
  else row("Error", ...lastError(relay));
}

function lastError(relay) {
  const times = relay.processes.map((one) => one.errorAt).filter(Boolean).sort();
  return times.length ? ["none now; the last ", age(times.at(-1))] : ["none"];
}

/** Changes one row of a list only if its parts differ: whoever reads or selects is left alone. */
function setRow(rows, known, name, parts) {
  const key = parts.map((part) => (typeof part === "string" ? part : part.dataset.age)).join(" ");
  let row = known.get(name);
  if (!row) {
    row = { line: made("div", {}, made("dt", {}, name), made("dd", {})) };
    known.set(name, row);
    rows.append(row.line);
  }
  if (row.key !== key) {
    row.line.lastChild.replaceChildren(...parts);
    row.key = key;
  }
}

function drop(known, name) {
  known.get(name)?.line.remove();
  known.delete(name);
}

function showNeighbours(neighbours) {
  const names = { redis: "Redis", sse: "SSE server" };
  const items = neighbours.map(({ name, ok, reason }) =>
    made("li", { "data-ok": String(ok) }, made("strong", {}, names[name] ?? name), made("span", { class: "state" }, ok ? "answers" : "DOWN"), made("span", { class: "says" }, reason)),
  );
  const list = at("neighbours");
  const text = JSON.stringify(neighbours);
  if (list.dataset.shown === text || !items.length) return;
  list.dataset.shown = text;
  fill(list, ...items);
}

/** Shows every relay's parked topics. */
export function showParked(parked, own) {
  const topics = parked.flatMap(({ relay, topics }) => topics.map((topic) => ({ ...topic, relay })));
  if (!topics.length) {
    return fill(at("parked"), made("p", { class: "empty" }, "Nothing is parked. An event that Redis refuses for a reason of its own would wait here, with those behind it."));
  }
  fill(at("parked"), made("ul", { class: "parked" }, ...topics.map((topic) => parkedTopic(topic, own))));
}

function parkedTopic(topic, own) {
  const about = made("p", { class: "about" }, counted(topic.events, "event"), " since ", made("time", { datetime: topic.since }, clock(topic.since)),
    topic.holdsTopic ? "; later ones wait behind" : "; later ones flow past", topic.relay === own ? "" : `; relay ${topic.relay}`);
  const buttons = topic.wish
    ? made("p", { class: "wish", role: "status" }, `${topic.wish === "release" ? "Being released" : "Being discarded"} …`)
    : made("p", { class: "buttons" }, settle(topic, "release"), settle(topic, "discard"));
  return made("li", { "data-topic": topic.topic }, made("div", {}, made("h3", {}, topic.topic), about, made("p", { class: "why" }, topic.reason)), buttons);
}

function settle(topic, what) {
  const isDiscard = what === "discard";
  const verb = isDiscard ? "Discard" : "Release";
  const events = counted(topic.events, "event");
  const text = isDiscard
    ? `Clients will never get ${topic.events === 1 ? "it" : "them"}, and the topic flows on without. This cannot be undone.`
    : `The relay publishes ${topic.events === 1 ? "it" : "them"} in order, and then lets the topic flow. Mend first what Redis refused; otherwise it is parked again.`;
  const does = async (reason) => (await post(`parked/${what}`, { relay: topic.relay, topic: topic.topic, reason })).says;
  return made(
    "button",
    {
      "data-key": `${what} ${topic.relay} ${topic.topic}`,
      "aria-label": `${verb} ${events} of ${topic.topic}`,
      click: () => ask({ title: `${verb} ${events} of ${topic.topic}?`, text, yes: `${verb} ${events}`, isGrave: isDiscard, does }),
    },
    verb,
  );
}

/** Shows what operators did of late. */
export function showAudit(entries) {
  if (!entries.length) return fill(at("audit"), made("p", { class: "empty" }, "No operator has done anything yet."));
  const row = (entry) =>
    made("tr", {},
      made("td", {}, made("time", { datetime: entry.at, title: entry.at }, clock(entry.at))),
      made("td", { class: "what" }, entry.action),
      made("td", {}, entry.who),
      made("td", { class: "number" }, entry.events ? count(entry.events) : "–"),
      made("td", { class: "reason" }, entry.reason || "–"),
      made("td", { class: "selection" }, chosen(entry.selection)));
  const heads = ["When", "What", "Who", "Events", "Why", "Of what"].map((name) => made("th", { scope: "col" }, name));
  fill(at("audit"), made("table", {}, made("thead", {}, made("tr", {}, ...heads)), made("tbody", {}, ...entries.map(row))));
}

/** A selection in a few words: `relay main, topic order:42`. */
function chosen(selection) {
  const words = [];
  const walk = (value, name) => {
    if (Array.isArray(value)) {
      const rest = value.length > 2 ? ` and ${value.length - 2} more` : "";
      if (value.length) words.push(`${name} ${value.slice(0, 2).join(", ")}${rest}`);
    } else if (value !== null && typeof value === "object") Object.entries(value).forEach(([key, inner]) => walk(inner, key));
    else if (value !== null && value !== "") words.push(`${name} ${value}`);
  };
  walk(selection, "");
  return words.join(", ");
}
