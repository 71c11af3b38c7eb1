// The package: its size, its types, its files.

import assert from "node:assert/strict";
import { execFileSync } from "node:child_process";
import { readFileSync } from "node:fs";
import { join } from "node:path";
import { test } from "node:test";
import { gzipSync } from "node:zlib";

import { minify } from "terser";

const root = join(import.meta.dirname, "..");
const read = (file) => readFileSync(join(root, file), "utf8");

const run = (program, ...arguments_) => {
  try {
    return execFileSync(program, arguments_, { cwd: root, encoding: "utf8" });
  } catch (error) {
    throw new Error(`${program} ${arguments_.join(" ")}\n${error.stdout}${error.stderr}`);
  }
};

test("the client has at most 2 kB, minified and compressed", async (t) => {
  const source = read("aftercommit.js");
  const { code } = await minify(source, { module: true });
  const bytes = gzipSync(code, { level: 9 }).length;
  t.diagnostic(`${bytes} bytes; as it stands, ${gzipSync(source, { level: 9 }).length}`);
  assert.ok(bytes <= 2048, `${bytes} bytes`);
});

test("the types are right, and refuse what the client does not take", () => {
  run("node_modules/.bin/tsc", "--project", "test");
});

test("the package holds its modules and their types, and depends on nothing", () => {
  const [{ files }] = JSON.parse(run("npm", "pack", "--dry-run", "--json"));
  assert.deepEqual(files.map(({ path }) => path).sort(), [
    "README.md", "aftercommit.d.ts", "aftercommit.js", "package.json", "react.d.ts", "react.js",
  ]);
  const { dependencies, peerDependenciesMeta, version } = JSON.parse(read("package.json"));
  assert.equal(dependencies, undefined);
  assert.deepEqual(peerDependenciesMeta, { react: { optional: true } });
  const [, released] = /^version = "(.*)"$/m.exec(read("../../Cargo.toml"));
  assert.equal(version, released, "the version of the server");
});

test("the lockfile names no registry", () => {
  assert.doesNotMatch(read("package-lock.json"), /"resolved"|:\/\//);
});
