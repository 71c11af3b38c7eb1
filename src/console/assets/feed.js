// The stream of what there is to see. Comes back by itself, and says plainly while it is away.

const NAMES = ["hello", "trend", "sample", "status", "lists"];
// A sample comes each second: after this long without one the connection is dead, whatever the browser thinks.
const SILENCE_MS = 5000;
const AGAIN_MS = 2000;

/** Follows the stream: `heard[name](data)` for each event; `linked(since)` with null while all is well, else since when not. */
export function follow(heard, linked) {
  let source;
  let last = Date.now();
  let lostSince = null;

  function open() {
    source?.close();
    last = Date.now();
    const opened = new EventSource("/console/events");
    source = opened;
    for (const name of NAMES) {
      opened.addEventListener(name, (event) => {
        last = Date.now();
        if (lostSince !== null || name === "hello") linked((lostSince = null));
        heard[name](JSON.parse(event.data));
      });
    }
    opened.onerror = () => {
      lose();
      // Otherwise the browser tries again by itself.
      if (opened === source && opened.readyState === EventSource.CLOSED) again();
    };
  }

  function lose() {
    lostSince ??= last;
    linked(lostSince);
  }

  async function again() {
    const answer = await fetch("/console/session").catch(() => null);
    // Signed out, or the relay was started anew: the page asks to sign in.
    if (answer && (answer.status === 401 || answer.status === 403)) location.reload();
    else setTimeout(open, AGAIN_MS);
  }

  setInterval(() => {
    if (lostSince !== null) linked(lostSince);
    if (Date.now() - last > SILENCE_MS && source.readyState !== EventSource.CLOSED) {
      lose();
      open();
    }
  }, 1000);
  open();
}
