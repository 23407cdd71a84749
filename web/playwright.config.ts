import { defineConfig } from "@playwright/test";

/** Debian's Chromium, told to keep quiet on a network that leads nowhere. */
const args = [
  "--disable-background-networking",
  "--disable-component-update",
  "--disable-sync",
  "--no-first-run",
  // Its sandbox does not work as root, or in most containers; it only opens our own pages.
  "--no-sandbox",
];

export default defineConfig({
  testDir: "tests",
  globalSetup: "./tests/server.ts",
  workers: 1,
  retries: 0,
  timeout: 60_000,
  expect: { timeout: 15_000 },
  reporter: "list",
  use: {
    viewport: { width: 1440, height: 900 },
    locale: "en-GB",
    colorScheme: "light",
    launchOptions: { executablePath: process.env.SLUICE_TEST_CHROMIUM ?? "/usr/bin/chromium", args },
  },
  projects: [
    { name: "tests", testMatch: "*.spec.ts" },
    { name: "screenshots", testMatch: "screenshots.ts" },
  ],
});
