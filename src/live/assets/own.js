// The reader's own events: one topic, read with fetch, so that each frame is shown as it came.

import { at, made, say } from "./dom.js";
import { pause } from "./server.js";

const TOPIC = /^(?!\.{1,2}$)[A-Za-z0-9:._-]{1,200}$/;
const AGAIN_MS = 1000;
const FRAMES_MAX = 200;
const TYPED_MS = 300;

/** Shows the commands, and follows the topic of the field. */
export class Own {
  constructor({ own, token, database, sse }) {
    Object.assign(this, { origin: own, token, database, sse });
    at("topic").addEventListener("input", () => this.topicChanged());
    for (const button of document.querySelectorAll("[data-copies]")) {
      button.addEventListener("click", () => copy(button));
    }
    this.follow();
  }

  topicChanged() {
    clearTimeout(this.typing);
    this.typing = setTimeout(() => this.follow(), TYPED_MS);
  }

  follow() {
    const topic = at("topic").value.trim();
    const isTopic = TOPIC.test(topic);
    at("topic-error").hidden = isTopic;
    if (!isTopic) say(at("topic-error"), "A topic has 1 to 200 characters of A-Z a-z 0-9 : . _ -");
    if (!isTopic || topic === this.topic) return;
    this.topic = topic;
    this.last = null;
    say(at("own-topic"), topic);
    const append = `select outbox.append('${topic}', 'ORDER_PAID', '{\\"total\\":12}')`;
    say(at("psql"), `psql '${this.database}' -c "${append}"`);
    const stream = `${this.sse}/streams/${topic}?from=earliest`;
    say(at("curl"), `curl -N '${stream}' -H 'Authorization: Bearer ${this.token}'`);
    at("own-events").replaceChildren();
    this.reading?.abort();
    this.reading = new AbortController();
    this.read(topic, this.reading.signal);
  }

  /** Reads until another topic is chosen, and comes back after each end with the last id. */
  async read(topic, signal) {
    while (!signal.aborted) {
      const start = this.last ? `lastEventId=${encodeURIComponent(this.last)}` : "from=earliest";
      const url = `${this.origin}/streams/${topic}?${start}`;
      const headers = { authorization: `Bearer ${this.token}` };
      try {
        const answer = await fetch(url, { headers, signal });
        if (!answer.ok) throw new Error(`the SSE server answered ${answer.status}`);
        say(at("own-state"), "Listening. Append one, and it appears here.");
        for await (const frame of frames(answer.body)) this.take(frame);
      } catch (error) {
        if (signal.aborted) return;
      }
      if (signal.aborted) return;
      say(at("own-state"), "The stream has ended. Trying again …");
      await pause(AGAIN_MS);
    }
  }

  /** Shows a frame. Frames without data are heartbeats, or tell only a place. */
  take(frame) {
    const lines = frame.split("\n").filter((line) => line && !line.startsWith(":"));
    const id = lines.find((line) => line.startsWith("id:"));
    if (id) this.last = id.slice(3).trim();
    if (!lines.some((line) => line.startsWith("data:"))) return;
    const list = at("own-events");
    const time = made("time", {}, new Date().toLocaleTimeString("en-GB"));
    list.prepend(made("li", {}, time, made("pre", {}, lines.join("\n"))));
    while (list.children.length > FRAMES_MAX) list.lastChild.remove();
  }
}

/** The frames of an event stream: texts between empty lines. */
async function* frames(body) {
  const reader = body.pipeThrough(new TextDecoderStream()).getReader();
  let text = "";
  for (;;) {
    const { value, done } = await reader.read();
    if (done) return;
    text += value.replaceAll("\r", "");
    const parts = text.split("\n\n");
    text = parts.pop();
    yield* parts;
  }
}

async function copy(button) {
  const text = at(button.dataset.copies);
  try {
    await navigator.clipboard.writeText(text.textContent);
    say(button, "Copied");
  } catch {
    // Without the right to, the text is selected for the reader to copy.
    getSelection().selectAllChildren(text);
    say(button, "Selected");
  }
  setTimeout(() => say(button, "Copy"), 2000);
}
