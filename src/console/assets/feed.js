// The stream of what there is to see. Comes back by itself, and says plainly while it is away.
//
// One tab of a browser has the stream and tells the others what it hears. Over HTTP/1.1 a browser makes six connections to
// a server: six streams would leave none for a change. The tabs agree without a lock, as locks need a secure context: a tab
// that hears from no other opens the stream, and of two that have one the tab with the larger name closes its own.

const NAMES = ["hello", "trend", "sample", "status", "lists"];
// A sample comes each second: after this long without one the connection is dead, whatever the browser thinks.
const SILENCE_MS = 5000;
const AGAIN_MS = 2000;
// How long a new tab waits for one that has the stream, and how far such waits are spread.
const ANSWER_MS = 200;
const SPREAD_MS = 300;
// Samples that a tab which is opened later is given: ten minutes.
const SAMPLES = 600;

/** Follows the stream: `heard[name](data)` for each event; `linked(since)` with null while all is well, else since when not. */
export function follow(heard, linked) {
  new Tab(heard, linked).begin();
}

class Tab {
  constructor(heard, linked) {
    Object.assign(this, { heard, linked, source: null, lostSince: null, last: Date.now(), newest: {}, isGone: false });
    this.name = [...crypto.getRandomValues(new Uint32Array(4))].join("-");
    this.channel = "BroadcastChannel" in window ? new BroadcastChannel("aftercommit console") : null;
    if (this.channel) this.channel.onmessage = ({ data }) => this.told(data);
    setInterval(() => this.watch(), 1000);
    addEventListener("pagehide", () => this.leave());
    addEventListener("pageshow", (event) => {
      if (event.persisted) location.reload();
    });
  }

  begin() {
    this.tell({ kind: "ask" });
    this.leadUnlessTold(this.channel ? ANSWER_MS + spread() : 0);
  }

  get leads() {
    return this.source !== null;
  }

  tell(message) {
    this.channel?.postMessage({ ...message, from: this.name });
  }

  /** Opens the stream after a while, unless another tab has been heard by then. */
  leadUnlessTold(after) {
    const before = this.last;
    const lead = () => {
      if (!this.isGone && !this.leads && this.last === before) this.open();
    };
    if (after) setTimeout(lead, after);
    else lead();
  }

  /** What another tab tells. */
  told({ kind, from, name, data, since }) {
    if (this.isGone) return;
    if (kind === "ask") {
      if (this.leads) this.tell({ kind: "all", data: this.newest });
    } else if (kind === "bye") {
      if (!this.leads) this.leadUnlessTold(spread());
    } else if (kind === "signed out") {
      location.reload();
    } else {
      // It has a stream. Two are one too many.
      if (this.leads && from < this.name) this.close();
      if (!this.leads) this.take(kind, name, data, since);
    }
  }

  /** What the tab that has the stream tells. */
  take(kind, name, data, since) {
    this.last = Math.max(Date.now(), this.last + 1);
    if (kind === "lost") return this.lose(since);
    if (kind === "event") this.hear(name, data);
    if (kind === "all" && !this.newest.hello) for (const one of NAMES) if (data[one]) this.hear(one, data[one]);
  }

  hear(name, data) {
    if (name === "sample") this.newest.trend = [...(this.newest.trend ?? []), data].slice(-SAMPLES);
    else this.newest[name] = name === "trend" ? [...data] : data;
    if (this.lostSince !== null || name === "hello") this.linked((this.lostSince = null));
    this.heard[name](data);
  }

  lose(since = this.last) {
    this.lostSince ??= since;
    this.linked(this.lostSince);
    if (this.leads) this.tell({ kind: "lost", since: this.lostSince });
  }

  open() {
    this.source?.close();
    this.last = Date.now();
    const opened = new EventSource("/console/events");
    this.source = opened;
    // Whoever was about to open one waits.
    this.tell({ kind: "lead" });
    for (const name of NAMES) {
      opened.addEventListener(name, (event) => {
        if (opened !== this.source) return;
        this.last = Date.now();
        const data = JSON.parse(event.data);
        this.tell({ kind: "event", name, data });
        this.hear(name, data);
      });
    }
    opened.onerror = () => {
      if (opened !== this.source) return;
      this.lose();
      // Otherwise the browser tries again by itself.
      if (opened.readyState === EventSource.CLOSED) this.again();
    };
  }

  close() {
    this.source?.close();
    this.source = null;
  }

  async again() {
    const answer = await fetch("/console/session").catch(() => null);
    // Signed out, or the relay was started anew: the page asks to sign in.
    if (answer && (answer.status === 401 || answer.status === 403)) {
      this.tell({ kind: "signed out" });
      location.reload();
    } else {
      setTimeout(() => {
        if (this.leads && !this.isGone) this.open();
      }, AGAIN_MS);
    }
  }

  watch() {
    if (this.isGone) return;
    if (this.lostSince !== null) this.lose();
    if (Date.now() - this.last <= SILENCE_MS) return;
    if (this.leads && this.source.readyState === EventSource.CLOSED) return;
    this.lose();
    // Without the stream: the tab that had it is gone, or asleep.
    if (this.leads) this.open();
    else this.leadUnlessTold(spread());
  }

  leave() {
    this.isGone = true;
    if (this.leads) this.tell({ kind: "bye" });
    this.close();
  }
}

const spread = () => Math.random() * SPREAD_MS;
