// Requests to this page's own server, with the key that stands after # in the page's address.

const key = location.hash.slice(1);

/** Whether the address has a key at all. */
export const hasKey = key !== "";

/** An answer that is not a success. `status` is 0 if there was no answer. */
export class Refusal extends Error {
  constructor(status, message) {
    super(message);
    this.status = status;
  }
}

/** Sends a request. Returns the answer's JSON, or null if it has no body. */
export async function call(path, { method = "GET", body, token = key } = {}) {
  const headers = { authorization: `Bearer ${token}` };
  if (body !== undefined) headers["content-type"] = "application/json";
  const sent = fetch(path, { method, headers, body: body === undefined ? undefined : JSON.stringify(body) });
  const answer = await sent.catch(() => {
    throw new Refusal(0, "aftercommit dev does not answer");
  });
  const text = await answer.text();
  if (answer.ok) return text ? JSON.parse(text) : null;
  throw new Refusal(answer.status, detailOf(text) ?? `the answer was ${answer.status}`);
}

function detailOf(text) {
  try {
    return JSON.parse(text).detail;
  } catch {
    return null;
  }
}

/** Sends a change. */
export const post = (path, body, token) => call(path, { method: "POST", body, token });

/** A promise of the end of this many milliseconds. */
export const pause = (ms) => new Promise((resolve) => setTimeout(resolve, ms));
