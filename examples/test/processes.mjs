// What tests in Node share: processes that end with their test, directories, free ports, waits.

import { spawn } from "node:child_process";
import { mkdtempSync, rmSync } from "node:fs";
import { createServer } from "node:net";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { fileURLToPath } from "node:url";

export const EXAMPLES = fileURLToPath(new URL("..", import.meta.url));
export const AFTERCOMMIT = process.env.AFTERCOMMIT ?? join(EXAMPLES, "../target/debug/aftercommit");

/** How long a test waits for anything, in milliseconds. */
export const LIMIT = 30_000;

const running = new Set();
const directories = new Set();
// If the runner is stopped, nothing stays behind. `dev` ends its servers, and a driver its browser.
for (const signal of ["SIGINT", "SIGTERM", "SIGHUP"]) {
  process.on(signal, async () => {
    await Promise.all([...running].map((each) => each.end()));
    directories.forEach(remove);
    process.exit(1);
  });
}

const cleanups = new WeakMap();

/** Has `clean` run when the test has ended; what was begun last ends first. */
export function atEnd(t, clean) {
  if (!cleanups.has(t)) {
    cleanups.set(t, []);
    t.after(async () => {
      for (const each of cleanups.get(t).reverse()) await each();
    });
  }
  cleanups.get(t).push(clean);
}

/** A directory of the test's own. */
export function directoryFor(t) {
  const directory = mkdtempSync(join(tmpdir(), "aftercommit-examples-"));
  directories.add(directory);
  atEnd(t, () => remove(directory));
  return directory;
}

function remove(directory) {
  rmSync(directory, { recursive: true, force: true });
  directories.delete(directory);
}

/** Waits until `check` returns something true, and returns it. */
export async function eventually(what, check, limit = LIMIT) {
  const deadline = Date.now() + limit;
  for (;;) {
    const found = await check();
    if (found) return found;
    if (Date.now() > deadline) throw new Error(`not within ${limit / 1000} s: ${what}`);
    await new Promise((wake) => setTimeout(wake, 50));
  }
}

/** A port of this machine that is free now. */
export function freePort() {
  return new Promise((resolve, reject) => {
    const server = createServer().on("error", reject);
    server.listen(0, "127.0.0.1", () => {
      const { port } = server.address();
      server.close(() => resolve(port));
    });
  });
}

/** A process whose output is kept for messages. */
export class Process {
  /**
   * With `group`, signals go to all processes that the command starts, as from a terminal, and `env` is the
   * whole environment.
   */
  constructor(command, { cwd = EXAMPLES, env = {}, ready, group = false }) {
    this.name = command.join(" ");
    this.output = "";
    this.group = group;
    this.child = spawn(command[0], command.slice(1), {
      cwd, env: group ? env : { ...process.env, ...env }, detached: group,
    });
    running.add(this);
    this.ended = new Promise((resolve) => {
      this.child.on("error", (error) => resolve(error.message));
      this.child.on("close", (code, signal) => resolve(signal ?? code));
    }).finally(() => running.delete(this));
    const said = new Promise((resolve) => {
      for (const stream of [this.child.stdout, this.child.stderr]) {
        stream.setEncoding("utf8").on("data", (text) => {
          this.output += text;
          if (ready?.test(this.output)) resolve("ready");
        });
      }
    });
    const died = this.ended.then((how) => {
      throw new Error(`${this.name} ended (${how}):\n${this.output}`);
    });
    this.ready = Promise.race([said, died]);
    this.ready.catch(() => {}); // Matters to those who wait for it: a process that a test ends has not died.
  }

  /** Ends the process with `signal` and returns its exit code, or the signal. */
  end(signal = "SIGTERM") {
    if (this.group && running.has(this)) process.kill(-this.child.pid, signal);
    else this.child.kill(signal);
    return this.ended;
  }
}
