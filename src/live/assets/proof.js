// Compares what a client received with what Postgres has committed. Knows no page and no server.

const keyOf = (type, data) => `${type}\n${data}`;

/**
 * `committed` is a list of `{ type, payload }` in the order of the log, `received` a list of
 * `{ id, type, data }` in the order of arrival. Returns counts:
 *
 * - `received`: committed events that the client has, each counted once
 * - `missing`: committed events that it does not have, although it has a later one
 * - `behind`: committed events after the last one that it has
 * - `twice`: arrivals of an event that it had already
 * - `disordered`: arrivals of an event before the last one
 * - `unknown`: arrivals that are in no committed row
 */
export function compare(committed, received) {
  const rows = new Map();
  committed.forEach(({ type, payload }, row) => {
    const key = keyOf(type, payload);
    if (!rows.has(key)) rows.set(key, []);
    rows.get(key).push(row);
  });
  const counts = { received: 0, missing: 0, behind: 0, twice: 0, disordered: 0, unknown: 0 };
  const ids = new Set();
  const known = new Set(rows.keys());
  let last = -1;
  for (const { id, type, data } of received) {
    const key = keyOf(type, data);
    const row = ids.has(id) ? undefined : rows.get(key)?.shift();
    if (row === undefined) {
      counts[ids.has(id) || known.has(key) ? "twice" : "unknown"] += 1;
      continue;
    }
    ids.add(id);
    counts.received += 1;
    if (row < last) counts.disordered += 1;
    last = Math.max(last, row);
  }
  for (const left of [...rows.values()].flat()) counts[left < last ? "missing" : "behind"] += 1;
  return counts;
}

/** The sum of one count over all clients. */
export const sum = (counts, name) => counts.reduce((total, one) => total + one[name], 0);

const events = (n) => `${n} ${n === 1 ? "event" : "events"}`;

/**
 * The verdict, as `{ proof, text }`. `state` is what the page knows besides the counts: `photos`, `sent`,
 * `relay`, `redis`, `cut` (numbers of clients) and `isCalm` (everything runs, and nothing has moved for
 * long).
 */
export function judge(counts, committed, state) {
  const wrong = counts.map((one, at) => faultOf(one, at + 1, state.isCalm)).filter(Boolean);
  if (wrong.length) return { proof: "wrong", text: wrong.join(" ") };
  const most = Math.max(...counts.map(({ behind }) => behind));
  const isWhole = state.sent === state.photos && most === 0 && counts.every(({ unknown }) => unknown === 0);
  if (isWhole) {
    const reached = `each of the ${committed} committed events reached all ${counts.length} clients`;
    return { proof: "proven", text: `Proven: ${reached}, once and in order.` };
  }
  return { proof: "running", text: waiting(counts, most, state) };
}

/** What is wrong with a client's events, in a sentence; null if nothing is. */
function faultOf({ missing, behind, twice, disordered, unknown }, client, isCalm) {
  const lost = isCalm ? missing + behind : missing;
  if (lost) return `Client ${client} has missed ${events(lost)}.`;
  if (twice) return `Client ${client} has received ${events(twice)} twice.`;
  if (disordered) return `Client ${client} has received ${events(disordered)} out of order.`;
  if (unknown && isCalm) return `Client ${client} has received ${events(unknown)} that nobody committed.`;
  return null;
}

function waiting(counts, most, { photos, sent, relay, redis, cut }) {
  const uploaded = `${sent} of ${photos} photos.`;
  const wait = `${events(most)} ${most === 1 ? "waits" : "wait"}`;
  const inPostgres = most ? `: ${wait} in Postgres.` : ".";
  if (!relay) return `${uploaded} The relay is killed${inPostgres}`;
  if (!redis) return `${uploaded} Redis is stopped${inPostgres}`;
  if (cut.length && most) {
    const who = cut.length === 1 ? `Client ${cut[0]} is` : `Clients ${cut.join(", ")} are`;
    return `${uploaded} ${who} cut off: up to ${wait} in Redis.`;
  }
  return most ? `${uploaded} ${events(most)} on the way.` : uploaded;
}
