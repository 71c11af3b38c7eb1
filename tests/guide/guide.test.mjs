// Every command of the guide is run as a reader runs it, and prints what the page shows.

import assert from "node:assert/strict";
import { existsSync, readFileSync, readdirSync } from "node:fs";
import { dirname, join, relative } from "node:path";
import { test } from "node:test";
import { fileURLToPath } from "node:url";
import { patternOf, stepsOf } from "./page.mjs";
import { Reader } from "./reader.mjs";

const ROOT = fileURLToPath(new URL("../..", import.meta.url));
const GUIDE = join(ROOT, "docs/guide");
/** The pages to follow: the README and the guide, or those that PAGE names. */
const PAGES = ["README.md", ...readdirSync(GUIDE).map((name) => `docs/guide/${name}`)]
  .filter((path) => path.endsWith(".md") && path.includes(process.env.PAGE ?? ""));

for (const path of PAGES) {
  const steps = stepsOf(readFileSync(join(ROOT, path), "utf8"), path);
  test(`${path}: every block does what the page says`, async (t) => {
    const reader = await Reader.start(t, steps);
    for (const step of steps) {
      await reader.does(step).catch((error) => {
        throw new Error(`${path}:${step.line}: ${error.message}`, { cause: error });
      });
    }
  });
}

test("a block that is neither run nor marked as not run is refused", () => {
  assert.throws(() => stepsOf("```js\nalert(1);\n```\n"), /page:1: .*neither run nor marked/);
  assert.throws(() => stepsOf("```\nls\n```\n"), /page:1: .*neither run nor marked/);
  assert.throws(() => stepsOf("```text\noutput\n```\n"), /the output of no block/);
  assert.throws(() => stepsOf("<!-- not run: no -->\n```sh\nls\n```\n"), /nobody knows/);
  assert.throws(() => stepsOf("<!-- repaet -->\n```sh\nls\n```\n"), /nobody knows/);
  assert.throws(() => stepsOf("<!-- repeat -->\n```sh\nls\n```\n"), /none is shown/);
  assert.deepEqual(stepsOf("```sh\nls\n```\n\n```text\na\n```\n").map(({ kind, output }) => [kind, output]),
    [["run", "a\n"]]);
});

test("an output fits only if all of it is shown", () => {
  const fits = (shown, output) => patternOf(shown, { isWhole: true }).test(output);
  assert(fits("a … c\n…\nd", "a b c\nmore\nlines\nd\n"));
  assert(fits("a\n…\nd", "a\nd\n"));
  assert(!fits("a", "a\nb\n"));
  assert(!fits("b", "a\nb\n"));
  assert(!fits("a.c", "abc\n"));
});

test("a reader notices a command that fails, and an output that is another one", async (t) => {
  const follows = async (page) => {
    const steps = stepsOf(page);
    const reader = await Reader.start(t, steps);
    for (const step of steps) await reader.does(step);
  };
  await follows("```sh\nA=1\n```\n\n```sh\necho $A\n```\n\n```text\n1\n```\n");
  await assert.rejects(follows("```sh\nfalse\ntrue\n```\n"), /exits with 1/);
  await assert.rejects(follows("```sh\necho 1\n```\n\n```text\n2\n```\n"), /the output is:\n1/);
  await assert.rejects(follows("<!-- exits with 2 -->\n```sh\nexit 1\n```\n"), /exits with 1, and not/);
  await assert.rejects(follows("<!-- part of: README.md -->\n```js\nno such line\n```\n"), /does not have/);
});

/** The anchors of a page, as the hosts of repositories make them from headings. */
function anchorsOf(markdown) {
  const headings = markdown.replace(/^```.*?^```/gms, "").matchAll(/^#+ (.+)$/gm);
  return [...headings].map(([, text]) => text.replace(/\[(.+?)\]\(.*?\)/g, "$1").toLowerCase()
    .replace(/[^\p{L}\p{N}\s_-]/gu, "").replace(/ /g, "-"));
}

test("every link of every page leads to a file and a heading that exist", () => {
  const docs = readdirSync(join(ROOT, "docs"), { recursive: true }).map((path) => join("docs", path));
  const top = ["README.md", "ARCHITECTURE.md", "CONTRIBUTING.md", "SECURITY.md", "examples/README.md"];
  const pages = [...docs, ...top].filter((path) => path.endsWith(".md"));
  assert(pages.length > 25, `${pages.length} pages`);
  const dead = [];
  for (const page of pages) {
    const text = readFileSync(join(ROOT, page), "utf8").replace(/^```.*?^```/gms, "");
    const links = [...text.matchAll(/\]\(([^)\s]+)\)/g), ...text.matchAll(/src(?:set)?="([^"]+)"/g)];
    for (const [, link] of links) {
      if (/^[a-z]+:/.test(link)) continue;
      const [path, anchor] = link.split("#");
      const file = path ? join(ROOT, dirname(page), path) : join(ROOT, page);
      const isThere = existsSync(file) && (!anchor || anchorsOf(readFileSync(file, "utf8")).includes(anchor));
      if (!isThere) dead.push(`${page}: ${link}`);
    }
  }
  assert.deepEqual(dead, []);
});

test("the index names every page of docs/, and every picture is readable in light and dark", () => {
  const index = readFileSync(join(ROOT, "docs/README.md"), "utf8");
  const pages = readdirSync(join(ROOT, "docs"), { recursive: true }).filter((path) => path.endsWith(".md"));
  const unnamed = pages.filter((path) => path !== "README.md" && !index.includes(`](${path})`));
  assert.deepEqual(unnamed, []);
  const pictures = readdirSync(join(GUIDE, "pictures")).map((name) => join(GUIDE, "pictures", name));
  const guide = readdirSync(GUIDE).filter((name) => name.endsWith(".md"))
    .map((name) => readFileSync(join(GUIDE, name), "utf8")).join("\n");
  for (const picture of pictures) {
    const text = readFileSync(picture, "utf8");
    assert(text.includes("prefers-color-scheme: dark"), relative(ROOT, picture));
    assert(/<title>[^<]+<\/title>/.test(text), `${relative(ROOT, picture)} has a title`);
    assert(guide.includes(`pictures/${relative(join(GUIDE, "pictures"), picture)}`), `${picture} is shown`);
  }
});
