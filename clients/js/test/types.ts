// Compiled by package.test.js, never run: how the types are used, and what they refuse.

import { connect, type Client, type Handlers } from "aftercommit";
import { useTopic } from "aftercommit/react";

interface Order {
  id: number;
  status: string;
}

export const client: Client = connect({
  url: "https://events.example/streams",
  token: async (renew) => (renew ? "new" : "old"),
  ticket: (topics, renew) => fetch("/ticket", { method: "POST", body: JSON.stringify({ topics, renew }) }),
  share: "user-17",
  hiddenMs: Infinity,
  silenceMs: 60_000,
  onState: (live) => document.body.classList.toggle("live", live),
});
connect();
connect({ share: false, token: () => undefined });

const handlers: Handlers<Order> = {
  onEvent: ({ topic, type, id, data }) => [topic, type, id, data.status.length] as const,
  refetch: async (reason) => reason === "start",
  onError: ({ topic, status }) => `${topic}: ${status.toFixed()}`,
};
const stop: () => void = client.subscribe<Order>("order:42", handlers);
stop();
client.subscribe("order:42", {});
client.close();

export const useOrder = (id: number | undefined) => {
  const { data, error } = useTopic<Order, { status: string }>(client, id && `order:${id}`, {
    load: async (topic) => ({ id: topic.length, status: "new" }),
    apply: (order, event) => ({ id: order?.id ?? 0, status: event.data.status }),
  });
  const status: string | undefined = data?.status;
  return { status, error };
};

// @ts-expect-error A topic is a string.
client.subscribe(42, {});
// @ts-expect-error There is no such handler.
client.subscribe("order:42", { onMessage() {} });
// @ts-expect-error There is no such option.
connect({ tokens: "x" });
// @ts-expect-error The payload is unknown until it is named.
client.subscribe("order:42", { onEvent: ({ data }) => data.status });
