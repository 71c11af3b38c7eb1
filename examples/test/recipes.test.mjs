// Each recipe of docs/recipes.md that can be run pays an order, and the event reaches a client.

import assert from "node:assert/strict";
import { readFileSync, readdirSync } from "node:fs";
import { join } from "node:path";
import { test } from "node:test";
import { Dev, EXAMPLES, Process } from "./harness.mjs";

const PYTHON = [join(EXAMPLES, ".venv/bin/python"), join(EXAMPLES, "test/recipes.py")];
const NODE = ["node", join(EXAMPLES, "test/recipes.mjs")];
const RUBY = ["ruby", join(EXAMPLES, "test/recipes.rb")];
const RECIPES = { sqlalchemy: PYTHON, django: PYTHON, drizzle: NODE, rails: RUBY };

test("an event of each recipe arrives, and none of a transaction that rolls back", async (t) => {
  const dev = await Dev.start(t);
  await dev.query("create table orders (id int primary key, status text not null)");
  const status = async (id) => (await dev.query("select status from orders where id = $1", [id]))[0].status;
  let id = 0;
  for (const [name, command] of Object.entries(RECIPES)) {
    id += 1;
    await dev.query("insert into orders values ($1, 'placed')", [id]);
    const run = async (settings) => {
      const process = new Process([...command, name, `${id}`], { env: { ...dev.env, ...settings } });
      assert.equal(await process.ended, 0, process.output);
      return process.output;
    };
    await t.test(name, async () => {
      assert.match(await run({ ABORT: "1" }), /rolled back/);
      assert.equal(await status(id), "placed");
      await run();
      assert.equal(await status(id), "paid");
      const events = await dev.reads(`order:${id}`, 1);
      assert.deepEqual(events.map(({ event, data }) => [event, JSON.parse(data)]),
        [["ORDER_PAID", { id, status: "paid" }]]);
    });
  }
});

test("the lockfiles work with every mirror: they name no registry", () => {
  for (const name of ["package-lock.json", "orders-node/package-lock.json"]) {
    const packages = Object.entries(JSON.parse(readFileSync(join(EXAMPLES, name), "utf8")).packages);
    assert(packages.length > 10, name);
    for (const [path, { resolved, integrity }] of packages) {
      assert.equal(resolved, undefined, path);
      assert(integrity || path === "", `${path} is pinned by its content`);
    }
  }
});

test("docs/recipes.md shows the files that the tests run", () => {
  const page = readFileSync(join(EXAMPLES, "../docs/recipes.md"), "utf8");
  const shown = [...page.matchAll(/<!-- (examples\/\S+) -->\n```\w+\n(.*?)```/gs)];
  for (const [, path, text] of shown) {
    assert.equal(text, readFileSync(join(EXAMPLES, "..", path), "utf8"), path);
  }
  const files = readdirSync(join(EXAMPLES, "recipes"), { recursive: true })
    .filter((path) => /\.(py|js|rb|sql)$/.test(path))
    .map((path) => `examples/recipes/${path}`);
  assert.deepEqual(shown.map(([, path]) => path).sort(), files.sort(), "each file is on the page");
});
