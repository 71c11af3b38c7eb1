// The parked topics and the audit log.

import { at, fill, made } from "./dom.js";
import { ask, post } from "./ask.js";
import { clock, count, counted } from "./text.js";

const NOTHING_PARKED =
  "Nothing is parked. An event that Redis refuses for a reason of its own would wait here, with the later ones of its topic.";

/** Shows the parked topics of all relays. */
export function showParked(parked, own) {
  const topics = parked.flatMap(({ relay, topics }) => topics.map((topic) => ({ ...topic, relay })));
  const list = topics.length
    ? made("ul", { class: "parked" }, ...topics.map((topic) => parkedTopic(topic, own)))
    : made("p", { class: "empty" }, NOTHING_PARKED);
  fill(at("parked"), list);
}

function parkedTopic(topic, own) {
  const about = made(
    "p",
    { class: "about" },
    `${counted(topic.events, "event")} since `,
    made("time", { datetime: topic.since }, clock(topic.since)),
    `, ${range(topic)}; later ones wait behind`,
    topic.mayHaveArrived ? `; clients may have ${counted(topic.mayHaveArrived, "event")}` : "",
    topic.relay === own ? "" : `; relay ${topic.relay}`,
  );
  const what = made("div", {}, made("h3", {}, topic.topic), about, made("p", { class: "why" }, topic.reason));
  const requested = topic.requested === "release" ? "Being released …" : "Being discarded …";
  const buttons = topic.requested
    ? made("p", { class: "requested" }, requested)
    : made("p", { class: "buttons" }, settle(topic, "release"), settle(topic, "discard"));
  return made("li", { "data-topic": topic.topic }, what, buttons);
}

/** A range of ids: `1-101 to 1-102`. */
const range = ({ firstId, lastId }) => (lastId === firstId ? firstId : `${firstId} to ${lastId}`);

/** That clients may have received some of the events, if so: a release brings these under their old ids. */
const already = ({ mayHaveArrived }) =>
  mayHaveArrived ? ` (but may have received ${count(mayHaveArrived)} of them before)` : "";

/** A button that releases or discards a topic's parked events. */
function settle(topic, what) {
  const isDiscard = what === "discard";
  const verb = isDiscard ? "Discard" : "Release";
  const events = counted(topic.events, "event");
  const them = topic.events === 1 ? "it" : "them";
  // The operator confirms only the events that the question names, not those that are parked later.
  const question = {
    title: `${verb} ${events} of ${topic.topic}?`,
    text: isDiscard
      ? `Ids ${range(topic)}: clients will never receive ${them}${already(topic)}, and the topic continues without ${them}. This cannot be undone.`
      : `Ids ${range(topic)}: the relay publishes ${them} in order, and then continues with the topic. First fix the cause: ` +
        `otherwise the topic is parked again. Redis said: ${topic.reason}`,
    yes: `${verb} ${events}`,
    isGrave: isDiscard,
    does: async (reason, signal) => {
      const named = { relay: topic.relay, topic: topic.topic, through: topic.lastId };
      // The question says that clients may have some of them.
      const mayHaveArrived = isDiscard && topic.mayHaveArrived > 0;
      return (await post(`parked/${what}`, { ...named, mayHaveArrived, reason }, { signal })).says;
    },
  };
  const names = { "data-key": `${what} ${topic.relay} ${topic.topic}`, "aria-label": `${verb} ${events} of ${topic.topic}` };
  return made("button", { ...names, class: isDiscard ? "danger" : null, click: () => ask(question) }, verb);
}

const COLUMNS = ["When", "What", "Who", "Events", "Why", "Of what"];

/** Shows the newest entries of the audit log. */
export function showAudit(entries) {
  if (!entries.length) {
    return fill(at("audit"), made("p", { class: "empty" }, "No operator action has been recorded yet."));
  }
  const heads = COLUMNS.map((name) => made("th", { scope: "col" }, name));
  const table = made("table", {}, made("thead", {}, made("tr", {}, ...heads)), made("tbody", {}, ...entries.map(done)));
  fill(at("audit"), table);
}

function done(entry) {
  return made(
    "tr",
    {},
    made("td", {}, made("time", { datetime: entry.at, title: entry.at }, clock(entry.at))),
    made("td", { class: "what" }, entry.action),
    made("td", {}, entry.who),
    made("td", { class: "number" }, entry.events ? count(entry.events) : "–"),
    made("td", { class: "reason" }, entry.reason || "–"),
    made("td", { class: "selection" }, chosen(entry.selection)),
  );
}

/** A selection in short: `relay main, topic order:42`. */
function chosen(value, name = "") {
  if (value === null || value === "") return "";
  if (Array.isArray(value)) {
    const rest = value.length > 2 ? ` and ${value.length - 2} more` : "";
    return value.length ? `${name} ${value.slice(0, 2).join(", ")}${rest}` : "";
  }
  if (typeof value !== "object") return `${name} ${value}`;
  return Object.entries(value).map(([key, inner]) => chosen(inner, key)).filter(Boolean).join(", ");
}
