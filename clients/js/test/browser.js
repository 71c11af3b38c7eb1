// A real Chromium, headless, driven over a pipe: it ends when this process does.

import { existsSync, mkdtempSync } from "node:fs";
import { rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { delimiter, join } from "node:path";

import { eventually, LIMIT_MS, start } from "./servers.js";

// As root, without a display, and without calls home.
const ARGUMENTS = [
  "--headless=new",
  "--no-sandbox",
  "--disable-gpu",
  "--disable-dev-shm-usage",
  "--disable-quic",
  "--disable-breakpad",
  "--disable-background-networking",
  "--disable-component-update",
  "--disable-sync",
  "--disable-extensions",
  "--no-first-run",
  "--no-proxy-server",
  "--remote-debugging-pipe",
];

const NAMES = ["chromium", "chromium-browser", "google-chrome", "google-chrome-stable"];

const program = () => {
  if (process.env.CHROMIUM) return process.env.CHROMIUM;
  const paths = process.env.PATH.split(delimiter);
  const found = NAMES.flatMap((name) => paths.map((path) => join(path, name))).find(existsSync);
  if (!found) throw new Error(`no ${NAMES[0]} on PATH: scripts/install-servers installs it`);
  return found;
};

export class Browser {
  static async start() {
    const browser = new Browser();
    browser.profile = mkdtempSync(join(tmpdir(), "aftercommit-chromium-"));
    const arguments_ = [...ARGUMENTS, `--user-data-dir=${browser.profile}`];
    const stdio = ["ignore", "ignore", "ignore", "pipe", "pipe"];
    browser.process = start(program(), arguments_, { stdio });
    browser.answers = new Map(); // the number of a command → its promise
    browser.tabs = new Map(); // session → tab
    let text = "";
    browser.process.stdio[4].setEncoding("utf8").on("data", (chunk) => {
      const messages = (text + chunk).split("\0");
      text = messages.pop();
      for (const message of messages) browser.receive(JSON.parse(message));
    });
    browser.process.on("exit", () => {
      browser.answers.forEach(({ reject, timer }) => {
        clearTimeout(timer);
        reject(new Error("the browser ended"));
      });
    });
    await browser.call("Browser.getVersion");
    return browser;
  }

  receive({ id, method, params, result, error, sessionId }) {
    if (!id) return this.tabs.get(sessionId)?.notice(method, params);
    const answer = this.answers.get(id);
    this.answers.delete(id);
    clearTimeout(answer?.timer);
    if (error) answer?.reject(new Error(error.message));
    else answer?.resolve(result);
  }

  call(method, params = {}, sessionId = undefined) {
    return new Promise((resolve, reject) => {
      const id = this.next = (this.next ?? 0) + 1;
      const timer = setTimeout(() => {
        this.answers.delete(id);
        reject(new Error(`${method}: no answer within ${LIMIT_MS} ms`));
      }, LIMIT_MS);
      this.answers.set(id, { resolve, reject, timer });
      this.process.stdio[3].write(`${JSON.stringify({ id, method, params, sessionId })}\0`);
    });
  }

  /** A user of their own: cookies, locks and channels are not those of others. */
  async context() {
    const { browserContextId } = await this.call("Target.createBrowserContext");
    return new Context(this, browserContextId);
  }

  async end() {
    this.process.kill("SIGTERM");
    await this.process.ended;
    // Its last processes still write for a moment. (rmSync tries again on Windows alone.)
    await rm(this.profile, { recursive: true, force: true, maxRetries: 30, retryDelay: 100 });
  }
}

class Context {
  constructor(browser, id) {
    Object.assign(this, { browser, id });
  }

  async open(url) {
    const { browser } = this;
    const target = { url: "about:blank", browserContextId: this.id };
    const { targetId } = await browser.call("Target.createTarget", target);
    const { sessionId } = await browser.call("Target.attachToTarget", { targetId, flatten: true });
    const tab = new Tab(browser, targetId, sessionId);
    browser.tabs.set(sessionId, tab);
    await tab.call("Page.enable");
    await tab.call("Runtime.enable");
    await tab.goTo(url);
    return tab;
  }

  async end() {
    await this.browser.call("Target.disposeBrowserContext", { browserContextId: this.id });
  }
}

class Tab {
  constructor(browser, targetId, sessionId) {
    Object.assign(this, { browser, targetId, sessionId, errors: [], loads: 0 });
  }

  notice(method, params) {
    if (method == "Page.loadEventFired") this.loads++;
    if (method == "Inspector.targetCrashed") this.crashed = true;
    if (method == "Runtime.exceptionThrown") this.errors.push(params.exceptionDetails);
  }

  call(method, params) {
    return this.browser.call(method, params, this.sessionId);
  }

  async goTo(url) {
    const { loads } = this;
    const { errorText } = await this.call("Page.navigate", { url });
    if (errorText) throw new Error(`${url}: ${errorText}`);
    await eventually("the page is loaded", () => this.loads > loads);
  }

  /** Goes back to the page before this one. */
  async goBack() {
    const { currentIndex, entries } = await this.call("Page.getNavigationHistory");
    await this.call("Page.navigateToHistoryEntry", { entryId: entries[currentIndex - 1].id });
  }

  /** Calls a function in the page, and returns what it returns. */
  async run(call, ...arguments_) {
    const expression = `(${call})(...${JSON.stringify(arguments_)})`;
    const { result, exceptionDetails } =
      await this.call("Runtime.evaluate", { expression, awaitPromise: true, returnByValue: true });
    if (exceptionDetails) throw new Error(exceptionDetails.exception?.description ?? exceptionDetails.text);
    return result.value;
  }

  /** Shows this tab, and hides the one of the same window that was shown. */
  show() {
    return this.call("Page.bringToFront");
  }

  async close() {
    await this.browser.call("Target.closeTarget", { targetId: this.targetId });
  }

  /** Kills the tab's process. */
  async crash() {
    // It sends no answer.
    this.call("Page.crash").catch(() => {});
    await eventually("the tab has crashed", () => this.crashed);
  }
}

