// The protocol's own client reads a topic directly from a real server.

import { after, before, test } from "node:test";
import { deepStrictEqual, ok, strictEqual } from "node:assert/strict";
import { stream } from "@durable-streams/client";
import { System, eventually } from "../../clients/js/test/servers.js";

/** Longer than the server lets a stream of events last. */
const LASTS_MS = 90_000;

let system, reader;
before(async () => {
  system = await System.start();
  await system.sse.start();
  reader = system.token(["*"]);
});
after(() => system.end());

const read = (topic, options) => stream({
  url: `${system.sse.url}/ds/${topic}`,
  headers: { authorization: `Bearer ${reader}` },
  backoffOptions: { initialDelay: 50, maxDelay: 200, multiplier: 2 },
  warnOnHttp: false,
  ...options,
});

/** Follows a topic of numbers, and counts the answers of the server. */
const follow = async (topic, live) => {
  const seen = { numbers: [], answers: 0 };
  const counted = async (...args) => {
    const answer = await fetch(...args);
    seen.answers += answer.ok ? 1 : 0;
    return answer;
  };
  seen.response = await read(topic, { live, fetch: counted });
  seen.response.subscribeJson((batch) => { seen.numbers.push(...batch.items.map((item) => item.n)); });
  return seen;
};

const upTo = (count) => Array.from({ length: count }, (_, n) => n);

for (const live of ["sse", "long-poll"]) {
  test(`it misses nothing while the server is killed and started again (${live})`, async () => {
    const topic = `killed.${live}`;
    await system.append(topic, 0, 5);
    const seen = await follow(topic, live);
    await eventually("the first numbers", () => seen.numbers.length == 5);
    const stop = system.keepAppending(`${topic}.later`, topic);
    await eventually("numbers come live", () => seen.numbers.length > 8);
    await system.sse.end("SIGKILL");
    await system.sse.start();
    const before = seen.numbers.length;
    await eventually("numbers come again", () => seen.numbers.length > before + 5);
    const count = await stop();
    await eventually("all have come", () => seen.numbers.length >= 5 + count);
    deepStrictEqual(seen.numbers, [...upTo(5), ...upTo(count)]);
    seen.response.cancel();
  });
}

test("it goes on when the server has ended a stream of events after its time", async () => {
  const seen = await follow("lasting", "sse");
  const stop = system.keepAppending("lasting");
  const begun = seen.answers;
  const isBack = () => seen.answers > begun + 1;
  await eventually("the server ends the response, and the client comes back", isBack, LASTS_MS);
  const count = await stop();
  await eventually("all have come", () => seen.numbers.length >= count);
  deepStrictEqual(seen.numbers, upTo(count));
  seen.response.cancel();
});

test("it reads a long topic in pages, to its end", async () => {
  await system.psql.run(
    "select outbox.append('long', 'N', json_build_object('n', n, 'fill', repeat('x', 5000))) " +
      "from generate_series(0, 199) n order by n",
  );
  // With `live: false` this client would read one page.
  const all = async () => (await (await read("long", { live: true })).json()).map((item) => item.n);
  const numbers = await eventually("all have arrived", async () => {
    const found = await all();
    return found.length == 200 && found;
  });
  deepStrictEqual(numbers, upTo(200));
});

test("it is told with 410 when its place cannot be continued from", async () => {
  const offset = `${"1".padStart(20, "0")}-${"999999".padStart(20, "0")}`;
  const error = await read("gone", { offset, live: false }).then(() => undefined, (error) => error);
  ok(error, "the read fails");
  strictEqual(error.status, 410, `${error}`);
});
