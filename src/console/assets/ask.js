// Asking an operator before something is changed, and asking the relay to change it.

import { at, say } from "./dom.js";
import { serverTime } from "./text.js";

// How long the page waits for a change. The relay carries nothing out that it reads later: it is told until when. By itself
// it takes half of that (LIMIT of change.rs).
const LIMIT_MS = 10_000;

const LOOK_FIRST = "Look at what the page and the audit show before you repeat it.";

/**
 * Sends a change. Throws what the relay answers if it refuses; a sentence that says so if it may have been carried out all
 * the same. `signal` calls it off.
 */
export async function post(path, body, { signal, limit = LIMIT_MS } = {}) {
  const controller = new AbortController();
  const callOff = () => controller.abort();
  signal?.addEventListener("abort", callOff);
  const timer = setTimeout(callOff, limit);
  try {
    return await answered(path, body, controller.signal, serverTime() + limit);
  } catch (error) {
    if (!controller.signal.aborted) throw error;
    if (signal?.aborted) {
      throw new Error(`Called off before the relay answered: it may have been carried out already. ${LOOK_FIRST}`);
    }
    const seconds = Math.round(limit / 1000);
    throw new Error(
      `The relay did not answer within ${seconds} s: it may have been carried out; if not, it will not be any more. ` +
        LOOK_FIRST,
    );
  } finally {
    clearTimeout(timer);
    signal?.removeEventListener("abort", callOff);
  }
}

async function answered(path, body, signal, before) {
  const request = {
    method: "POST",
    headers: { "content-type": "application/json", "aftercommit-before": String(Math.round(before)) },
    body: JSON.stringify(body),
    signal,
  };
  const answer = await fetch(`/console/${path}`, request).catch((error) => {
    if (signal.aborted) throw error;
    throw new Error(`The connection to the relay broke: it may have been carried out already. ${LOOK_FIRST}`);
  });
  if (answer.status === 401) location.reload();
  const told = answer.status === 204 ? null : await answer.json().catch(() => null);
  if (signal.aborted) throw new Error("called off");
  if (!answer.ok) throw new Error(sentence(told?.detail ?? `The relay answered with ${answer.status}.`));
  return told;
}

const sentence = (text) => text.charAt(0).toUpperCase() + text.slice(1) + (/[.!?]$/.test(text) ? "" : ".");

/**
 * Asks whether to do something, and why; then does it. `does(reason, signal)` answers with what is said when it is done.
 * While it fails, the question stays open with the complaint. "Cancel" and Escape call off what is under way, and say so.
 */
export function ask({ title, text, yes, isGrave = false, does }) {
  const dialog = at("ask");
  const form = dialog.querySelector("form");
  const [reason, button, no, complaint] = [at("ask-reason"), at("ask-yes"), at("ask-no"), at("ask-complaint")];
  say(at("ask-title"), title);
  say(at("ask-text"), text);
  say(button, yes);
  button.className = isGrave ? "grave" : "primary";
  complaint.hidden = true;
  reason.value = "";
  let underWay = null;
  const isAsked = () => form.onsubmit === submit && dialog.open;
  const works = (controller) => {
    underWay = controller;
    if (form.onsubmit !== submit) return;
    button.disabled = controller !== null;
    say(no, controller ? "Call off" : "Cancel");
  };
  async function submit(event) {
    event.preventDefault();
    if (underWay) return;
    works(new AbortController());
    complaint.hidden = true;
    try {
      const says = await does(reason.value.trim(), underWay.signal);
      works(null);
      if (isAsked()) dialog.close();
      tell(says);
    } catch (error) {
      works(null);
      if (!isAsked()) return tell(error.message, { stays: true });
      say(complaint, error.message);
      complaint.hidden = false;
    }
  }
  form.onsubmit = submit;
  works(null);
  no.onclick = () => dialog.close();
  dialog.onclose = () => underWay?.abort();
  dialog.showModal();
  reason.focus();
}

let fading;

/** Says for a while what was done; with `stays`, until something else is said or it is clicked on. */
export function tell(text, { stays = false } = {}) {
  const told = at("told");
  told.hidden = false;
  say(told, text);
  told.onclick = () => (told.hidden = true);
  clearTimeout(fading);
  if (!stays) fading = setTimeout(() => (told.hidden = true), 8000);
}
