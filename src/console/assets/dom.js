// Building and changing the page. Texts are always texts: nothing from outside is ever parsed as markup.

/** The element with this id. */
export const at = (id) => document.getElementById(id);

/** A new element. `made("p", { class: "note" }, "text", child)` */
export function made(tag, attributes = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (typeof value === "function") element.addEventListener(name, value);
    else if (value === true) element.setAttribute(name, "");
    else if (value !== false && value != null) element.setAttribute(name, value);
  }
  element.append(...children.filter((child) => child != null));
  return element;
}

/** A new element of a drawing. */
export function drawn(tag, attributes = {}, ...children) {
  const element = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  element.append(...children);
  return element;
}

/** Changes a text, and touches nothing if it is that already: a selection or a screen reader is not disturbed. */
export function say(element, text) {
  if (element.textContent !== text) element.textContent = text;
}

/** Puts children in place of the old ones. Whoever had the focus keeps it, if an element with its `data-key` is there. */
export function fill(element, ...children) {
  const key = element.contains(document.activeElement) ? document.activeElement.dataset.key : null;
  element.replaceChildren(...children);
  if (key) element.querySelector(`[data-key="${CSS.escape(key)}"]`)?.focus();
}

/** An age that grows by itself: see `grow`. */
export const age = (time) => made("time", { datetime: time, "data-age": time, title: new Date(time).toLocaleString() });
