// What docs/guide/signing-in.md says about a cookie that is renewed, in a browser.

import assert from "node:assert/strict";
import { createServer } from "node:http";
import { test } from "node:test";
import { stepsOf } from "./page.mjs";
import { Reader } from "./reader.mjs";

/** The browser is up before the short token is made, which is renewed long before it ends. */
const STEPS = `
<!-- terminal 1, until: aftercommit is up -->
\`\`\`sh
AFTERCOMMIT_SSE_CORS_ORIGINS=http://127.0.0.1:8000 AFTERCOMMIT_JWT_LEEWAY_SECONDS=0 \\
  aftercommit dev --env-file dev.env
\`\`\`
\`\`\`sh
set -a; . ./dev.env; set +a
\`\`\`
<!-- browser opens: about:blank -->
\`\`\`sh
SHORT=$(aftercommit token --user ana --subscribe order:42 --valid-for 20)
LONG=$(aftercommit token --user ana --subscribe order:42)
\`\`\`
<!-- browser opens: http://127.0.0.1:8000/#$SHORT -->
<!-- browser shows: open -->
\`\`\`sh
psql "$DATABASE_URL" -qc "select outbox.append('order:42', 'T', '1')"
\`\`\`
<!-- browser shows: event 1 -->
<!-- browser opens: http://127.0.0.1:8000/#$LONG -->
<!-- browser shows: token_expired -->
\`\`\`sh
psql "$DATABASE_URL" -qc "select outbox.append('order:42', 'T', '2')"
\`\`\`
<!-- browser shows: event 2 -->
`;

/** Another token behind the # renews the cookie, and does not load the page again. */
const page = (sse) => `<!doctype html><pre></pre><script>
  const tell = (text) => document.querySelector("pre").append(text + "\\n");
  const renew = () => document.cookie = "aftercommit_token=" + location.hash.slice(1) + "; SameSite=Lax";
  renew();
  addEventListener("hashchange", renew);
  const events = new EventSource("http://127.0.0.1:${sse}/streams/order:42", { withCredentials: true });
  events.addEventListener("open", () => tell("open"));
  events.addEventListener("T", ({ data }) => tell("event " + data));
  events.addEventListener("token_expired", () => tell("token_expired"));
</script>`;

test("EventSource goes on by itself behind its last event if the cookie was renewed in time", async (t) => {
  const steps = stepsOf(STEPS);
  const reader = await Reader.start(t, steps);
  const server = createServer((request, response) => {
    response.setHeader("Content-Type", "text/html").end(page(reader.ports.get("8081")));
  });
  server.listen(reader.ports.get("8000"), "127.0.0.1");
  t.after(() => server.close());
  for (const step of steps) await reader.does(step);
  const log = await reader.browser.runs("return document.querySelector('pre').innerText");
  assert.equal(log.trim(), "open\nevent 1\ntoken_expired\nopen\nevent 2");
});
