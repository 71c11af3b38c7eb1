// The writing half of the protocol in front of an aftercommit server, as far as the suite needs it to write
// what it then reads: PUT names a topic, POST appends to it by `outbox.append`, GET and HEAD go to the server
// as they are. Not a part of aftercommit.

import { once } from "node:events";
import { createServer, request } from "node:http";
import pg from "pg";

const JSON_TYPE = "application/json";
const TEXT_TYPE = "text/plain";
const PAYLOAD_BYTES_MAX = 1024 * 1024;

const typeOf = (header) => header?.split(";")[0].trim().toLowerCase();

/** An answer of this program itself. */
class Answer extends Error {
  constructor(status, headers = {}) {
    super(`${status}`);
    Object.assign(this, { status, headers });
  }
}

const bodyOf = async (incoming) => {
  const chunks = [];
  for await (const chunk of incoming) chunks.push(chunk);
  return Buffer.concat(chunks).toString("utf8");
};

/** The payloads of a body. An array stands for its items. */
const payloadsOf = (type, body) => {
  if (type != JSON_TYPE) return body == "" ? [] : [JSON.stringify(body)];
  let parsed;
  try {
    parsed = JSON.parse(body);
  } catch {
    throw new Answer(400);
  }
  return (Array.isArray(parsed) ? parsed : [parsed]).map((item) => JSON.stringify(item));
};

export class WritingHalf {
  /** In front of the server at `sseUrl`, whose topics `token` may read. */
  static async start(databaseUrl, sseUrl, token) {
    const half = new WritingHalf();
    half.sse = new URL(sseUrl);
    half.authorization = `Bearer ${token}`;
    half.pool = new pg.Pool({ connectionString: databaseUrl, max: 8 });
    half.streams = new Map();
    half.topics = 0;
    half.server = createServer((incoming, outgoing) => void half.serve(incoming, outgoing));
    half.server.listen(0, "127.0.0.1");
    await once(half.server, "listening");
    half.url = `http://127.0.0.1:${half.server.address().port}`;
    return half;
  }

  async end() {
    this.server.closeAllConnections();
    this.server.close();
    await this.pool.end();
  }

  async serve(incoming, outgoing) {
    try {
      const url = new URL(incoming.url, this.url);
      switch (incoming.method) {
        case "PUT": throw await this.put(url, incoming);
        case "POST": throw await this.post(url, incoming);
        case "DELETE": throw this.delete(url);
        default: this.forward(url, incoming, outgoing);
      }
    } catch (answer) {
      const status = answer instanceof Answer ? answer.status : 500;
      if (status == 500) console.error(answer);
      outgoing.writeHead(status, { "x-content-type-options": "nosniff", ...answer.headers }).end();
    }
  }

  stream(url) {
    const stream = this.streams.get(url.pathname);
    if (!stream) throw new Answer(404);
    return stream;
  }

  async put(url, incoming) {
    const body = await bodyOf(incoming);
    const type = typeOf(incoming.headers["content-type"]) ?? TEXT_TYPE;
    if (type != JSON_TYPE && type != TEXT_TYPE) return new Answer(415);
    const found = this.streams.get(url.pathname);
    if (found) return new Answer(found.type == type ? 200 : 409, await found.headers);
    const stream = { type, topic: `suite.${++this.topics}` };
    this.streams.set(url.pathname, stream);
    stream.headers = this.create(stream, body);
    return new Answer(201, { ...await stream.headers, location: url.href });
  }

  async create(stream, body) {
    const headers = { authorization: this.authorization };
    const tail = await fetch(this.urlOf(stream), { method: "HEAD", headers });
    stream.tail = tail.headers.get("stream-next-offset");
    const payloads = body == "" ? [] : payloadsOf(stream.type, body);
    stream.appended = payloads.length > 0 ? this.append(stream, payloads) : Promise.resolve();
    await stream.appended;
    return { "content-type": stream.type, "stream-next-offset": stream.tail };
  }

  async post(url, incoming) {
    const stream = this.stream(url);
    const body = await bodyOf(incoming);
    const type = typeOf(incoming.headers["content-type"]);
    if (!type || body == "") return new Answer(400);
    if (type != stream.type) return new Answer(409);
    if (body.length > PAYLOAD_BYTES_MAX) return new Answer(413);
    const payloads = payloadsOf(type, body);
    if (payloads.length == 0) return new Answer(400);
    await stream.headers;
    // One after the other, as the writers of a topic do.
    stream.appended = stream.appended.then(() => this.append(stream, payloads));
    await stream.appended;
    return new Answer(204, { "stream-next-offset": stream.tail });
  }

  delete(url) {
    this.stream(url);
    this.streams.delete(url.pathname);
    return new Answer(204);
  }

  /** Appends in one transaction, and waits until the server shows it: the suite reads at once. */
  async append(stream, payloads) {
    const client = await this.pool.connect();
    try {
      await client.query("begin");
      for (const payload of payloads) {
        await client.query("select outbox.append($1, 'MESSAGE', $2::json)", [stream.topic, payload]);
      }
      await client.query("commit");
      await client.query("notify outbox");
    } finally {
      client.release();
    }
    for (let left = payloads.length; left > 0;) {
      const url = `${this.urlOf(stream)}?offset=${stream.tail}&live=long-poll`;
      const page = await fetch(url, { headers: { authorization: this.authorization } });
      if (!page.ok) throw new Error(`${page.status} for ${url}`);
      stream.tail = page.headers.get("stream-next-offset");
      if (page.status == 200) left -= (await page.json()).length;
    }
  }

  urlOf(stream) {
    return new URL(`/ds/${stream.topic}`, this.sse).href;
  }

  /** Gives the request to the server, and its answer back. Only the stream's name and the token are ours. */
  forward(url, incoming, outgoing) {
    const stream = incoming.method == "OPTIONS" ? { topic: "suite" } : this.stream(url);
    const form = stream.type == TEXT_TYPE ? "data=text" : "";
    const query = [url.search.slice(1), form].filter(Boolean).join("&");
    const outbound = request({
      hostname: this.sse.hostname,
      port: this.sse.port,
      method: incoming.method,
      path: `/ds/${stream.topic}?${query}`,
      headers: { ...incoming.headers, host: this.sse.host, authorization: this.authorization },
    });
    outbound.on("response", (answer) => {
      outgoing.writeHead(answer.statusCode, answer.headers);
      outgoing.flushHeaders();
      answer.pipe(outgoing);
    });
    outbound.on("error", () => outgoing.destroy());
    outgoing.on("close", () => outbound.destroy());
    incoming.pipe(outbound);
  }
}
