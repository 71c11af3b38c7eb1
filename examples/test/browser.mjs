// An unmodified Chromium, headless, driven by WebDriver.

import { Process, atEnd, directoryFor, eventually } from "./processes.mjs";

const ELEMENT = "element-6066-11e4-a52e-4f735466cecf"; // the key of an element in WebDriver's answers

const ARGUMENTS = [
  "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage",
  "--disable-background-networking", "--disable-component-update", "--disable-extensions", "--no-first-run",
  "--no-proxy-server", "--window-size=1000,900",
];

export class Browser {
  /** Starts a browser with a profile of its own; it ends with the test. */
  static async start(t) {
    const browser = new Browser();
    const profile = directoryFor(t);
    const started = /started successfully on port (\d+)/;
    browser.driver = new Process(["chromedriver", "--port=0"], { ready: started });
    atEnd(t, () => browser.driver.end());
    await browser.driver.ready;
    const sessions = `http://127.0.0.1:${started.exec(browser.driver.output)[1]}/session`;
    const options = { args: [...ARGUMENTS, `--user-data-dir=${profile}`] };
    const wanted = { alwaysMatch: { browserName: "chrome", "goog:chromeOptions": options } };
    const { sessionId } = await command(sessions, { capabilities: wanted });
    browser.session = `${sessions}/${sessionId}`;
    atEnd(t, () => fetch(browser.session, { method: "DELETE" })); // ends the browser, before its driver
    return browser;
  }

  goes(url) {
    return command(`${this.session}/url`, { url });
  }

  /** Runs a script in the page and returns its value. */
  runs(script, ...args) {
    return command(`${this.session}/execute/sync`, { script, args });
  }

  async #element(selector) {
    const found = await eventually(`${selector} is on the page`, async () =>
      (await command(`${this.session}/elements`, { using: "css selector", value: selector }))[0]);
    return `${this.session}/element/${found[ELEMENT]}`;
  }

  /** Clicks what a person would click. */
  async clicks(selector) {
    await command(`${await this.#element(selector)}/click`, {});
  }

  async types(selector, text) {
    await command(`${await this.#element(selector)}/value`, { text });
  }

  /** Waits until the text of an element fits. */
  waits(selector, pattern) {
    const script = "return document.querySelector(arguments[0])?.innerText ?? ''";
    return eventually(`${selector} shows ${pattern}`, async () =>
      pattern.test(await this.runs(script, selector)));
  }

  /** A picture of the page as a PNG. */
  async picture() {
    const { value } = await (await fetch(`${this.session}/screenshot`)).json();
    return Buffer.from(value, "base64");
  }
}

async function command(url, body) {
  const response = await fetch(url, { method: "POST", body: JSON.stringify(body) });
  const { value } = await response.json();
  if (!response.ok) throw new Error(`${url}: ${value.message}`);
  return value;
}
