// Replays: a preview, a confirmation, then the progress.

import { age, at, fill, made } from "./dom.js";
import { ask, post } from "./ask.js";
import { clock, count, counted, duration, grow, rate as shortly, zone } from "./text.js";

// The time that the page waits for the start of a replay, which counts its events first. The relay's own time
// limit is half of this (REPLAY_LIMIT of change.rs).
const REPLAY_LIMIT_MS = 120_000;

// The selection of the last preview. Only this is replayed. Null if the form has changed since.
let looked = null;

/** Connects the form's events. */
export function prepare(own) {
  const form = at("replay");
  for (const element of form.querySelectorAll(".zone")) element.textContent = `(${zone()})`;
  form.addEventListener("input", forget);
  form.addEventListener("submit", async (event) => {
    event.preventDefault();
    forget();
    const button = at("replay-look");
    button.disabled = true;
    try {
      await look(form, own());
    } catch (error) {
      showError(error.message);
    } finally {
      button.disabled = false;
    }
  });
  at("replay-run").addEventListener("click", confirm);
}

function forget() {
  looked = null;
  at("replay-run").disabled = true;
  at("replay-run").textContent = "Replay …";
  fill(at("replay-found"));
}

const showError = (text) => fill(at("replay-found"), made("p", { class: "error-text", role: "alert" }, text));

async function look(form, own) {
  const [selection, rate] = [selectionOf(new FormData(form)), rateOf(form)];
  const relay = form.elements.relay.value || own;
  const { events, sample } = await post("replay/preview", { relay, selection }, { limit: REPLAY_LIMIT_MS });
  if (!events) {
    return fill(at("replay-found"), made("p", { class: "empty" }, "No delivered event that is still in the log matches."));
  }
  looked = { relay, selection, events, rate };
  const run = at("replay-run");
  run.disabled = false;
  run.textContent = `Replay ${counted(events, "event")} …`;
  const some = events > sample.length ? `. The first ${sample.length}:` : ":";
  const found = made("p", { class: "count" }, made("strong", {}, counted(events, "event")), " would be delivered once more", some);
  fill(at("replay-found"), found, made("table", {}, made("tbody", {}, ...sample.map(row))));
}

function row({ createdAt, topic, type, eventId }) {
  const cells = [clock(createdAt), topic, type].map((text) => made("td", {}, text));
  return made("tr", {}, ...cells, made("td", { class: "id" }, eventId));
}

/** The form's fields as a selection. Times are local in the form and sent as UTC. */
function selectionOf(fields) {
  const selection = {};
  for (const name of ["topic", "type"]) {
    const text = fields.get(name).trim();
    if (text) selection[name] = text;
  }
  for (const name of ["since", "until"]) {
    if (fields.get(name)) selection[name] = new Date(fields.get(name)).toISOString();
  }
  const events = fields.get("events").split(/[\s,]+/).filter(Boolean);
  const wrong = events.find((id) => !/^[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}$/i.test(id));
  if (wrong) throw new Error(`“${wrong}” is not an event id.`);
  if (events.length) selection.events = events;
  if (!Object.keys(selection).length) throw new Error("Say which events: a topic, a type, a time or event ids.");
  return selection;
}

/** The largest number of events a second. */
function rateOf(form) {
  const { validity, valueAsNumber, max } = form.elements.rate;
  if (!validity.valid) throw new Error(`Say how many events a second at most: 1 to ${count(max)}.`);
  return valueAsNumber;
}

/** The duration at that rate, as a sentence. */
const pace = (events, rate) =>
  `At most ${counted(rate, "event")} a second: ${duration(Math.max(1, Math.round(events / rate)))} or longer. `;

function confirm() {
  if (!looked) return;
  const { relay, selection, events, rate } = looked;
  ask({
    title: `Replay ${counted(events, "event")}?`,
    text:
      pace(events, rate) +
      "Every client of their topics gets them once more, under new numbers. " +
      "What a client does twice cannot be undone from here.",
    yes: `Replay ${counted(events, "event")}`,
    does: async (reason, signal) => {
      const limits = { signal, limit: REPLAY_LIMIT_MS };
      const replay = await post("replay", { relay, selection, rate, reason }, limits);
      at("replay").reset();
      forget();
      at("replay-fold").open = false;
      return `Replay ${replay.id} has begun.`;
    },
  });
}

/** Shows the newest replays, also those of the command line, and their progress. */
export function showReplays(replays) {
  const list = at("replays");
  if (!replays.length) return fill(list);
  fill(list, made("ul", { class: "replays" }, ...replays.map(shown)));
  grow();
}

// The progress of each running replay when this page first saw it, by the replay's number.
const first = new Map();

/** The speed and the remaining time of a running replay, once it has progressed while this page is open. */
function speed({ id, selected, copied, movedAt }) {
  if (!first.has(id)) first.set(id, { copied, movedAt });
  const from = first.get(id);
  const rate = (copied - from.copied) / ((Date.parse(movedAt) - Date.parse(from.movedAt)) / 1000);
  return rate > 0 ? `, ${shortly(rate)}/s, ${duration(Math.ceil((selected - copied) / rate))} left` : "";
}

function shown(replay) {
  const { id, selected, copied, standing } = replay;
  if (standing !== "running") first.delete(id);
  const how = {
    running: `${count(copied)} of ${counted(selected, "event")}${standing === "running" ? speed(replay) : ""}`,
    interrupted: `interrupted at ${count(copied)} of ${counted(selected, "event")}`,
    finished: `done: ${counted(copied, "event")}`,
  }[standing];
  const missing = replay.missing ? `, ${count(replay.missing)} had left the log` : "";
  const all = Math.max(selected, 1);
  const name = made("strong", {}, `Replay ${id}`);
  return made(
    "li",
    { "data-standing": standing },
    made("p", {}, name, ` ${how}${missing}, begun `, age(replay.startedAt), ` by ${replay.who}: ${replay.reason}`),
    standing === "finished" ? null : made("progress", { max: all, value: copied, "aria-label": `Replay ${id}` }),
    standing === "interrupted" ? resume(replay) : null,
  );
}

function resume({ id, selected, copied }) {
  const left = counted(selected - copied, "event");
  const title = `Resume replay ${id}?`;
  const click = () => {
    let rate;
    try {
      rate = rateOf(at("replay"));
    } catch (error) {
      // The rate is a field of the form.
      at("replay-fold").open = true;
      return showError(error.message);
    }
    const text = `${left} may be left. ${pace(selected - copied, rate)}It goes on behind the last one; nothing is sent twice.`;
    const does = async (reason, signal) => {
      await post("replay/resume", { id, rate, reason }, { signal });
      return `Replay ${id} goes on.`;
    };
    ask({ title, text, yes: "Resume", does });
  };
  return made("button", { "data-key": `replay ${id}`, click }, "Resume");
}

/** Offers a choice of relay, if there are several. */
export function offerRelays(relays, own) {
  const select = at("replay-relay");
  const names = relays.map((relay) => relay.relay);
  if (select.dataset.names === names.join("\n")) return;
  select.dataset.names = names.join("\n");
  at("replay-relay-field").hidden = names.length < 2;
  fill(select, ...names.map((name) => made("option", { value: name, selected: name === own }, name)));
}
