// The protocol's own suite, all of it. STREAMS_URL is where the server's streams begin, LONG_POLL_MS how long it waits in a long poll.
import { runConformanceTests } from "@durable-streams/server-conformance-tests"

const { STREAMS_URL, LONG_POLL_MS } = process.env
if (!STREAMS_URL || !LONG_POLL_MS) {
  throw new Error("STREAMS_URL and LONG_POLL_MS must be set")
}

runConformanceTests({ baseUrl: STREAMS_URL, longPollTimeoutMs: Number(LONG_POLL_MS) })
