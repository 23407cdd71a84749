import { mkdtempSync, readFileSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import type { Page } from "@playwright/test";
import { call, expect, isAccessible, signIn, submit, submitBatch, submitOne, test, url } from "./api";
import { freePort, start } from "./server";

const heading = (page: Page, name: string) => page.getByRole("heading", { level: 1, name });

test("the printed link signs in once, and signing out ends it", async ({ page }) => {
  await page.goto(`${url()}/sign-in#${process.env.SLUICE_WEB_LINK}`);
  await expect(heading(page, "Overview")).toBeVisible();
  expect(page.url()).not.toContain("#");
  expect(await page.evaluate(() => document.cookie)).toBe("");
  await page.getByRole("button", { name: /Signed in as admin/ }).click();
  await page.getByRole("menuitem", { name: "Sign out" }).click();
  await expect(heading(page, "Sign in to Sluice")).toBeVisible();
  await page.goto("about:blank");
  await page.goto(`${url()}/sign-in#${process.env.SLUICE_WEB_LINK}`);
  await expect(page.getByRole("alert")).toContainText("used before");
});

test("a key signs in, by keyboard alone, and leads to where one was going", async ({ page }) => {
  await page.goto(`${url()}/workers`);
  await isAccessible(page);
  await page.getByLabel("API key", { exact: true }).fill("sluice_wrong");
  await page.keyboard.press("Enter");
  await expect(page.getByRole("alert")).toContainText("unknown or revoked");
  const { key } = await call<{ key: string }>("POST", "/api/keys", { name: "keyboard", scopes: ["read"] });
  await page.getByLabel("API key", { exact: true }).fill(key);
  await page.keyboard.press("Enter");
  await expect(heading(page, "Workers")).toBeVisible();
});

test("the overview follows what happens", async ({ page }) => {
  await signIn(page);
  await page.goto(url());
  await expect(page.getByText("All is well")).toBeVisible();
  await call("POST", "/api/accounts/local-llama/pause");
  await submitOne({ prompt: "wait", model: "llama" }, "");
  const lane = page.getByRole("row", { name: /model llama/ });
  await expect(lane).toContainText("Every account that fits is paused");
  await page.getByRole("button", { name: "Resume local-llama" }).click();
  await expect(page.getByText("local-llama is back at work")).toBeVisible();
  await expect(lane).toHaveCount(0);
});

test("jobs are filtered by the address, and cancelled together after a word", async ({ page }) => {
  await call("POST", "/api/accounts/local-llama/pause");
  await call(
    "POST",
    "/api/jobs",
    [1, 2].map(() => ({ prompt: "stay", model: "llama", metadata: { batch: "b1" } })),
  );
  await signIn(page);
  await page.goto(`${url()}/jobs?metadata=batch%3Db1`);
  await expect(page.getByRole("row", { name: /Queued/ })).toHaveCount(2);
  await page.getByLabel("Select all shown jobs").check();
  await page.getByRole("button", { name: "Cancel 2" }).click();
  const dialog = page.getByRole("dialog", { name: "Cancel 2 jobs?" });
  await expect(dialog).toContainText("end without an answer");
  await dialog.getByRole("button", { name: "Cancel 2 jobs" }).click();
  await expect(page.getByRole("row", { name: /Cancelled/ })).toHaveCount(2);
  await page.getByLabel("Model").fill("no-such-model");
  await expect(page.getByText("No job fits these filters")).toBeVisible();
  await expect(page).toHaveURL(/model=no-such-model/);
  await page.getByRole("link", { name: "Clear filters" }).click();
  await expect(page.getByRole("row", { name: /Cancelled/ }).first()).toBeVisible();
  await call("POST", "/api/accounts/local-llama/resume");
});

test("a new job shows in the list by itself", async ({ page }) => {
  await signIn(page);
  await page.goto(`${url()}/jobs?metadata=live%3Dyes`);
  await expect(page.getByText("No job fits these filters")).toBeVisible();
  await submitOne({ prompt: "now", model: "echo", metadata: { live: "yes" } }, "");
  await expect(page.getByRole("row", { name: /echo/ })).toBeVisible({ timeout: 4_000 });
  await expect(page.getByRole("row", { name: /Succeeded/ })).toBeVisible();
});

test("the playground submits, streams and shows the way", async ({ page }) => {
  await signIn(page);
  await page.goto(`${url()}/playground`);
  await page.getByRole("textbox", { name: "Prompt", exact: true }).fill("It’s a test of 'quotes'.");
  await page
    .getByRole("combobox", { name: "Model" })
    .or(page.getByRole("textbox", { name: "Model" }))
    .first()
    .fill("sonnet");
  await expect(page.getByLabel("curl", { exact: true }).last()).toContainText(String.raw`'\''quotes'\''`);
  await page.getByRole("textbox", { name: "Prompt", exact: true }).press("Control+Enter");
  const answer = page.getByTestId("answer");
  await expect(page.getByText("Streaming")).toBeVisible();
  const early = (await answer.textContent()) ?? "";
  await expect(page.getByText(/tokens in/)).toBeVisible();
  expect((await answer.textContent())?.length).toBeGreaterThan(early.length);
  await page.getByRole("link", { name: "Open the job" }).click();
  await expect(heading(page, "Job")).toBeVisible();
  await expect(page.getByText("Answered")).toBeVisible();
  await page.getByRole("link", { name: "Retry with changes" }).click();
  await expect(page.getByRole("textbox", { name: "Prompt", exact: true })).toHaveValue(
    "It’s a test of 'quotes'.",
  );
});

test("a job that runs is cancelled from its page, and retried as a new one", async ({ page }) => {
  await call("POST", "/api/accounts", {
    id: "overnight",
    provider: "simulated",
    models: ["overnight"],
    latency: "10m",
  });
  const id = await submitOne({ prompt: "long", model: "overnight" }, "");
  await signIn(page);
  await page.goto(`${url()}/jobs/${id}`);
  await page.getByRole("button", { name: "Cancel job" }).click();
  await page.getByRole("button", { name: "Cancel 1 job" }).click();
  await expect(page.getByRole("main").getByText("Cancelled").first()).toBeVisible();
  await page.getByRole("button", { name: "Retry", exact: true }).click();
  await expect(page.getByText("Retry of")).toBeVisible();
  await page.getByRole("button", { name: "Cancel job" }).click();
  await page.getByRole("button", { name: "Cancel 1 job" }).click();
  await expect(page.getByRole("main").getByText("Cancelled").first()).toBeVisible();
});

test("an account is paused after a word about what that does", async ({ page }) => {
  await signIn(page);
  await page.goto(`${url()}/accounts`);
  await page.getByRole("button", { name: "Pause echo" }).click();
  await expect(page.getByRole("dialog")).toContainText("takes no new jobs");
  await page.getByRole("dialog").getByRole("button", { name: "Pause echo" }).click();
  await expect(page.getByRole("row", { name: /echo/ })).toContainText("Paused");
  await page.getByRole("button", { name: "Resume echo" }).click();
  await expect(page.getByRole("row", { name: /echo/ })).toContainText("Active");
});

test("a key is shown once, and revoked", async ({ page }) => {
  await signIn(page);
  await page.goto(`${url()}/keys`);
  await page.getByRole("button", { name: "Make a key" }).click();
  await page.getByRole("textbox", { name: "Name" }).fill("ci");
  await page.getByRole("radio", { name: "Read" }).check();
  await page.getByRole("button", { name: "Make it" }).click();
  await expect(page.getByLabel("API key", { exact: true })).toContainText("sluice_");
  await page.getByRole("button", { name: "I have kept it" }).click();
  await page.getByRole("button", { name: "Revoke ci" }).click();
  await page.getByRole("button", { name: "Revoke this key" }).click();
  await expect(page.getByRole("row", { name: /^ci/ })).toContainText("Revoked");
});

test("who may only look is offered nothing else", async ({ page }) => {
  const { key } = await call<{ key: string }>("POST", "/api/keys", { name: "viewer", scopes: ["read"] });
  const id = await submitOne({ prompt: "look", model: "echo" });
  await signIn(page, key);
  await page.goto(`${url()}/accounts`);
  await expect(page.getByRole("row", { name: /echo/ })).toBeVisible();
  await expect(page.getByRole("button", { name: /Pause|Resume/ })).toHaveCount(0);
  await expect(page.getByRole("link", { name: "API keys" })).toHaveCount(0);
  await page.goto(`${url()}/jobs/${id}`);
  await expect(page.getByText("Answered")).toBeVisible();
  await expect(page.getByRole("button", { name: /Retry|Cancel/ })).toHaveCount(0);
  await page.goto(`${url()}/playground`);
  await page.getByRole("textbox", { name: "Prompt", exact: true }).fill("may I?");
  await expect(page.getByRole("button", { name: "Submit" })).toBeDisabled();
  await page.goto(`${url()}/keys`);
  await expect(page.getByText("Only an admin sees keys")).toBeVisible();
});

test("while the API is away the last data stays, and it comes back by itself", async ({ page }) => {
  const home = mkdtempSync(join(tmpdir(), "sluice-web-"));
  const port = await freePort();
  let server = await start(home, port);
  const key = readFileSync(join(home, "admin.key"), "utf8").trim();
  await page.request.post(`${server.url}/api/session`, {
    data: { key },
    headers: { "sluice-dashboard": "1" },
  });
  await page.goto(`${server.url}/accounts`);
  const account = page.getByRole("row", { name: /echo/ });
  await expect(account).toBeVisible();
  await server.stop();
  await expect(page.getByText("Sluice does not answer")).toBeVisible();
  await expect(account).toBeVisible();
  server = await start(home, port);
  await expect(page.getByText("Sluice does not answer")).toHaveCount(0);
  await expect(page.getByText("Live", { exact: true })).toBeVisible();
  await server.stop();
  rmSync(home, { recursive: true, force: true });
});

for (const [name, options] of Object.entries({
  "on a desk, light": { colorScheme: "light" as const },
  "on a desk, dark": { colorScheme: "dark" as const },
  "on a phone, in Chinese, dark": {
    colorScheme: "dark" as const,
    locale: "zh-CN",
    viewport: { width: 390, height: 844 },
  },
})) {
  test.describe(name, () => {
    test.use(options);
    test("every page is accessible and fits", async ({ page }) => {
      await submit(20);
      const id = await submitOne({ prompt: "look", model: "echo" });
      const batch = await submitBatch("letters", 6, { model: "echo" });
      // Nobody listens there: its delivery fails.
      const endpoint = { url: "http://127.0.0.1:9/hook", events: ["job.failed"], description: "on call" };
      const hook = await call<{ id: string }>("POST", "/api/webhooks", endpoint);
      const told = await call<{ id: string }>("POST", `/api/webhooks/${hook.id}/test`);
      await signIn(page);
      for (const path of [
        "",
        "jobs",
        `jobs/${id}`,
        `jobs?batch=${batch.id}`,
        "batches",
        `batches/${batch.id}`,
        "batches/not-an-id",
        "webhooks",
        `webhooks/${hook.id}`,
        `webhooks/deliveries/${told.id}`,
        "playground",
        "accounts",
        "workers",
        "keys",
        "jobs/not-an-id",
      ]) {
        await page.goto(`${url()}/${path}`);
        await expect(page.getByRole("heading", { level: 1 })).toBeVisible();
        await expect(page.getByRole("status", { name: /Loading|加载中/ })).toHaveCount(0);
        await isAccessible(page);
        const overflow = await page.evaluate(() => document.documentElement.scrollWidth - window.innerWidth);
        expect(overflow, `${path} scrolls sideways`).toBeLessThanOrEqual(0);
      }
      if (options.colorScheme === "dark") {
        const ground = await page.evaluate(() => getComputedStyle(document.body).backgroundColor);
        expect(ground).toBe("rgb(15, 18, 22)");
      }
    });
  });
}

test.describe("in Chinese", () => {
  test.use({ locale: "zh-CN" });
  test("the words follow the browser, or the choice", async ({ page }) => {
    await signIn(page);
    await page.goto(url());
    await expect(heading(page, "概览")).toBeVisible();
    await expect(page.locator("html")).toHaveAttribute("lang", "zh-Hans");
    await page.getByRole("button", { name: /已登录/ }).click();
    await page.getByRole("menuitem", { name: "English" }).click();
    await expect(heading(page, "Overview")).toBeVisible();
    await page.reload();
    await expect(heading(page, "Overview")).toBeVisible();
  });
});

test.describe("on a phone", () => {
  test.use({ viewport: { width: 390, height: 844 } });
  test("the navigation opens and leads on", async ({ page }) => {
    await signIn(page);
    await page.goto(url());
    await page.getByRole("button", { name: "Open navigation" }).click();
    await page.getByRole("link", { name: "Accounts", exact: true }).click();
    await expect(heading(page, "Accounts")).toBeVisible();
  });
});

test("the first load is under 300 kB compressed, and nothing comes from elsewhere", async ({ page }) => {
  await signIn(page);
  let bytes = 0;
  const foreign: string[] = [];
  page.on("response", async (response) => {
    if (!response.url().startsWith(url())) foreign.push(response.url());
    if (/\.js$/.test(response.url())) bytes += (await response.request().sizes()).responseBodySize;
  });
  await page.goto(url(), { waitUntil: "networkidle" }).catch(() => undefined);
  await expect(heading(page, "Overview")).toBeVisible();
  expect(foreign).toEqual([]);
  expect(bytes).toBeGreaterThan(50_000);
  expect(bytes).toBeLessThan(300_000);
});
