import { defineConfig } from "vitest/config"

export default defineConfig({
  test: {
    include: ["*.test.ts"],
    // A machine that builds at the same time is slow: time is not what is tested here.
    testTimeout: 60_000,
  },
})
