// `aftercommit dev` for the tests, further SSE servers, and what their clients receive.

import { randomBytes } from "node:crypto";
import { readFileSync } from "node:fs";
import { join } from "node:path";
import pg from "pg";
import { AFTERCOMMIT, LIMIT, Process, atEnd, directoryFor, eventually } from "./processes.mjs";

export * from "./processes.mjs";

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
    dev.env.USER = "ana";
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
