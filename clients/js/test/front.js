// A site: its pages, with the server's streams behind it as a proxy has them. A test may have it answer
// streams itself, and sees which streams were asked for.

import { once } from "node:events";
import { readFileSync } from "node:fs";
import { createServer, request } from "node:http";
import { join } from "node:path";

const TYPES = { ".js": "text/javascript", ".html": "text/html; charset=utf-8" };

export class Front {
  /** Serves `files` (path → text, or what makes it), the client, and the streams of `sse`. */
  static async start(sse, files = {}) {
    const front = new Front();
    front.streams = []; // the URLs of the streams that were asked for
    front.answer = undefined; // (request, response) → whether it has answered
    front.server = createServer(async (incoming, outgoing) => {
      const url = new URL(incoming.url, "http://front");
      if (url.pathname == "/sign-in") {
        const token = url.searchParams.get("token");
        return outgoing.setHeader("set-cookie", `aftercommit_token=${token}; HttpOnly; Path=/`).end();
      }
      if (url.pathname == "/streams") front.streams.push(url);
      if (url.pathname == "/streams" || url.pathname == "/api/stream-tickets") {
        if (!front.answer?.(incoming, outgoing)) pass(incoming, outgoing, sse.url);
        return;
      }
      const file = files[url.pathname] ?? fileOf(url.pathname);
      // Also for a frame without an origin.
      outgoing.setHeader("access-control-allow-origin", "*");
      const text = typeof file == "function" ? await file(url) : file;
      outgoing.setHeader("content-type", TYPES[/\.\w+$/.exec(url.pathname)?.[0]] ?? TYPES[".html"]);
      outgoing.end(text);
    });
    front.server.listen(0, "127.0.0.1");
    await once(front.server, "listening");
    front.url = `http://localhost:${front.server.address().port}`;
    return front;
  }

  async end() {
    this.server.closeAllConnections();
    this.server.close();
    await once(this.server, "close");
  }
}

const fileOf = (path) =>
  (path == "/aftercommit.js" ? readFileSync(join(import.meta.dirname, "..", path)) : "<!doctype html>");

const pass = (incoming, outgoing, target) => {
  const { method, headers } = incoming;
  const onward = request(target + incoming.url, { method, headers, agent: false }, (answer) => {
    outgoing.writeHead(answer.statusCode, answer.headers);
    answer.on("error", () => outgoing.destroy());
    answer.pipe(outgoing);
  });
  onward.on("error", () => {
    if (outgoing.headersSent) outgoing.destroy();
    else outgoing.writeHead(502).end();
  });
  outgoing.on("close", () => onward.destroy());
  incoming.pipe(onward);
};
