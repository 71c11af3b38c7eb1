// Follows a page of the guide as its reader does: terminals, files and a browser in one empty directory.

import assert from "node:assert/strict";
import { mkdirSync, readFileSync, symlinkSync, writeFileSync } from "node:fs";
import { dirname, join } from "node:path";
import { fileURLToPath } from "node:url";
import { Browser } from "../../examples/test/browser.mjs";
import {
  AFTERCOMMIT, Process, atEnd, directoryFor, eventually, freePort,
} from "../../examples/test/processes.mjs";
import { patternOf } from "./page.mjs";

const ROOT = fileURLToPath(new URL("../..", import.meta.url));
const PORTS = { API: "8080", SSE: "8081", RELAY: "8082" };

/** Runs `$1` with what an earlier block of this terminal has set, and keeps what it sets for the next one. */
const TERMINAL = `
  [ ! -f "$2" ] || . "$2" 2>/dev/null
  set -eo pipefail
  . "$1"
  declare -p | grep -Ev '^declare -[a-zA-Z]*r' >"$2"`;

export class Reader {
  static async start(t, steps) {
    const reader = new Reader();
    reader.t = t;
    const directory = directoryFor(t);
    reader.home = join(directory, "home");
    reader.scratch = join(directory, "scratch");
    [reader.home, reader.scratch, join(directory, "bin")].forEach((each) => mkdirSync(each));
    symlinkSync(AFTERCOMMIT, join(directory, "bin/aftercommit"));
    reader.ports = await portsOf(steps);
    const listen = Object.entries(PORTS).map(([role, port]) =>
      [`AFTERCOMMIT_${role}_LISTEN`, `127.0.0.1:${reader.ports.get(port)}`]);
    reader.env = {
      PATH: `${join(directory, "bin")}:${process.env.PATH}`, HOME: reader.home, USER: "ana", LANG: "C.UTF-8",
      PAGER: "cat", PSQLRC: "/dev/null", PYTHONUNBUFFERED: "1", ...Object.fromEntries(listen),
    };
    reader.terminals = new Map();
    return reader;
  }

