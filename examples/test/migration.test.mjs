// An outbox table in Debezium's layout is moved to the log under writers that never stop (docs/recipes.md).

import assert from "node:assert/strict";
import { randomUUID } from "node:crypto";
import { readFileSync } from "node:fs";
import { join } from "node:path";
import { test } from "node:test";
import pg from "pg";
import { Dev, EXAMPLES, atEnd, eventually } from "./harness.mjs";

const sql = (name) => readFileSync(join(EXAMPLES, "recipes/sql", `${name}.sql`), "utf8");

const AGGREGATES = ["1", "2", "3", "4", "5"];
const WRITERS = 6;

/** The application's tables, in the layout of Debezium's outbox. `position` is there for the second way. */
const OLD_SCHEMA = `
  create table outboxevent (
    id uuid not null primary key default gen_random_uuid(), aggregatetype varchar(255) not null,
    aggregateid varchar(255) not null, type varchar(255) not null, payload jsonb,
    position bigint generated always as identity);
  create table orders (id varchar(255) primary key, version int not null);
  create role app login password 'app';
  grant select, update on orders to app;
  grant select, insert, update, delete on outboxevent to app;`;

/** A writer that knows nothing of the move: it changes an order, and inserts into the old table. */
class Writer {
  constructor(connectionString, number) {
    this.db = new pg.Client({ connectionString });
    this.number = number;
    this.committed = [];
    this.goesOn = true;
  }

  async run() {
    await this.db.connect();
    for (let turn = 0; this.goesOn; turn++) await this.write(turn);
    await this.db.end();
  }

  async write(turn) {
    const aggregate = AGGREGATES[(turn + this.number) % AGGREGATES.length];
    const update = "update orders set version = version + 1 where id = $1 returning version";
    const insert = "insert into outboxevent (id, aggregatetype, aggregateid, type, payload) "
      + "values ($1, 'order', $2, 'ORDER_CHANGED', $3) returning id";
    await this.db.query("begin");
    const [{ version }] = (await this.db.query(update, [aggregate])).rows;
    const event = { id: randomUUID(), aggregate, version };
    // Every other writer uses statements that it prepared before the move.
    const name = this.number % 2 ? "insert" : undefined;
    const values = [event.id, aggregate, JSON.stringify({ version })];
    const { rows, rowCount } = await this.db.query({ name, text: insert, values });
    assert.deepEqual([rowCount, rows[0].id], [1, event.id], "the insert answers as it always did");
    const commits = turn % 4 !== 3;
    await this.db.query(commits ? "commit" : "rollback");
    if (commits) this.committed.push(event);
  }
}

/** The relay that is to go: it hands over a few rows, deletes them, and commits. */
class OldRelay {
  constructor(connectionString) {
    this.db = new pg.Client({ connectionString });
    this.delivered = [];
    this.goesOn = true;
  }

  async run() {
    await this.db.connect();
    while (this.goesOn) await this.step();
    await this.db.end();
  }

  async step() {
    const next = "select id, aggregateid, payload from outboxevent order by position limit 3 for update";
    await this.db.query("begin");
    const { rows } = await this.db.query(next);
    for (const { id, aggregateid, payload } of rows) {
      this.delivered.push({ id, aggregate: aggregateid, version: payload.version });
    }
    await this.db.query("delete from outboxevent where id = any($1)", [rows.map(({ id }) => id)]);
    await this.db.query("commit");
    if (!rows.length) await new Promise((wake) => setTimeout(wake, 20)); // a poller's pause
  }
}

/** An application whose writers and old relay run when the test begins. */
class Application {
  static async start(t) {
    const app = Object.assign(new Application(), { dev: await Dev.start(t) });
    await app.dev.query(OLD_SCHEMA);
    await app.dev.query("insert into orders select unnest($1::text[]), 0", [AGGREGATES]);
    await app.dev.query(await app.dev.runs("grants", "--writer", "app"));
    const address = new URL(app.dev.env.DATABASE_URL);
    Object.assign(address, { username: "app", password: "app" });
    app.relay = new OldRelay(address.href);
    app.writers = Array.from({ length: WRITERS }, (_, number) => new Writer(address.href, number));
    const all = [app.relay, ...app.writers];
    for (const each of all) each.done = each.run();
    // Rejects when one of them fails; never resolves.
    app.failed = Promise.all(all.map(({ done }) => done)).then(() => new Promise(() => {}));
    app.failed.catch(() => {}); // A wait that is going on fails with it; without one, the next does.
    atEnd(t, () => { all.forEach((each) => { each.goesOn = false; }); });
    return app;
  }

