// The protocol's published client against the real server: what its README promises must hold, without a change to either.
import { DurableStream, IdempotentProducer, stream } from "@durable-streams/client"
import { expect, test } from "vitest"

const { STREAMS_URL } = process.env
if (!STREAMS_URL) {
  throw new Error("STREAMS_URL must be set")
}

interface Item {
  id: number
}

const unique = Math.random().toString(36).slice(2)
const url = (name: string) => `${STREAMS_URL}/v1/stream/client/${unique}/${name}`

test("what is appended is read, from the beginning and from an offset", async () => {
  const handle = await DurableStream.create({ url: url("plain"), contentType: "text/plain" })
  await handle.append("one ")
  const { offset } = await handle.head()
  await handle.append("two")
  expect(await (await handle.stream({ live: false })).text()).toBe("one two")
  expect(await (await handle.stream({ offset, live: false })).text()).toBe("two")
  await handle.delete()
  await expect(handle.stream({ live: false })).rejects.toThrow()
})

for (const live of ["long-poll", "sse"] as const) {
  test(`a live tail over ${live} gets what comes after it began, in order, once`, async () => {
    const handle = await DurableStream.create({ url: url(`tail-${live}`), contentType: "application/json" })
    await handle.append(JSON.stringify({ id: 0 }))
    const tail = await stream<Item>({ url: handle.url, offset: "-1", live })
    const got: Array<number> = []
    const done = new Promise<void>((resolve) => {
      tail.subscribeJson<Item>(async (batch) => {
        got.push(...batch.items.map((item) => item.id))
        if (got.length >= 20) resolve()
      })
    })
    for (let id = 1; id < 20; id++) {
      await handle.append(JSON.stringify({ id }))
    }
    await done
    tail.cancel()
    expect(got).toEqual(Array.from({ length: 20 }, (_, id) => id))
  })
}

test("an idempotent producer's events are all there, in order, once", async () => {
  const handle = await DurableStream.create({ url: url("producer"), contentType: "application/json" })
  const failed: Array<Error> = []
  const producer = new IdempotentProducer(handle, "writer", {
    autoClaim: true,
    maxBatchBytes: 256,
    onError: (error) => failed.push(error),
  })
  for (let id = 0; id < 500; id++) {
    producer.append(JSON.stringify({ id }))
  }
  await producer.flush()
  await producer.close()
  expect(failed).toEqual([])
  const items = await (await stream<Item>({ url: handle.url, live: false })).json<Item>()
  expect(items.map((item) => item.id)).toEqual(Array.from({ length: 500 }, (_, id) => id))
})

test("a producer that was replaced is fenced", async () => {
  const handle = await DurableStream.create({ url: url("fenced"), contentType: "text/plain" })
  const old = new IdempotentProducer(handle, "writer", { epoch: 0 })
  old.append("old ")
  await old.flush()
  const replacement = new IdempotentProducer(handle, "writer", { epoch: 1 })
  replacement.append("new")
  await replacement.flush()
  const failed: Array<Error> = []
  const late = new IdempotentProducer(handle, "writer", { epoch: 0, onError: (error) => failed.push(error) })
  late.append("late")
  await late.flush().catch((error: Error) => failed.push(error))
  expect(failed.length).toBeGreaterThan(0)
  expect(await (await stream({ url: handle.url, live: false })).text()).toBe("old new")
})

test("a closed stream ends its live tail", async () => {
  const handle = await DurableStream.create({ url: url("closed"), contentType: "text/plain" })
  const tail = await stream({ url: handle.url, offset: "-1", live: "sse" })
  let text = ""
  const reading = (async () => {
    for await (const chunk of tail.textStream()) text += chunk
  })()
  await handle.append("first ")
  await handle.close({ body: "last" })
  await reading
  expect(text).toBe("first last")
  await expect(handle.append("after")).rejects.toThrow()
})
