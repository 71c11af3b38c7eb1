/** An event of a topic. */
export interface TopicEvent<Data = unknown> {
  topic: string;
  /** The name with which it was appended, such as `ORDER_PAID`. */
  type: string;
  /** Its place in the topic, `<epoch>-<seq>`. Later events have higher ones. */
  id: string;
  /** Its payload. */
  data: Data;
}

/**
 * Why the state has to be fetched: `start` when the topic's place is known and every later event will come;
 * the others are those of `event: reset`.
 */
export type RefetchReason =
  | "start"
  | "bad_id"
  | "bad_token"
  | "unknown_id"
  | "history_gone"
  | "gap"
  | "joined_late"
  | "rebased"
  | (string & {});

/** What a subscription calls, one call after another: each waits until the promise of the last one ends. */
export interface Handlers<Data = unknown> {
  onEvent?(event: TopicEvent<Data>): unknown;
  /** The page's state may lack events: fetch it. Events that come meanwhile wait for the promise. */
  refetch?(reason: RefetchReason): unknown;
  /** The server's no to this topic. Nothing comes any more: subscribe again once the cause is gone. */
  onError?(error: { topic: string; status: number }): unknown;
}

export interface Options {
  /** The address of the server's streams. Default: `/streams`. */
  url?: string | undefined;
  /**
   * Called before each stream is opened: the token for `Authorization`, or nothing if a cookie holds it. With
   * `renew` the last one was refused or has expired. An error counts as no connection, or, if it has a
   * `status`, as that answer of the server.
   */
  token?: ((renew: boolean) => string | undefined | void | Promise<string | undefined | void>) | undefined;
  /** Called before each stream is opened: the answer of `POST /api/stream-tickets`, or of your own server. */
  ticket?: ((topics: string[], renew: boolean) => Response | Promise<Response>) | undefined;
  /**
   * Tabs with the same name share one stream, as one user. Name the user in it. `false`: this tab shares
   * nothing. Default: the `url`.
   */
  share?: string | false | undefined;
  /** A tab lets go when it was hidden for this long, in milliseconds. Default: 60,000. `Infinity`: never. */
  hiddenMs?: number | undefined;
  /**
   * A stream or a leading tab that was silent for this long, in milliseconds, counts as dead. At least three
   * heartbeats of the server. Default: 45,000.
   */
  silenceMs?: number | undefined;
  /** The stream is open (true) or is being opened again. */
  onState?: ((live: boolean) => void) | undefined;
}

export interface Client {
  /** Calls the handlers for a topic, until the returned function is called. */
  subscribe<Data = unknown>(topic: string, handlers: Handlers<Data>): () => void;
  /** Ends all subscriptions. The client cannot be used again. */
  close(): void;
}

/** A client of one server for one user. It opens a stream with the first subscription. */
export function connect(options?: Options): Client;
