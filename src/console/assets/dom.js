// Builds and changes the page. Text from outside is never parsed as markup.

// Characters that reorder or hide text, or that control a terminal into which they are copied: the list of
// printable.rs.
const UNSAFE =
  /[\0-\x08\x0b-\x1f\x7f-\x9f\u{ad}\u{34f}\u{61c}\u{115f}\u{1160}\u{17b4}\u{17b5}\u{180b}-\u{180f}\u{200b}-\u{200f}\u{2028}-\u{202e}\u{2060}-\u{206f}\u{3164}\u{feff}\u{ffa0}\u{fff0}-\u{fffb}\u{1bca0}-\u{1bca3}\u{1d173}-\u{1d17a}\u{e0000}-\u{e0fff}]/gu;

/** A text with each of these characters written as its escape: `\u{202e}`. */
const visible = (text) => text.replace(UNSAFE, (c) => `\\u{${c.codePointAt(0).toString(16)}}`);

const shown = (child) => (typeof child === "string" ? visible(child) : child);

// Attributes that are shown or read aloud.
const READ = ["title", "aria-label"];

/** The element with this id. */
export const at = (id) => document.getElementById(id);

/** A new element. `made("p", { class: "note" }, "text", child)` */
export function made(tag, attributes = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (typeof value === "function") element.addEventListener(name, value);
    else if (value === true) element.setAttribute(name, "");
    else if (value !== false && value != null) element.setAttribute(name, READ.includes(name) ? shown(value) : value);
  }
  element.append(...children.filter((child) => child != null).map(shown));
  return element;
}

/** A new SVG element. */
export function drawn(tag, attributes = {}, ...children) {
  const element = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  element.append(...children);
  return element;
}

/** Changes a text only if it differs, so that a selection or a screen reader is not disturbed. */
export function say(element, text) {
  const safe = visible(text);
  if (element.textContent !== safe) element.textContent = safe;
}

/** Replaces the children. The focus stays on the element with the same `data-key`, if there is one. */
export function fill(element, ...children) {
  const key = element.contains(document.activeElement) ? document.activeElement.dataset.key : null;
  element.replaceChildren(...children.map(shown));
  if (key) element.querySelector(`[data-key="${CSS.escape(key)}"]`)?.focus();
}

/** An age that is kept up to date: see `grow`. */
export const age = (time) => made("time", { datetime: time, "data-age": time, title: time });
