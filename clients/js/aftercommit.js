// Events of an aftercommit server, on one stream for all tabs of a site. How to use it: docs/client.md.
//
// The tab that holds a Web Lock leads: it reads the stream, and passes every event on by a BroadcastChannel
// with the place before it. Each tab keeps its own place in each topic, and takes an event only from there:
// it drops what it has taken, and asks the leader to go back where something is missing. So a leader may
// close, crash or hang, and two may lead at once: no tab loses an event, and none takes it twice.

// Positive if the first place is the later one. A place is `<epoch>-<seq>`; none is after all others.
// (`kn` compares digits as numbers.)
const order = new Intl.Collator("en-u-kn").compare;

// What stands for a topic in the id of a stream: its 64-bit FNV-1a hash, folded to 32 bits.
const tagOf = (topic) => {
  let hash = 0xcbf29ce484222325n;
  for (const char of topic) {
    hash = BigInt.asUintN(64, (hash ^ BigInt(char.charCodeAt())) * 0x100000001b3n);
  }
  return BigInt.asUintN(32, hash ^ (hash >> 32n)).toString(16).padStart(8, 0);
};

const checked = (answer) => {
  if (answer.ok) return answer;
  throw answer;
};

export const connect = ({
  url = "/streams", ticket, token, share = url, hiddenMs = 60000, silenceMs = 45000, onState,
} = {}) => {
  const name = "aftercommit 1 " + share;
  let locks = share && globalThis.navigator?.locks;
  const queues = new Map(); // tag → the calls of the topic's handlers
  const places = new Map(); // tag → the topic, and the place up to which it was taken
  let joined, channel, leading, asleep, unheard, timer, live;
  let hiddenAt = Date.now();

  // The leader's.
  const at = new Map(); // tag → the place of the stream
  let wanted = new Map(); // tag → topic, of all tabs
  let present = new Map(); // the same, of the tabs that have answered the last roll call
  let stream; // AbortController

  const send = (message) => {
    channel?.postMessage(message);
    receive(message);
  };

  // Tells the leader this tab's topics and places; `behind` if the events after those have to come.
  const ask = (behind) => send({ behind, topics: places });

  const receive = (message) => {
    const { topics, behind, up = live, tag } = message;
    if (!topics) {
      if (behind != null) ask(behind);
      if (up != live) {
        live = up;
        Promise.resolve(up).then(onState);
      }
      if (places.has(tag)) take(message);
    } else if (leading) {
      for (const [tag, [topic, place]] of topics) {
        const here = at.get(tag);
        present.set(tag, topic);
        if (!wanted.has(tag) || behind && order(here, place) > 0) {
          wanted.set(tag, topic);
          if (place) at.set(tag, place);
          restart();
        } else if (here) {
          send({ tag, from: here, id: here });
        }
      }
      send({ up: live });
    }
  };

  const take = ({ tag, from, id, type, data, status }) => {
    const [topic, place] = places.get(tag);
    const step = order(id, place ?? from);
    const each = (handler, value) => queues.get(tag).forEach((queue) => queue(handler, value));
    const value = data && JSON.parse(data);
    if (status) {
      each("onError", { topic, status });
      queues.delete(tag);
      places.delete(tag);
    } else if (type == "reset") {
      each("refetch", value.reason);
      // A leader that hung may tell of a reset that is long over: no tab goes back for it, but where the
      // server does not know the place (`unknown_id`, the last reason). Then another log may have begun.
      if (step >= 0 || value.reason > "u") places.set(tag, [topic, id]);
    } else if (order(from, place) > 0) {
      ask(true);
    } else {
      if (!place) each("refetch", "start");
      if (type && step > 0) each("onEvent", { topic, type, id, data: value });
      if (step >= 0) places.set(tag, [topic, id]);
    }
  };

  // Applies what has changed, soon: changes that come together are one.
  const plan = () => {
    timer ??= setTimeout(apply, 50);
  };

  const apply = () => {
    timer = null;
    if (asleep || !places.size) return leave();
    if (!joined) {
      joined = new AbortController();
      if (!locks) return lead();
      channel = new BroadcastChannel(name);
      channel.onmessage = ({ data }) => {
        if (!leading) unheard = 0;
        receive(data);
      };
      ask(true);
      elect({ signal: joined.signal });
    } else {
      ask();
      if (!leading || stream) return;
      stream = new AbortController();
      at.forEach((_, tag) => wanted.has(tag) || at.delete(tag));
      run([...wanted.values()], stream.signal);
    }
  };

  const elect = (options) => {
    const { signal } = joined;
    locks.request(name, options, () => new Promise((release) => {
      signal.onabort = release;
      if (signal.aborted) release();
      else lead();
    })).catch((error) => {
      if (signal.aborted) return;
      // Either another tab has stolen the lock, or this page may have none.
      if (error.name != "AbortError") locks = null;
      leave();
      apply();
    });
  };

  const lead = () => {
    leading = true;
    send({ behind: true });
    plan();
  };

  const leave = () => {
    channel?.close();
    joined?.abort();
    joined = channel = leading = null;
    restart();
    at.clear();
    wanted.clear();
    receive({ up: false });
  };

  const restart = () => {
    stream?.abort();
    stream = null;
    unheard = 0;
    if (leading) plan();
  };

  // Reads a stream of these topics until the signal, and opens it again when it ends.
  const run = async (topics, signal) => {
    let retry = 1000;
    let renew;
    while (!signal.aborted) {
      let wait;
      unheard = 0;
      try {
        const bearer = await token?.(renew);
        let query = "?topic=" + topics.join("&topic=");
        if (ticket) query += "&ticket=" + (await checked(await ticket(topics, renew)).json()).ticket;
        query += "&lastEventId=" + [...at].map((entry) => entry.join("="));
        let text = "";
        const write = (chunk) => {
          unheard = 0;
          const blocks = (text + chunk).split("\n\n");
          text = blocks.pop();
          for (const block of blocks) {
            const { retry: ms, id: ids, event: type, data } =
              Object.fromEntries(block.split("\n").map((line) => line.split(/: (.*)/s)));
            retry = (wait = +ms) || retry;
            // `revoked` brings a time to wait: a token of the same second would be refused, too.
            renew = type == "token_expired" || type == "revoked";
            if (!ids || signal.aborted) continue;
            if (!live) send({ up: true });
            if (type == "reset") at.delete(tagOf(JSON.parse(data).topic));
            // The id holds the place in each topic, and one of them moves.
            for (const entry of ids.split(",")) {
              const [tag, id] = entry.split("=");
              const from = at.get(tag);
              at.set(tag, id);
              if (from != id) send({ tag, from: from ?? id, id, type, data });
            }
          }
        };
        const answer = await fetch(url + query, {
          signal, credentials: "include", headers: bearer && { Authorization: "Bearer " + bearer },
        });
        await checked(answer).body.pipeThrough(new TextDecoderStream()).pipeTo(new WritableStream({ write }));
      } catch ({ status, headers }) {
        if (status < 500 && status != 429 && (renew || status != 401)) {
          // The server's no is final. Where it may be for one topic of many, finds out for which.
          const half = status != 401 && topics.length >> 1;
          if (half) {
            run(topics.slice(0, half), signal);
            run(topics.slice(half), signal);
          } else {
            for (const tag of topics.map(tagOf)) {
              wanted.delete(tag);
              send({ tag, status });
            }
            restart();
          }
          break;
        }
        renew = status == 401;
        wait = headers?.get("retry-after") * 1000;
      }
      if (signal.aborted) break;
      if (!renew && live) send({ up: false });
      // Twice as long after each failure, and at random, so that not all clients come at once. A stream that
      // opens brings its own time.
      wait ||= renew ? 50 : retry;
      retry = Math.min(retry * 2, 30000);
      // Nothing is to be heard meanwhile.
      unheard = NaN;
      await new Promise((resolve) => setTimeout(resolve, wait * (1 + Math.random() / 2)));
    }
  };

  const ticker = setInterval(() => {
    asleep ||= globalThis.document?.hidden && Date.now() > hiddenAt + hiddenMs;
    apply();
    if (leading) {
      // Tabs that have crashed do not answer; a server that lives is heard every few seconds.
      if (present.size < wanted.size || ++unheard > 2) {
        wanted = present;
        restart();
      }
      present = new Map();
      send({ behind: false });
    } else if (joined && ++unheard > 2) {
      // The leader hangs.
      elect({ steal: true });
    }
  }, silenceMs / 3);
  for (const event of ["visibilitychange", "pageshow", "pagehide", "freeze", "resume", "online"]) {
    globalThis.addEventListener?.(event, () => {
      hiddenAt = Date.now();
      asleep = /hide|freeze/.test(event) || asleep && event == "visibilitychange" && document.hidden;
      if (!live) restart();
      apply();
    }, true);
  }

  return {
    subscribe(topic, handlers) {
      const tag = tagOf(topic);
      const own = queues.get(tag) ?? new Set();
      let calls = Promise.resolve();
      const queue = (handler, value) => {
        calls = calls.then(() => handlers[handler]?.(value)).catch(globalThis.reportError ?? console.error);
      };
      queues.set(tag, own.add(queue));
      if (!places.has(tag)) places.set(tag, [topic]);
      else if (places.get(tag)[1]) queue("refetch", "start");
      plan();
      return () => {
        handlers = {};
        own.delete(queue);
        if (own.size || queues.get(tag) != own) return;
        queues.delete(tag);
        places.delete(tag);
      };
    },
    close() {
      clearInterval(ticker);
      places.clear();
      apply();
    },
  };
};
