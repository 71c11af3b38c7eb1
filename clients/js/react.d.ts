import type { Client, TopicEvent } from "./aftercommit.js";

export interface TopicState<State> {
  /** Undefined until the first `load` or event. */
  data: State | undefined;
  /** What `load` threw last, or the server's no to the topic. */
  error: unknown;
}

/**
 * The state of a topic. `load` fetches it, again whenever events may be missing and after a failure. `apply`
 * makes the next state of an event, and changes nothing else; by default the event's data is the state. No
 * topic, no subscription.
 */
export function useTopic<State, Data = unknown>(
  client: Client,
  topic: string | null | undefined | false | 0,
  options?: {
    load?: ((topic: string) => State | Promise<State>) | undefined;
    apply?: ((state: State | undefined, event: TopicEvent<Data>) => State) | undefined;
  },
): TopicState<State>;
