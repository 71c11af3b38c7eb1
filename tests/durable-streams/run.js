// Runs the published suite of the Durable Streams protocol, and that protocol's own client, against real
// servers. Fails unless every test of the suite passes that is not out of scope.

import { spawn } from "node:child_process";
import { once } from "node:events";
import { startVitest } from "vitest/node";
import { System } from "../../clients/js/test/servers.js";
import { outOfScope } from "./out-of-scope.js";
import { WritingHalf } from "./writing-half.js";

/** Longer than a long poll waits. */
const TEST_MS = 40_000;
const AT_ONCE = 12;

const isNamedBy = (name) => (entry) => entry.endsWith(" > ") ? name.startsWith(entry) : name == entry;
const groupOf = (name) => outOfScope.find(({ tests }) => tests.some(isNamedBy(name)));

/** Matches the full names of tests that are in scope, whose parts vitest joins by a space here. */
const inScope = () => {
  const escaped = (text) => text.replaceAll(" > ", " ").replace(/[.*+?^${}()|[\]\\]/g, "\\$&");
  const entries = outOfScope.flatMap(({ tests }) => tests);
  const names = entries.map((entry) => entry.endsWith(" > ") ? escaped(entry) : `${escaped(entry)}$`);
  return new RegExp(`^(?!(?:${names.join("|")}))`);
};

const runSuite = async () => {
  const system = await System.start();
  await system.sse.start({ AFTERCOMMIT_SSE_CORS_ORIGINS: "https://example.com" });
  const { DATABASE_URL } = system.sse.env;
  const half = await WritingHalf.start(DATABASE_URL, system.sse.url, system.token(["*"]));
  process.env.SUITE_URL = half.url;
  const vitest = await startVitest("test", ["suite.js"], {
    root: import.meta.dirname,
    config: false,
    include: ["suite.js"],
    watch: false,
    testTimeout: TEST_MS,
    testNamePattern: inScope(),
    sequence: { concurrent: true },
    maxConcurrency: AT_ONCE,
    reporters: [{}],
  });
  const modules = vitest.state.getTestModules();
  const tests = modules.flatMap((module) => [...module.children.allTests()]);
  const results = tests.map((test) => {
    const { state, errors } = test.result();
    return { name: test.fullName, state, error: errors?.[0]?.message ?? "" };
  });
  await vitest.close();
  await half.end();
  await system.end();
  return results;
};

/** Prints what was run, and returns what is wrong. */
const judge = (results) => {
  const wrong = [];
  const count = { passed: 0, total: results.length };
  const left = new Map(outOfScope.map((group) => [group, 0]));
  for (const { name, state, error } of results) {
    const group = groupOf(name);
    if (group) left.set(group, left.get(group) + 1);
    if (group ? state != "skipped" : state != "passed") wrong.push(`${state}: ${name} ${error}`);
    if (state == "passed") count.passed++;
  }
  for (const entry of outOfScope.flatMap(({ tests }) => tests)) {
    if (!results.some(({ name }) => isNamedBy(name)(entry))) wrong.push(`no such test: ${entry}`);
  }
  if (count.passed == 0) wrong.push("no test of the suite has passed");
  console.log(`\nOf ${count.total} tests of the suite ${count.passed} passed. Out of scope:`);
  for (const [{ reason }, tests] of left) console.log(`${`${tests}`.padStart(4)}  ${reason}`);
  return wrong;
};

const runClient = async () => {
  const options = ["--test", "--test-timeout=150000", "--test-force-exit", "--test-reporter=spec"];
  const child = spawn(process.execPath, [...options, "client.test.js"], { cwd: import.meta.dirname, stdio: "inherit" });
  const [code] = await once(child, "exit");
  return code == 0 ? [] : ["the protocol's client: see its tests above"];
};

const wrong = (await Promise.all([runClient(), runSuite().then(judge)])).flat();
for (const line of wrong) console.error(`WRONG ${line}`);
process.exit(wrong.length == 0 ? 0 : 1);
