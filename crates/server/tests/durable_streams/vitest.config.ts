import { defineConfig } from "vitest/config"

export default defineConfig({
  test: {
    include: ["*.test.ts"],
    // A machine that builds at the same time is slow: time is not what is tested here.
    testTimeout: 60_000,
    // Some tests of the suite give a time to live of two seconds half a second of leeway, which a busy machine overruns. What is
    // wrong fails every time; none is left out.
    retry: 4,
  },
})
