// The protocol's own suite, all of it. STREAMS_URL is where the server's streams begin. The server's long polls are shorter than
// what the suite is told here: it waits a second longer at most, which a busy machine overruns.
import { runConformanceTests } from "@durable-streams/server-conformance-tests"

const { STREAMS_URL } = process.env
if (!STREAMS_URL) {
  throw new Error("STREAMS_URL must be set")
}

runConformanceTests({ baseUrl: STREAMS_URL, longPollTimeoutMs: 20_000 })
