// Real servers: `aftercommit dev` (Postgres, Redis, a relay), an `aftercommit sse` of its own that a test may
// kill, stop and start again, and a session of psql that appends events.

import { spawn } from "node:child_process";
import { createHmac, randomBytes } from "node:crypto";
import { once } from "node:events";
import { mkdtempSync, readFileSync, rmSync } from "node:fs";
import { createServer } from "node:net";
import { tmpdir } from "node:os";
import { join, resolve } from "node:path";
import { createInterface } from "node:readline";

/** The longest wait for anything that must happen, and for new servers. */
export const LIMIT_MS = 30_000;
const START_MS = 90_000;

const program = process.env.AFTERCOMMIT ??
  resolve(import.meta.dirname, "../../..", process.env.CARGO_TARGET_DIR ?? "target", "debug/aftercommit");

const children = new Set();
process.on("exit", () => children.forEach((child) => child.kill(child.lastSignal)));
for (const signal of ["SIGINT", "SIGTERM", "SIGHUP"]) process.on(signal, () => process.exit(1));

/** Starts a program. It ends with this process, by `lastSignal` where it has not ended before. */
export const start = (command, args, options, lastSignal = "SIGKILL") => {
  const child = Object.assign(spawn(command, args, options), { lastSignal });
  children.add(child);
  child.on("error", (error) => { throw error; });
  child.ended = once(child, "exit").then(() => children.delete(child));
  return child;
};

export const sleep = (ms) => new Promise((resolve) => setTimeout(resolve, ms));

/** Asks until the answer is truthy, and returns it. */
export const eventually = async (what, ask, limit = LIMIT_MS) => {
  const deadline = Date.now() + limit;
  for (;;) {
    const answer = await ask();
    if (answer) return answer;
    if (Date.now() > deadline) throw new Error(`not within ${limit} ms: ${what}`);
    await sleep(20);
  }
};

const freePort = async () => {
  const server = createServer().listen(0, "127.0.0.1");
  await once(server, "listening");
  const { port } = server.address();
  server.close();
  await once(server, "close");
  return port;
};

/** An `aftercommit sse` at one address, whichever process it is. */
class Sse {
  constructor(port, env) {
    this.env = { ...env, AFTERCOMMIT_SSE_LISTEN: `127.0.0.1:${port}` };
    this.url = `http://127.0.0.1:${port}`;
  }

  async start(settings = {}) {
    const env = { ...this.env, ...settings };
    this.process = start(program, ["sse"], { env, stdio: ["ignore", "ignore", "pipe"] });
    this.log = "";
    this.process.stderr.on("data", (text) => { this.log += text; });
    await eventually("the sse server is ready", async () => {
      if (this.process.exitCode != null) throw new Error(`the sse server ended:\n${this.log}`);
      const ready = await fetch(`${this.url}/readyz`).catch(() => undefined);
      return ready?.ok;
    });
  }

  async end(signal) {
    this.process.kill(signal);
    // A process that a test has stopped would never take another signal.
    this.process.kill("SIGCONT");
    await this.process.ended;
  }

  async metric(name) {
    const text = await (await fetch(`${this.url}/metrics`)).text();
    return Number(text.split("\n").find((line) => line.startsWith(`${name} `))?.split(" ")[1]);
  }
}

