// Asking an operator before something is changed, and asking the relay to change it.

import { at, say } from "./dom.js";

/** Sends a change. Throws what the relay answers if it refuses. */
export async function post(path, body) {
  const answer = await fetch(`/console/${path}`, {
    method: "POST",
    headers: { "content-type": "application/json" },
    body: JSON.stringify(body),
  }).catch(() => {
    throw new Error("The relay does not answer. Nothing is known to have changed; look again before you repeat it.");
  });
  if (answer.status === 401) location.reload();
  const told = answer.status === 204 ? null : await answer.json().catch(() => null);
  if (!answer.ok) throw new Error(sentence(told?.detail ?? `The relay answered with ${answer.status}.`));
  return told;
}

const sentence = (text) => text.charAt(0).toUpperCase() + text.slice(1) + (/[.!?]$/.test(text) ? "" : ".");

/**
 * Asks whether to do something, and why; then does it. `does(reason)` answers with what is said when it is done. While it
 * fails, the question stays open with the complaint.
 */
export function ask({ title, text, yes, isGrave = false, does }) {
  const dialog = at("ask");
  const form = dialog.querySelector("form");
  const [reason, button, complaint] = [at("ask-reason"), at("ask-yes"), at("ask-complaint")];
  say(at("ask-title"), title);
  say(at("ask-text"), text);
  say(button, yes);
  button.className = isGrave ? "grave" : "primary";
  complaint.hidden = true;
  reason.value = "";
  button.disabled = false;
  form.onsubmit = async (event) => {
    event.preventDefault();
    button.disabled = true;
    complaint.hidden = true;
    try {
      const says = await does(reason.value.trim());
      dialog.close();
      tell(says);
    } catch (error) {
      say(complaint, error.message);
      complaint.hidden = false;
    } finally {
      button.disabled = false;
    }
  };
  at("ask-no").onclick = () => dialog.close();
  dialog.showModal();
  reason.focus();
}

let fading;

/** Says for a while what was done. */
export function tell(text) {
  const told = at("told");
  told.hidden = false;
  say(told, text);
  clearTimeout(fading);
  fading = setTimeout(() => (told.hidden = true), 8000);
}