  /** Waits while the application runs. */
  waits(what, check) {
    return Promise.race([eventually(what, check), this.failed]);
  }

  committed() {
    return this.writers.flatMap((writer) => writer.committed);
  }

  /** Waits until the writers have committed this many more events. */
  more(count) {
    const wanted = this.committed().length + count;
    return this.waits(`${count} more events are committed`, () => this.committed().length >= wanted);
  }

  /** Waits until the old relay has not delivered some of the events. */
  lags() {
    return this.waits("the old relay lags", async () =>
      (await this.dev.query("select from outboxevent")).length > 5);
  }

  /** Lets these finish what they are at. */
  async stop(these) {
    for (const each of these) each.goesOn = false;
    for (const each of these) await each.done;
  }
}

/** What a client of the new relay receives, from the beginning of each topic. */
async function received(dev) {
  const topics = AGGREGATES.map((aggregate) => `order:${aggregate}`);
  const streams = topics.map(async (topic) => {
    const expected = (await dev.events(topic)).length;
    const events = await dev.reads(topic, expected);
    const aggregate = topic.slice("order:".length);
    return events.map(({ data }) => ({ aggregate, version: JSON.parse(data).version }));
  });
  return (await Promise.all(streams)).flat();
}

/** Each committed event came once, by one of the two relays, in the order of its aggregate's versions. */
function assertWhole(committed, old, fresh) {
  assert(old.length > 0 && fresh.length > 0, "both relays had something to do");
  for (const aggregate of AGGREGATES) {
    const own = (event) => event.aggregate === aggregate;
    const versions = (events) => events.filter(own).map(({ version }) => version);
    const expected = versions(committed).sort((a, b) => a - b);
    assert.deepEqual([...versions(old), ...versions(fresh)], expected, `the events of order ${aggregate}`);
    assert.deepEqual(expected, expected.map((_, at) => at + 1), "versions without a hole");
  }
}

test("the old relay delivers its rest, and the new one everything after it", async (t) => {
  const app = await Application.start(t);
  const { dev, relay } = app;
  await app.more(100);
  assert.deepEqual(await dev.query(sql("move-check")), [], "nothing that the log would refuse");
  await dev.runs("pause", "--reason", "the outbox table moves");
  await app.lags();
  await dev.query(sql("move-switch"));
  await app.more(100);
  await app.waits("the old relay has delivered its rest", async () =>
    (await dev.query("select from outboxevent_before")).length === 0);
  await app.stop([relay]);
  const states = await dev.query("select distinct state from outbox.event_status");
  assert.deepEqual(states, [{ state: "pending" }], "the new relay has waited");
  await dev.runs("resume", "--reason", "the outbox table has moved");
  await app.more(100);
  await app.stop(app.writers);
  assertWhole(app.committed(), relay.delivered, await received(dev));
});

test("the rest is moved with the switch, and the old relay has nothing left", async (t) => {
  const app = await Application.start(t);
  const { dev, relay } = app;
  await app.more(100);
  await app.lags();
  await dev.query(sql("move-switch").replace(/commit;\s*$/, `${sql("move-rest")}commit;`));
  const delivered = relay.delivered.length;
  await app.more(100);
  await app.stop([relay, ...app.writers]);
  assert.equal(relay.delivered.length, delivered, "the old relay got nothing after the switch");
  assertWhole(app.committed(), relay.delivered, await received(dev));
});

test("events keep their ids, writers get a lock, and rows that do not fit are found", async (t) => {
  const dev = await Dev.start(t);
  await dev.query(OLD_SCHEMA);
  const into = "insert into outboxevent (aggregatetype, aggregateid, type)";
  const bad = `${into} values ('order', 'a b', 'X') returning id`;
  const [{ id: found }] = await dev.query(bad);
  assert.deepEqual((await dev.query(sql("move-check"))).map(({ id }) => id), [found]);
  await dev.query("delete from outboxevent");
  await dev.query(sql("move-switch"));
  const insert = `${into} values ('order', '7', $1) returning id`;
  const [first, second] = [await dev.session(t), await dev.session(t)];
  await first.query("begin");
  const [{ id: firstId }] = (await first.query(insert, ["FIRST"])).rows;
  const inserting = second.query(insert, ["SECOND"]);
  await dev.waitingForLocks(1);
  await first.query("commit");
  const [{ id: secondId }] = (await inserting).rows;
  const events = (await dev.events("order:7")).map((event) => Object.values(event));
  assert.deepEqual(events, [[firstId, "FIRST", "null"], [secondId, "SECOND", "null"]]);
  await assert.rejects(dev.query(bad), /outbox\.append refuses the topic/);
});