/** Everything that a client needs on the server's side. */
export class System {
  static async start() {
    const system = new System();
    system.secret = randomBytes(32).toString("hex");
    system.directory = mkdtempSync(join(tmpdir(), "aftercommit-client-"));
    const file = join(system.directory, "env");
    const env = {
      PATH: process.env.PATH,
      HOME: process.env.HOME,
      AFTERCOMMIT_JWT_SECRET: system.secret,
      AFTERCOMMIT_JWT_LEEWAY_SECONDS: "0",
      // More than what is appended while a server restarts or a tab hangs, and less than 500.
      AFTERCOMMIT_REDIS_HISTORY_MAX_EVENTS: "300",
      AFTERCOMMIT_API_LISTEN: "127.0.0.1:0",
      AFTERCOMMIT_SSE_LISTEN: "127.0.0.1:0",
      AFTERCOMMIT_RELAY_LISTEN: "127.0.0.1:0",
    };
    const options = { env, stdio: ["ignore", "ignore", "pipe"] };
    // It ends its servers before it ends itself.
    system.dev = start(program, ["dev", "--ephemeral", "--env-file", file], options, "SIGTERM");
    let log = "";
    system.dev.stderr.on("data", (text) => { log += text; });
    const variables = await eventually("aftercommit dev is up", () => {
      if (system.dev.exitCode != null) throw new Error(`aftercommit dev ended:\n${log}`);
      try {
        return readFileSync(file, "utf8");
      } catch (error) {
        if (error.code == "ENOENT") return undefined;
        throw error;
      }
    }, START_MS);
    const { DATABASE_URL, REDIS_URL } =
      Object.fromEntries(variables.trim().split("\n").map((line) => line.split(/=(.*)/)));
    system.psql = new Psql(DATABASE_URL);
    system.sse = new Sse(await freePort(), {
      ...env,
      DATABASE_URL,
      REDIS_URL,
      AFTERCOMMIT_SSE_RETRY_MS: "100",
      AFTERCOMMIT_SSE_HEARTBEAT_SECONDS: "1",
      AFTERCOMMIT_SSE_REPAIR_WAIT_MS: "500",
    });
    return system;
  }

  async end() {
    await this.psql.end();
    if (children.has(this.sse.process)) await this.sse.end("SIGKILL");
    this.dev.kill("SIGTERM");
    await this.dev.ended;
    rmSync(this.directory, { recursive: true, maxRetries: 20, retryDelay: 100 });
  }

  /** A token that may read these topics. */
  token(subscribe, seconds = 3600) {
    const encode = (value) => Buffer.from(JSON.stringify(value)).toString("base64url");
    const iat = Math.floor(Date.now() / 1000);
    const claims = { sub: "ana", iat, exp: iat + seconds, subscribe };
    const text = `${encode({ alg: "HS256", typ: "JWT" })}.${encode(claims)}`;
    return `${text}.${createHmac("sha256", this.secret).update(text).digest("base64url")}`;
  }

  /** Revokes the tokens for a topic. */
  async revoke(topic) {
    const { DATABASE_URL, PATH, HOME } = this.sse.env;
    const env = { DATABASE_URL, PATH, HOME };
    const command = ["revoke", "--topic", topic, "--who", "tests", "--reason", "a test"];
    const child = start(program, command, { env, stdio: "ignore" });
    await child.ended;
    if (child.exitCode != 0) throw new Error(`revoke ended with ${child.exitCode}`);
  }

  /** Appends the numbers from `from` up to `to`, each as an event of its own transaction. */
  async append(topic, from, to) {
    for (let n = from; n < to; n++) {
      await this.psql.run(`select outbox.append('${topic}', 'N', '{"n":${n}}')`);
    }
  }

  /** Appends numbers until the returned function is called, which returns how many there are. */
  keepAppending(...topics) {
    let stopped = false;
    const appending = (async () => {
      let n = 0;
      for (; !stopped; n++) {
        for (const topic of topics) await this.append(topic, n, n + 1);
        await sleep(25);
      }
      return n;
    })();
    return () => {
      stopped = true;
      return appending;
    };
  }
}

/** A session of psql. */
class Psql {
  constructor(url) {
    const { PATH, HOME } = process.env;
    const options = { env: { PATH, HOME }, stdio: ["pipe", "pipe", "pipe"] };
    this.process = start("psql", ["-qAtX", "-v", "ON_ERROR_STOP=1", url], options);
    this.waiting = [];
    let errors = "";
    this.process.stderr.on("data", (text) => { errors += text; });
    let rows = [];
    createInterface(this.process.stdout).on("line", (line) => {
      if (line != "done") return rows.push(line);
      this.waiting.shift().resolve(rows);
      rows = [];
    });
    this.process.on("exit", () => {
      this.waiting.forEach(({ reject }) => reject(new Error(`psql ended: ${errors}`)));
    });
  }

  /** The rows of a statement. */
  run(sql) {
    return new Promise((resolve, reject) => {
      this.waiting.push({ resolve, reject });
      this.process.stdin.write(`${sql};\n\\echo done\n`);
    });
  }

  async end() {
    this.process.stdin.end();
    await this.process.ended;
  }
}
