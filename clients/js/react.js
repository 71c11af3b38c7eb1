// A React hook: the state of a topic, loaded and then kept by its events. How to use it: docs/client.md.

import { useEffect, useRef, useState } from "react";

const RETRY_MS = 1000;
const RETRY_MAX_MS = 30000;

export const useTopic = (client, topic, { load, apply = (_, event) => event.data } = {}) => {
  const [state, setState] = useState({});
  const latest = useRef();
  useEffect(() => {
    latest.current = { load, apply };
  });
  useEffect(() => {
    if (!topic) return;
    let open = true;
    // `next` makes the state of the topic's data so far.
    const update = (next) => {
      if (open) setState((last) => ({ topic, ...next(last.topic === topic ? last.data : undefined) }));
    };
    // The topic's events wait until this ends.
    const refetch = async () => {
      for (let wait = RETRY_MS; open && latest.current.load; wait = Math.min(2 * wait, RETRY_MAX_MS)) {
        try {
          const data = await latest.current.load(topic);
          return update(() => ({ data }));
        } catch (error) {
          update((data) => ({ data, error }));
        }
        await new Promise((resolve) => setTimeout(resolve, wait));
      }
    };
    const stop = client.subscribe(topic, {
      refetch,
      onEvent: (event) => update((data) => ({ data: latest.current.apply(data, event) })),
      onError: (error) => update((data) => ({ data, error })),
    });
    return () => {
      open = false;
      stop();
    };
  }, [client, topic]);
  // Until its first state is there, another topic's is not shown for it.
  const { data, error } = state.topic === topic ? state : {};
  return { data, error };
};
