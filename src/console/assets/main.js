// The page. Passes each event of the feed to the part that shows it.

import { at, say } from "./dom.js";
import { post, tell } from "./ask.js";
import { Chart, addSample, decimal, setSamples, time } from "./chart.js";
import { follow } from "./feed.js";
import { showAudit, showParked } from "./lists.js";
import { offerRelays, prepare, showReplays } from "./replay.js";
import { showStatus } from "./status.js";
import { count, duration, grow, rate, setClock } from "./text.js";

let own = "";

new Chart(at("chart-backlog"), {
  title: "Backlog", about: "Pending events, at most: row numbers assigned since the position", column: 1,
  shown: count, least: 10, steps: decimal, quiet: "not known",
});
const lag = new Chart(at("chart-lag"), {
  title: "Lag", about: "Age of the oldest pending event", column: 2,
  shown: (seconds) => (seconds === 0 ? "0 s" : duration(seconds)), least: 1, steps: time, quiet: "not known",
});
new Chart(at("chart-rate"), {
  title: "Rate", about: "Events published a second", column: 3,
  shown: (n) => `${rate(n)}/s`, least: 10, steps: decimal, quiet: "not known",
});
new Chart(at("chart-latency"), {
  title: "Latency", about: "From the start of an event’s transaction until it was recorded as delivered", column: 4,
  shown: duration, least: 0.05, steps: time, quiet: "idle",
});

function takeTime(sample) {
  if (sample) setClock(sample[0]);
}

const heard = {
  hello(hello) {
    own = hello.relay;
    lag.limit = hello.limitSeconds;
    say(at("operator"), hello.who);
  },
  trend(samples) {
    takeTime(samples.at(-1));
    setSamples(samples);
  },
  sample(sample) {
    takeTime(sample);
    addSample(sample);
    grow();
  },
  status(status) {
    showStatus(status, own);
    offerRelays(status.relays, own);
  },
  lists(lists) {
    showParked(lists.parked, own);
    showReplays(lists.replays);
    showAudit(lists.audit);
  },
};

function linked(lostSince) {
  const isLost = lostSince !== null;
  const link = at("link");
  link.dataset.state = isLost ? "lost" : "live";
  say(link, isLost ? "Connection lost" : "Live");
  document.body.classList.toggle("stale", isLost);
  at("lost").hidden = !isLost;
  if (isLost) {
    const seconds = Math.round((Date.now() - lostSince) / 1000);
    say(at("lost"), `Connection lost: this is how it was ${duration(Math.max(seconds, 1))} ago. Trying again …`);
    document.title = "Connection lost · aftercommit";
  }
}

at("sign-out").addEventListener("click", async () => {
  try {
    await post("sign-out", {});
    location.reload();
  } catch (error) {
    tell(error.message);
  }
});

prepare(() => own);
follow(heard, linked);
