// The published suite, against the server that the runner names.

import { runConformanceTests } from "@durable-streams/server-conformance-tests";

runConformanceTests({ baseUrl: process.env.SUITE_URL, longPollTimeoutMs: 20_000 });
