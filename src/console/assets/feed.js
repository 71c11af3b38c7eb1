// The stream of events from the relay. It reconnects by itself, and the page says so while it is lost.
//
// One tab of a browser has the stream and passes its events to the other tabs. Over HTTP/1.1 a browser opens
// six connections to a server, so six streams would leave none for a change. The tabs agree without a lock,
// because locks need a secure context: a tab that hears from no other tab opens the stream. If two tabs have
// one, the tab with the larger name closes its own.

const NAMES = ["hello", "trend", "sample", "status", "lists"];
// A sample arrives each second. After this long without one, the connection counts as lost, whatever the
// browser reports.
const SILENCE_MS = 5000;
const AGAIN_MS = 2000;
// How long a new tab waits for a tab that has the stream, and the range of random extra waits.
const ANSWER_MS = 200;
const SPREAD_MS = 300;
// The number of samples that a new tab receives: ten minutes.
const SAMPLES = 600;

/**
 * Follows the stream. Calls `heard[name](data)` for each event, and `linked(since)` with null while the
 * stream is alive, otherwise with the time since which it is lost.
 */
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

  /** Opens the stream after a wait, unless another tab is heard before. */
  leadUnlessTold(after) {
    const before = this.last;
    const lead = () => {
      if (!this.isGone && !this.leads && this.last === before) this.open();
    };
    if (after) setTimeout(lead, after);
    else lead();
  }

  /** Handles a message of another tab. */
  told({ kind, from, name, data, since }) {
    if (this.isGone) return;
    if (kind === "ask") {
      if (this.leads) this.tell({ kind: "all", data: this.newest });
    } else if (kind === "bye") {
      if (!this.leads) this.leadUnlessTold(spread());
    } else if (kind === "signed out") {
      location.reload();
    } else {
      // The other tab has a stream too. One must close.
      if (this.leads && from < this.name) this.close();
      if (!this.leads) this.take(kind, name, data, since);
    }
  }

  /** Handles a message of the tab that has the stream. */
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
    // Other tabs that are about to open a stream wait.
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
      // In any other state the browser retries by itself.
      if (opened.readyState === EventSource.CLOSED) this.again();
    };
  }

  close() {
    this.source?.close();
    this.source = null;
  }

  async again() {
    const answer = await fetch("/console/session").catch(() => null);
    // The operator is signed out, or the relay was restarted: the page must ask to sign in.
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
    // No stream is alive: the tab that had it is gone or asleep.
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
