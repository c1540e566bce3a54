import { defineConfig } from "vitest/config"

export default defineConfig({
  test: {
    include: ["test/**/*.test.ts"],
    globalSetup: ["test/globalSetup.ts"],
    // A bound on hanging, not on speed: two busy cores take their time.
    testTimeout: 60_000,
    hookTimeout: 60_000
  }
})