  /** The page's text, with the ports of this test; and back. */
  #ours(text) {
    return text.replace(/\b\d{4,5}\b/g, (port) => this.ports.get(port) ?? port);
  }

  #theirs(text) {
    const back = new Map([...this.ports].map(([shown, ours]) => [`${ours}`, shown]));
    return text.replace(/\b\d{4,5}\b/g, (port) => back.get(port) ?? port);
  }

  /** Does a step of the page, and fails if it does not end as the page says. */
  async does(step) {
    switch (step.kind) {
      case "notRun": return;
      case "file": return this.#writes(step);
      case "part": return assertPart(step);
      case "run": return this.#runs(step, 0);
      case "exit": return this.#runs(step, Number(step.value));
      case "repeat": return this.#repeats(step);
      case "interrupt": return this.#interrupts(step);
      case "terminal": return this.#leaves(step);
      case "stop": return this.#stops(step.value);
      case "open": return this.#opens(step.value);
      case "show": return this.#sees(step.value);
      case "inBrowser": return (await this.#browser()).runs(this.#ours(step.text));
      default: throw new Error(`no reader does ${step.kind}`);
    }
  }

  #writes({ value, text }) {
    const path = join(this.home, value);
    mkdirSync(dirname(path), { recursive: true });
    writeFileSync(path, this.#ours(text));
  }

  /** Starts a block in a terminal. What one terminal sets, no other one has. */
  #start({ lang, text }, terminal = "main") {
    const script = join(this.scratch, `block-${this.started = (this.started ?? 0) + 1}`);
    writeFileSync(script, this.#ours(text));
    const file = lang === "sql" ? `${script}.sh` : script;
    if (lang === "sql") writeFileSync(file, `psql "$DATABASE_URL" -v ON_ERROR_STOP=1 <'${script}'\n`);
    const command = ["bash", "--norc", "-c", TERMINAL, "bash", file, join(this.scratch, `set-${terminal}`)];
    return new Process(command, { cwd: this.home, env: this.env, group: true });
  }

  async #runs(step, expected) {
    const process = this.#start(step);
    const code = await process.ended;
    const output = this.#theirs(process.output);
    assert.equal(code, expected, `it exits with ${code}, and not with ${expected}:\n${output}`);
    if (step.output !== undefined) assertShown(output, step.output);
  }

  async #repeats(step) {
    let [code, output] = [];
    const fits = patternOf(step.output, { isWhole: true });
    await eventually("the output that is shown", async () => {
      const process = this.#start(step);
      code = await process.ended;
      output = this.#theirs(process.output);
      return code === 0 && fits.test(`${output.trimEnd()}\n`);
    }).catch(() => {
      assertShown(output, step.output);
      assert.equal(code, 0, `it exits with ${code}:\n${output}`);
    });
  }

  /** Waits until a process that runs on has printed what is shown. */
  async #printed(process, step) {
    const shown = patternOf(step.output, { isWhole: false });
    const dead = process.ended.then(() => true);
    await eventually("the output that is shown", async () => {
      if (shown.test(`${this.#theirs(process.output)}\n`)) return true;
      if (await Promise.race([dead, false])) throw new Error("it has ended");
      return false;
    }).catch((error) =>
      assert.fail(`${error.message}:\n${this.#theirs(process.output)}\nthe page shows:\n${step.output}`));
  }

  async #interrupts(step) {
    const process = this.#start(step);
    atEnd(this.t, () => process.end());
    await this.#printed(process, step);
    await process.end("SIGINT");
  }

  async #leaves(step) {
    assert(!this.terminals.has(step.value), `terminal ${step.value} is busy`);
    const process = this.#start(step, step.value);
    this.terminals.set(step.value, process);
    atEnd(this.t, () => process.end());
    await this.#printed(process, step);
  }

  async #stops(terminal) {
    const process = this.terminals.get(terminal);
    assert(process, `nothing runs in terminal ${terminal}`);
    this.terminals.delete(terminal);
    await process.end("SIGINT");
  }

  async #browser() {
    return (this.browser ??= await Browser.start(this.t));
  }

  async #opens(url) {
    const process = this.#start({ lang: "sh", text: `printf %s "${url}"` });
    assert.equal(await process.ended, 0, process.output);
    await (await this.#browser()).goes(process.output);
  }

  async #sees(text) {
    const browser = await this.#browser();
    await eventually(`the page shows ${text}`, async () =>
      (await browser.runs("return document.body.innerText")).includes(text))
      .catch(async (error) =>
        assert.fail(`${error.message}; it shows:\n${await browser.runs("return document.body.innerText")}`));
  }
}

/** A free port for each port that the page names, and for those of `aftercommit dev`. */
async function portsOf(steps) {
  const named = new Set(Object.values(PORTS));
  for (const { text = "", value = "", output = "" } of steps) {
    for (const [, port] of `${text} ${value} ${output}`.matchAll(/(?:127\.0\.0\.1|localhost):(\d{4,5})\b/g)) {
      named.add(port);
    }
  }
  const ports = new Map();
  for (const port of named) ports.set(port, await freePort());
  return ports;
}

function assertShown(output, shown) {
  const fits = patternOf(shown, { isWhole: true }).test(`${output.trimEnd()}\n`);
  assert(fits, `the page shows:\n${shown}\nthe output is:\n${output}`);
}

/** Each run of lines between two `…` stands in the file as it is, but for its indentation. */
function assertPart({ value, text }) {
  const trimmed = (lines) => lines.split("\n").map((line) => line.trim()).join("\n");
  const file = trimmed(readFileSync(join(ROOT, value), "utf8"));
  for (const part of text.split(/^ *…\n/m)) {
    assert(file.includes(trimmed(part).trim()), `${value} does not have these lines:\n${part}`);
  }
}
