// Numbers and times for people to read.

const whole = new Intl.NumberFormat("en", { maximumFractionDigits: 0 });
const one = new Intl.NumberFormat("en", { minimumFractionDigits: 1, maximumFractionDigits: 1 });

/** 12,345 */
export const count = (n) => whole.format(n);

/** 1 event, 2 events */
export const counted = (n, what) => `${count(n)} ${what}${n === 1 ? "" : "s"}`;

/** Events a second, with one decimal below ten. */
export const rate = (n) => (n > 0 && n < 10 ? one.format(n) : whole.format(n));

/** A duration in seconds: 12 ms, 1.4 s, 42 s, 3 min 20 s, 2 h 5 min, 3 d 4 h. */
export function duration(seconds) {
  if (seconds < 0.9995) return `${Math.round(seconds * 1000)} ms`;
  if (seconds < 9.95 && !Number.isInteger(seconds)) return `${one.format(seconds)} s`;
  const s = Math.round(seconds);
  if (s < 60) return `${s} s`;
  if (s < 3600) return pair(Math.floor(s / 60), "min", s % 60, "s");
  if (s < 86400) return pair(Math.floor(s / 3600), "h", Math.floor((s % 3600) / 60), "min");
  return pair(Math.floor(s / 86400), "d", Math.floor((s % 86400) / 3600), "h");
}

const pair = (a, big, b, small) => (b ? `${a} ${big} ${b} ${small}` : `${a} ${big}`);

// How far the server's clock is ahead of this one, in milliseconds. Ages are computed by the server's clock.
let ahead = 0;

/** Sets the server's time, in milliseconds. */
export function setClock(server) {
  ahead = server - Date.now();
}

/** The server's time now, in milliseconds. */
export const serverTime = () => Date.now() + ahead;

/** The time since `time`, by the server's clock. */
export function ago(time) {
  const seconds = (Date.now() + ahead - Date.parse(time)) / 1000;
  return seconds < 1.5 ? "just now" : `${duration(Math.round(seconds))} ago`;
}

/** A time of day with its zone, and with the date unless it is today. */
export function clock(time) {
  const date = new Date(time);
  const isToday = date.toDateString() === new Date().toDateString();
  const day = isToday ? "" : `${date.toLocaleDateString("en-CA")} `;
  return `${day}${date.toLocaleTimeString("en-GB")} ${zone(date)}`;
}

/** The reader's time zone at that time: UTC, CET, GMT-3. */
export const zone = (date = new Date()) =>
  new Intl.DateTimeFormat("en-GB", { timeZoneName: "short" }).formatToParts(date).find(({ type }) => type === "timeZoneName").value;

/** Updates every age on the page. */
export function grow() {
  for (const element of document.querySelectorAll("[data-age]")) {
    const text = ago(element.dataset.age);
    if (element.textContent !== text) element.textContent = text;
  }
}
