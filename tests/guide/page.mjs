// Reads a page of the guide: its blocks, and the comments that say how a test runs them. Runs nothing.
//
// A block of `sh` or `sql` is run as it stands, and must succeed. A block of `text` after it is its whole
// output, in which `…` stands for anything. A comment right before a block says otherwise:
//
//   <!-- terminal 1 -->        in a terminal of its own; it goes on when the output has been seen
//   <!-- then Ctrl-C -->       ended by Ctrl-C when the output has been seen
//                              (with `, until: TEXT` both wait for that text, and need no output)
//   <!-- repeat -->            repeated until its output is the one that is shown
//   <!-- exits with 1 -->      fails with this code
//   <!-- file: index.html -->  is written to this file
//   <!-- part of: PATH -->     stands in this file of the repository, which another test runs; `…` marks cuts
//   <!-- in the browser -->    runs in the browser's page (js)
//   <!-- not run: REASON -->   is not run
//
// And these stand alone:
//
//   <!-- Ctrl-C in terminal 1 -->
//   <!-- browser opens: URL -->    variables of the shell are replaced
//   <!-- browser shows: TEXT -->

const BLOCK = {
  terminal: /^terminal (\d)(?:, until: (?<until>.+))?$/,
  interrupt: /^(then Ctrl-C)(?:, until: (?<until>.+))?$/,
  repeat: /^repeat$/,
  exit: /^exits with (\d+)$/,
  file: /^file: (\S+)$/,
  part: /^part of: (\S+)$/,
  inBrowser: /^in the browser$/,
  notRun: /^not run: (.{10,})$/,
};
const ALONE = {
  stop: /^Ctrl-C in terminal (\d)$/,
  open: /^browser opens: (\S+)$/,
  show: /^browser shows: (.+)$/,
};
const RUN_BY_DEFAULT = ["sh", "sql"];

/** The steps of a page, in order: `{ kind, line, value, lang, text, output }`. */
export function stepsOf(markdown, name = "page") {
  const steps = [];
  let directive;
  for (const piece of piecesOf(markdown)) {
    const at = `${name}:${piece.line}`;
    if (piece.comment !== undefined) {
      if (directive) throw new Error(`${at}: no block follows on <!-- ${directive.comment} -->`);
      const alone = match(ALONE, piece.comment);
      if (alone) steps.push({ ...alone, line: piece.line });
      else directive = { comment: piece.comment, ...match(BLOCK, piece.comment) };
      if (directive && !directive.kind) throw new Error(`${at}: nobody knows <!-- ${piece.comment} -->`);
    } else {
      addBlock(steps, piece, directive, at);
      directive = undefined;
    }
  }
  if (directive) throw new Error(`${name}: no block follows on <!-- ${directive.comment} -->`);
  steps.forEach((step) => assertHasOutput(step, name));
  return steps;
}

function addBlock(steps, { line, lang, text }, directive, at) {
  if (directive) {
    const { kind, value, until } = directive;
    steps.push({ kind, value, line, lang, text, ...(until && { output: `…${until}…` }) });
  } else if (lang === "text") {
    const last = steps.at(-1);
    const hasOutput = last && ["run", "terminal", "interrupt", "repeat", "exit"].includes(last.kind);
    if (!hasOutput || last.output !== undefined) throw new Error(`${at}: this is the output of no block`);
    last.output = text;
  } else if (RUN_BY_DEFAULT.includes(lang)) {
    steps.push({ kind: "run", line, lang, text });
  } else {
    throw new Error(`${at}: the block of ${lang || "no language"} is neither run nor marked as not run`);
  }
}

function assertHasOutput({ kind, output, line }, name) {
  if (["terminal", "interrupt", "repeat"].includes(kind) && output === undefined) {
    throw new Error(`${name}:${line}: the block waits for an output, and none is shown`);
  }
}

/** The blocks and comments of a page, in order. */
function piecesOf(markdown) {
  const pieces = [];
  let block;
  markdown.split("\n").forEach((text, number) => {
    const fence = /^ *```(\w*)$/.exec(text);
    if (block && fence) {
      pieces.push(block);
      block = undefined;
    } else if (block) {
      block.text += `${text.slice(block.indent)}\n`;
    } else if (fence) {
      block = { line: number + 1, lang: fence[1], text: "", indent: text.indexOf("`") };
    } else {
      const comment = /^ *<!-- (.+) -->$/.exec(text);
      if (comment) pieces.push({ line: number + 1, comment: comment[1] });
    }
  });
  if (block) throw new Error(`line ${block.line}: a block without an end`);
  return pieces;
}

function match(forms, comment) {
  for (const [kind, form] of Object.entries(forms)) {
    const found = form.exec(comment);
    if (found) return { kind, value: found[1], until: found.groups?.until };
  }
}

/** Matches what a block of output shows: `…` is anything, and alone on a line any number of lines. */
export function patternOf(output, { isWhole }) {
  const lines = output.trimEnd().split("\n").map((line) =>
    line.trim() === "…" ? "(?:.*\\n)*?" : `${line.trimEnd().split("…").map(escaped).join(".*")}[ \\t]*\\n`);
  return new RegExp(isWhole ? `^\\n*${lines.join("")}\\n*$` : `(?:^|\\n)${lines.join("")}`);
}

const escaped = (text) => text.replace(/[.*+?^${}()|[\]\\]/g, "\\$&");
