// The upload: creates a session, and completes or fails its photos one after the other, as a backend would.

import { at, made, say } from "./dom.js";
import { Refusal, call, pause, post } from "./server.js";

const AGAIN_MS = 1000;
const REASON = "the disk is full";

export class Upload {
  /** `began(session)` is awaited before the first photo is sent; `changed()` follows each photo. */
  constructor(token, { began, changed, failed }) {
    Object.assign(this, { token, began, changed, failed });
    Object.assign(this, { photos: [], total: 0, sent: 0, session: null, isRunning: false, isFresh: false });
    at("upload").addEventListener("submit", (event) => {
      event.preventDefault();
      if (this.isRunning) return;
      this.run().catch((error) => this.failed(error.message)).finally(() => this.ended());
    });
    at("photos").addEventListener("input", () => this.preview());
    at("failures").addEventListener("input", () => this.preview());
    this.preview();
  }

  /** Shows the photos of the next upload. */
  preview() {
    if (!this.isRunning) this.draw(this.plan());
  }

  /** For each photo, whether it shall fail. */
  plan() {
    const bounded = (id, most) => Math.min(Math.max(Math.trunc(Number(at(id).value)) || 0, 0), most);
    const photos = Math.max(bounded("photos", 200), 1);
    const failures = bounded("failures", photos);
    // Spread evenly over the session.
    return Array.from({ length: photos }, (_, n) => {
      const share = (n + 1) * failures;
      return Math.floor(share / photos) > Math.floor((share - failures) / photos);
    });
  }

  draw(plan) {
    this.isFresh = true;
    this.photos = plan.map((fails, n) => {
      const photo = { number: n + 1, fails, state: "waits" };
      photo.tile = made("button", { type: "button", class: "tile", click: () => this.toggle(photo) });
      this.show(photo);
      return photo;
    });
    at("tiles").replaceChildren(...this.photos.map(({ tile }) => tile));
  }

  toggle(photo) {
    if (photo.state !== "waits") return;
    photo.fails = !photo.fails;
    this.show(photo);
  }

  show({ tile, number, state, fails }) {
    const word = state === "waits" ? (fails ? "will fail" : "waits") : state;
    tile.dataset.state = word;
    tile.setAttribute("aria-label", `Photo ${number}: ${word}`);
    tile.setAttribute("aria-disabled", String(state !== "waits"));
  }

  async run() {
    this.isRunning = true;
    say(at("start"), "Uploading …");
    at("start").setAttribute("aria-disabled", "true");
    // Photos that the reader has chosen by hand are kept; those of the last session are not.
    if (!this.isFresh) this.draw(this.plan());
    this.isFresh = false;
    const created = await post("/api/upload/sessions", { totalPhotos: this.photos.length }, this.token);
    this.session = created.sessionId;
    this.total = this.photos.length;
    this.sent = 0;
    await this.began(this.session);
    const pace = Number(at("pace").value);
    for (const [n, photo] of this.photos.entries()) {
      photo.id = created.photoIds[n];
      const due = performance.now() + pace;
      await this.settle(photo);
      await pause(Math.max(due - performance.now(), 0));
    }
  }

  ended() {
    this.isRunning = false;
    say(at("start"), "Start another");
    at("start").removeAttribute("aria-disabled");
    this.changed();
  }

  async settle(photo) {
    const path = `/api/upload/sessions/${this.session}/photos/${photo.id}`;
    const { fails } = photo;
    photo.state = "is sent";
    const { tile } = photo;
    at("tiles").scrollTop = tile.offsetTop + tile.offsetHeight - at("tiles").clientHeight;
    // Repeating it changes nothing, so it is repeated until there is an answer.
    for (;;) {
      try {
        if (fails) await post(`${path}/fail`, { reason: REASON }, this.token);
        else await call(`${path}/complete`, { method: "POST", token: this.token });
        break;
      } catch (error) {
        if (!(error instanceof Refusal) || (error.status && error.status < 500)) throw error;
        this.failed(error.message);
        await pause(AGAIN_MS);
      }
    }
    photo.state = fails ? "failed" : "uploaded";
    this.show(photo);
    this.sent += 1;
    this.changed();
  }
}
