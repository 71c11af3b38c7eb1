// One of the five clients: an EventSource of the browser, on a line of its own.

import { made, say } from "./dom.js";
import { pause } from "./server.js";

const TYPES = ["PHOTO_UPLOADED", "PHOTO_FAILED", "SESSION_COMPLETED"];
const AGAIN_MS = 1000;

export class Client {
  /** `changed()` is called when its events change, `cut(connected)` when its button is pressed. */
  constructor(number, origin, { changed, cut }) {
    Object.assign(this, { number, origin, changed, received: [], resets: 0 });
    Object.assign(this, { isConnected: true, source: null });
    this.dot = made("p", { class: "link", "data-state": "waiting" }, "Idle");
    this.button = made("button", { click: () => cut(!this.isConnected) });
    this.counts = made("p", { class: "counts" });
    const label = `Events of client ${number}, newest first`;
    this.list = made("ol", { class: "events", tabindex: "0", "aria-label": label });
    const heading = made("h3", { id: `client-${number}` }, `Client ${number}`);
    const head = made("header", {}, heading, this.dot, this.button);
    const about = { class: "card client", "aria-labelledby": heading.id, "data-client": number };
    this.element = made("article", about, head, this.counts, this.list);
    this.showConnected(true);
    this.showCounts(null);
  }

  /** Follows a session from its first event. `ticket()` gets a ticket for it. */
  async listen(session, ticket) {
    this.source?.close();
    Object.assign(this, { session, ticket, received: [], resets: 0, last: null, wasLost: false });
    this.list.replaceChildren();
    await this.open();
  }

  async open() {
    const session = this.session;
    const ticket = await this.ticket().catch(() => null);
    if (session !== this.session) return;
    if (ticket === null) return this.again();
    const start = this.last ? `lastEventId=${encodeURIComponent(this.last)}` : "from=earliest";
    const url = `${this.origin}/api/upload/sessions/${session}/stream?${start}&ticket=${ticket}`;
    const source = new EventSource(url);
    this.source?.close();
    this.source = source;
    const mine = (act) => (event) => source === this.source && act(event);
    source.onopen = mine(() => this.opened());
    source.onerror = mine(() => this.lost(source));
    for (const type of TYPES) source.addEventListener(type, mine((event) => this.take(type, event)));
    source.addEventListener("reset", mine((event) => this.reset(event)));
    // The token has expired, or its ticket: the next stream gets a new one.
    source.addEventListener("token_expired", mine(() => this.again()));
  }

  opened() {
    this.show("live", "Connected");
    if (this.wasLost && this.last) this.note(`back, continues after ${this.last}`);
    this.wasLost = false;
  }

  lost(source) {
    if (!this.wasLost && this.last) this.note("connection lost");
    this.wasLost = true;
    this.show("lost", this.isConnected ? "Reconnecting" : "Cut off");
    // In any other state the browser comes back by itself, with the last id.
    if (source.readyState === EventSource.CLOSED) this.again();
  }

  async again() {
    this.source?.close();
    this.source = null;
    const session = this.session;
    await pause(AGAIN_MS);
    if (session === this.session && this.source === null) await this.open();
  }

  take(type, { lastEventId: id, data }) {
    this.last = id;
    this.received.push({ id, type, data });
    const frame = `id: ${id}\nevent: ${type}\ndata: ${data}`;
    const name = made("span", { class: "type" }, type);
    const summary = made("summary", {}, made("span", { class: "id" }, id), name);
    const details = made("details", {}, summary, made("pre", {}, frame));
    this.list.prepend(made("li", { "data-type": type }, details));
    this.changed();
  }

  reset({ lastEventId, data }) {
    this.resets += 1;
    this.note(`reset: ${JSON.parse(data).reason}`);
    this.last = lastEventId;
    this.changed();
  }

  note(text) {
    this.list.prepend(made("li", { class: "mark-line" }, text));
  }

  show(state, word) {
    this.dot.dataset.state = state;
    say(this.dot, word);
  }

  /** Shows whether the line is cut. */
  showConnected(isConnected) {
    this.isConnected = isConnected;
    say(this.button, isConnected ? "Cut" : "Restore");
    const label = `${isConnected ? "Cut" : "Restore"} the connection of client ${this.number}`;
    this.button.setAttribute("aria-label", label);
    this.element.classList.toggle("cut", !isConnected);
    if (this.dot.dataset.state === "lost") this.show("lost", isConnected ? "Reconnecting" : "Cut off");
  }

  /** Shows its counts; null before the first session. */
  showCounts(counts) {
    if (!counts) return say(this.counts, "waits for an upload");
    const { missing, twice, disordered } = counts;
    // An event may arrive before the page has looked for its row.
    const received = counts.received + counts.unknown;
    const resets = this.resets ? ` · ${this.resets} reset` : "";
    say(this.counts, `${received} received · ${missing} missing · ${twice} twice${resets}`);
    this.element.dataset.wrong = missing + twice + disordered > 0;
  }
}
