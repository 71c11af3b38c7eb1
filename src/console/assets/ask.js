// Asks an operator for confirmation of a change, and sends the change to the relay.

import { at, say } from "./dom.js";
import { serverTime } from "./text.js";

// The time that the page waits for a change. The relay receives the deadline and carries out nothing that it
// reads later. Its own time limit is half of this (LIMIT of change.rs).
const LIMIT_MS = 10_000;

const LOOK_FIRST = "Check the page and the audit log before you repeat it.";

/**
 * Sends a change. Throws the relay's answer if it refuses the change, and a sentence that says so if the
 * change may have been carried out all the same. `signal` cancels the request.
 */
export async function post(path, body, { signal, limit = LIMIT_MS } = {}) {
  const controller = new AbortController();
  const cancel = () => controller.abort();
  signal?.addEventListener("abort", cancel);
  const timer = setTimeout(cancel, limit);
  try {
    return await answered(path, body, controller.signal, serverTime() + limit);
  } catch (error) {
    if (!controller.signal.aborted) throw error;
    if (signal?.aborted) {
      throw new Error(`Cancelled before the relay answered: it may have been carried out already. ${LOOK_FIRST}`);
    }
    const seconds = Math.round(limit / 1000);
    throw new Error(
      `The relay did not answer within ${seconds} s: it may have been carried out; if not, it will not be carried out later. ` +
        LOOK_FIRST,
    );
  } finally {
    clearTimeout(timer);
    signal?.removeEventListener("abort", cancel);
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
  if (signal.aborted) throw new Error("cancelled");
  if (!answer.ok) throw new Error(sentence(told?.detail ?? `The relay answered with ${answer.status}.`));
  return told;
}

const sentence = (text) => text.charAt(0).toUpperCase() + text.slice(1) + (/[.!?]$/.test(text) ? "" : ".");

/**
 * Asks for confirmation and a reason, then calls `does(reason, signal)`, which returns the text to show when
 * it is done. If it fails, the dialog stays open with the error. "Cancel" and Escape cancel a request under
 * way, and say so.
 */
export function ask({ title, text, yes, isGrave = false, does }) {
  const dialog = at("ask");
  const form = dialog.querySelector("form");
  const [reason, button, no, errorText] = [at("ask-reason"), at("ask-yes"), at("ask-no"), at("ask-error")];
  say(at("ask-title"), title);
  say(at("ask-text"), text);
  say(button, yes);
  button.className = isGrave ? "grave" : "primary";
  errorText.hidden = true;
  reason.value = "";
  let underWay = null;
  const isAsked = () => form.onsubmit === submit && dialog.open;
  const works = (controller) => {
    underWay = controller;
    if (form.onsubmit !== submit) return;
    button.disabled = controller !== null;
  };
  async function submit(event) {
    event.preventDefault();
    if (underWay) return;
    works(new AbortController());
    errorText.hidden = true;
    try {
      const says = await does(reason.value.trim(), underWay.signal);
      works(null);
      if (isAsked()) dialog.close();
      tell(says);
    } catch (error) {
      works(null);
      if (!isAsked()) return tell(error.message, { stays: true });
      say(errorText, error.message);
      errorText.hidden = false;
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

/** Shows a text for some seconds; with `stays`, until the next text or a click on it. */
export function tell(text, { stays = false } = {}) {
  const told = at("told");
  told.hidden = false;
  say(told, text);
  told.onclick = () => (told.hidden = true);
  clearTimeout(fading);
  if (!stays) fading = setTimeout(() => (told.hidden = true), 8000);
}
