// Line charts of the last ten minutes. All charts share one time axis and one cursor.

import { drawn, made, say } from "./dom.js";
import { duration } from "./text.js";

const SPAN_S = 600;
const [WIDTH, HEIGHT] = [600, 100];
// Samples further apart than this are not joined, because the time between them is unknown.
const HOLE_S = 6;

const charts = [];
let samples = [];

/** Sets the samples of the last ten minutes: [time in ms, backlog, lag, rate, latency]. */
export function setSamples(all) {
  samples = all;
  charts.forEach((chart) => chart.draw());
}

/** Adds a sample. */
export function addSample(sample) {
  samples.push(sample);
  while (samples.length > 1 && samples[0][0] < sample[0] - SPAN_S * 1000) samples.shift();
  charts.forEach((chart) => chart.draw());
}

/**
 * A chart in `figure` of the samples' column `column`. `shown` formats numbers. The scale ends at `least` or
 * above. `quiet` is shown while the newest sample has no number. `limit` draws a line.
 */
export class Chart {
  constructor(figure, { title, about, column, shown, least, steps, quiet }) {
    Object.assign(this, { figure, title, column, shown, least, steps, quiet, limit: null });
    this.value = made("span", { class: "value" }, "–");
    this.top = made("span", { class: "top" });
    this.begin = made("span", {}, "−10 min");
    this.end = made("span", {}, "now");
    this.limitName = made("span", { class: "limit-name" });
    this.area = drawn("path", { class: "area" });
    this.line = drawn("path", { class: "line" });
    this.dots = drawn("path", { class: "dots", d: "" });
    this.dot = drawn("path", { class: "dot", d: "" });
    this.mark = drawn("path", { class: "limit", d: "" });
    this.cursor = drawn("path", { class: "cursor", d: "" });
    const grid = drawn("path", { class: "grid", d: `M0 .5H${WIDTH}M0 ${HEIGHT / 2}H${WIDTH}M0 ${HEIGHT - 0.5}H${WIDTH}` });
    this.plot = drawn(
      "svg",
      { viewBox: `0 0 ${WIDTH} ${HEIGHT}`, preserveAspectRatio: "none", role: "img" },
      grid, this.area, this.line, this.dots, this.mark, this.cursor, this.dot,
    );
    figure.append(
      made("figcaption", { title: about }, title),
      made("p", { class: "reading" }, this.value, this.top),
      this.plot,
      made("p", { class: "axis" }, this.begin, this.limitName, this.end),
    );
    this.plot.addEventListener("pointermove", (event) => {
      const box = this.plot.getBoundingClientRect();
      point(SPAN_S * (1 - (event.clientX - box.left) / box.width));
    });
    this.plot.addEventListener("pointerleave", () => point(null));
    charts.push(this);
  }

  /** Draws the samples. */
  draw() {
    const last = samples.at(-1);
    if (!last) return;
    const known = samples.filter((sample) => sample[this.column] !== null);
    const most = Math.max(0, ...known.map((sample) => sample[this.column]));
    const top = this.scale(most);
    const x = (sample) => (WIDTH * (1 - (last[0] - sample[0]) / 1000 / SPAN_S)).toFixed(1);
    const y = (number) => HEIGHT - 1 - (HEIGHT - 2) * Math.min(number / top, 1);
    const lines = runs(known);
    const pointOf = (sample) => `${x(sample)} ${y(sample[this.column]).toFixed(1)}`;
    // A line that has no length is drawn as a dot by its round ends.
    this.dotOf = (sample) => `M${pointOf(sample)}h.01`;
    const open = (run) => `M${run.map(pointOf).join("L")}`;
    const closed = (run) => `M${x(run[0])} ${HEIGHT}L${run.map(pointOf).join("L")}L${x(run.at(-1))} ${HEIGHT}Z`;
    // A run is a line, and a sample without neighbours a dot: as a line nobody could see it.
    this.line.setAttribute("d", lines.filter((run) => run.length > 1).map(open).join(""));
    this.dots.setAttribute("d", lines.filter((run) => run.length === 1).map(([one]) => this.dotOf(one)).join(""));
    this.area.setAttribute("d", lines.map(closed).join(""));
    const isLimitInSight = this.limit !== null && this.limit <= top;
    this.mark.setAttribute("d", isLimitInSight ? `M0 ${y(this.limit)}H${WIDTH}` : "");
    say(this.limitName, isLimitInSight ? `limit ${this.shown(this.limit)}` : "");
    say(this.top, this.shown(top));
    this.read();
    const now = last[this.column] === null ? this.quiet : this.shown(last[this.column]);
    this.plot.setAttribute("aria-label", `${this.title}: ${now} now, at most ${this.shown(most)} within ten minutes`);
  }

  /** Shows the number at the cursor, or the newest one. */
  read() {
    const last = samples.at(-1);
    const isNow = cursor === null;
    const sample = isNow ? newest(this.column) : nearest(last[0] - cursor * 1000);
    const number = sample?.[this.column];
    say(this.value, number == null ? this.quiet : this.shown(number));
    this.value.classList.toggle("quiet", number == null);
    // The point that the number is of.
    this.dot.setAttribute("d", number == null ? "" : this.dotOf(sample));
    this.cursor.setAttribute("d", isNow ? "" : `M${WIDTH * (1 - cursor / SPAN_S)} 0V${HEIGHT}`);
    say(this.end, isNow ? "now" : `${duration(Math.round(cursor))} ago`);
  }

  /** The smallest round number above all samples. */
  scale(most) {
    let top = this.least;
    while (top < most * 1.05) top = this.steps(top);
    return top;
  }
}

/** The step after `top`, out of 1, 2, 5, 10, 20, 50 … */
export function decimal(top) {
  const digit = Math.round(top / 10 ** Math.floor(Math.log10(top) + 1e-9));
  return top * (digit === 2 ? 2.5 : 2);
}

const TIMES = [10, 20, 30, 60, 120, 300, 600, 1800, 3600, 7200, 21600, 86400];

/** The step after `top` for seconds: from ten on, the steps follow minutes and hours. */
export function time(top) {
  if (top < 5) return decimal(top);
  return TIMES.find((step) => step > top) ?? top * 2;
}

function runs(known) {
  const found = [];
  for (const sample of known) {
    const run = found.at(-1);
    if (run && sample[0] - run.at(-1)[0] <= HOLE_S * 1000) run.push(sample);
    else found.push([sample]);
  }
  return found;
}

/** The newest sample with a number, if it is recent: some seconds have no deliveries. */
function newest(column) {
  const last = samples.at(-1);
  return samples.findLast((sample) => sample[column] !== null && last[0] - sample[0] <= HOLE_S * 1000);
}

function nearest(time) {
  return samples.reduce((best, sample) => (Math.abs(sample[0] - time) < Math.abs(best[0] - time) ? sample : best));
}

let cursor = null;

function point(secondsAgo) {
  cursor = secondsAgo === null ? null : Math.min(Math.max(secondsAgo, 0), SPAN_S);
  if (samples.length) charts.forEach((chart) => chart.read());
}
