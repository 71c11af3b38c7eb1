// Real processes for the tests: `aftercommit dev`, further SSE servers, the applications, and what they say.

import { spawn } from "node:child_process";
import { randomBytes } from "node:crypto";
import { mkdtempSync, readFileSync, rmSync } from "node:fs";
import { createServer } from "node:net";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import pg from "pg";

export const EXAMPLES = fileURLToPath(new URL("..", import.meta.url));
export const AFTERCOMMIT = process.env.AFTERCOMMIT ?? join(EXAMPLES, "../target/debug/aftercommit");

/** How long a test waits for anything, in milliseconds. */
const LIMIT = 30_000;

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
export async function eventually(what, check) {
  const deadline = Date.now() + LIMIT;
  for (;;) {
    const found = await check();
    if (found) return found;
    if (Date.now() > deadline) throw new Error(`not within ${LIMIT / 1000} s: ${what}`);
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
  constructor(command, { cwd = EXAMPLES, env = {}, ready }) {
    this.name = command.join(" ");
    this.output = "";
    this.child = spawn(command[0], command.slice(1), { cwd, env: { ...process.env, ...env } });
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
    this.child.kill(signal);
    return this.ended;
  }
}

/** `aftercommit dev` with fresh data: its addresses, and a connection to its database. */
export class Dev {
  static async start(t) {
    const dev = new Dev();
    dev.secret = randomBytes(32).toString("hex");
    const file = join(directoryFor(t), "env");
    const anyPort = Object.fromEntries(
      ["API", "SSE", "RELAY"].map((role) => [`AFTERCOMMIT_${role}_LISTEN`, "127.0.0.1:0"]));
    const env = { AFTERCOMMIT_JWT_SECRET: dev.secret, AFTERCOMMIT_SSE_DRAIN_SECONDS: "0", ...anyPort };
    const command = [AFTERCOMMIT, "dev", "--ephemeral", "--env-file", file];
    dev.process = new Process(command, { env, ready: /aftercommit is up/ });
    atEnd(t, () => dev.process.end());
    await dev.process.ready;
    dev.env = Object.fromEntries(
      readFileSync(file, "utf8").trim().split("\n").map((line) => line.split(/=(.*)/s, 2)));
    dev.env.AFTERCOMMIT_JWT_SECRET = dev.secret;
    dev.pool = new pg.Pool({ connectionString: dev.env.DATABASE_URL, max: 20 });
    atEnd(t, () => dev.pool.end());
    return dev;
  }

  /** The rows of a statement. */
  async query(sql, values) {
    return (await this.pool.query(sql, values)).rows;
  }

  /** A session of its own in the database, which ends with the test. */
  async session(t) {
    const session = new pg.Client({ connectionString: this.env.DATABASE_URL });
    await session.connect();
    atEnd(t, () => session.end());
    return session;
  }

  /** Runs a command of `aftercommit` to its end, and returns its output. */
  async runs(...command) {
    const process = new Process([AFTERCOMMIT, ...command], { env: this.env });
    const code = await process.ended;
    if (code !== 0) throw new Error(`${process.name} ended (${code}):\n${process.output}`);
    return process.output;
  }

  /** Starts an SSE server of its own on `port`. */
  async sse(t, port, settings = {}) {
    const env = { ...this.env, AFTERCOMMIT_SSE_LISTEN: `127.0.0.1:${port}`, ...settings };
    const server = new Process([AFTERCOMMIT, "sse"], { env, ready: /sse listens/ });
    atEnd(t, () => server.end());
    await server.ready;
    return server;
  }

  /** The first `count` events of a topic, as a client receives them from the beginning of its history. */
  async reads(topic, count) {
    const token = (await this.runs("token", "--user", "test", "--subscribe", topic)).trim();
    const url = `${this.env.SSE_URL}/streams/${topic}?from=earliest`;
    const signal = AbortSignal.timeout(LIMIT);
    const response = await fetch(url, { headers: { Authorization: `Bearer ${token}` }, signal });
    if (!response.ok) throw new Error(`${url}: ${response.status} ${await response.text()}`);
    let text = "";
    const events = () => text.split("\n\n").slice(0, -1)
      .map((block) => Object.fromEntries(block.split("\n").map((line) => line.split(/: ?(.*)/s, 2))))
      .filter(({ data }) => data !== undefined);
    for await (const bytes of response.body.pipeThrough(new TextDecoderStream())) {
      text += bytes;
      if (events().length >= count) break;
    }
    return events();
  }

  /** Waits until that many sessions wait for locks of others. */
  waitingForLocks(count) {
    const sql = "select from pg_stat_activity where wait_event_type = 'Lock'";
    return eventually(`${count} sessions wait for locks`, async () =>
      (await this.query(sql)).length >= count);
  }

  /** The events of a topic in the log, in order. */
  events(topic) {
    const sql = "select event_id, type, payload::text from outbox.event where topic = $1 order by id";
    return this.query(sql, [topic]);
  }
}
