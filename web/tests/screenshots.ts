/** Takes the pictures of the documentation: `make screenshots`. */
import { mkdirSync } from "node:fs";
import { call, expect, signIn, submit, submitBatch, submitOne, test, url } from "./api";

const dir = "../docs/screenshots";

test("pictures", async ({ page }) => {
  test.setTimeout(180_000);
  mkdirSync(dir, { recursive: true });
  await submit(120);
  const id = await submitOne({
    prompt: "Explain late binding to a new colleague.",
    tags: ["team"],
    priority: 50,
  });
  await submitBatch("invoices-october", 24, { model: "echo" });
  const batch = await submitBatch("nightly-summaries", 240, { tags: ["team"] });
  for (const [host, more] of Object.entries({
    "127.0.0.1:9": { events: ["job.failed", "job.expired"], description: "Tells whoever is on call" },
    "127.0.0.1:10": { client: "billing", description: "Books each answer" },
  })) {
    const endpoint = { url: `http://${host}/hooks/sluice`, ...more };
    const { id } = await call<{ id: string }>("POST", "/api/webhooks", endpoint);
    await call("POST", `/api/webhooks/${id}/test`);
  }
  await submit(60);
  await signIn(page);
  await page.setViewportSize({ width: 1280, height: 800 });
  const take = async (name: string, path: string) => {
    await page.goto(`${url()}${path}`);
    await expect(page.getByRole("heading", { level: 1 })).toBeVisible();
    await expect(
      page
        .getByText("Live", { exact: true })
        .or(page.getByRole("button", { name: "Open navigation" }))
        .first(),
    ).toBeVisible();
    await page.waitForLoadState("load");
    await expect(page.getByRole("status", { name: "Loading" })).toHaveCount(0);
    if (path === "/") await expect(page.locator(".recharts-surface").first()).toBeVisible();
    await page.screenshot({ path: `${dir}/${name}.png` });
  };
  await take("jobs", "/jobs");
  await take("job", `/jobs/${id}`);
  await take("batches", "/batches");
  await take("batch", `/batches/${batch.id}`);
  await take("webhooks", "/webhooks");
  await take("accounts", "/accounts");
  await take("workers", "/workers");
  await take("keys", "/keys");
  await take("playground", `/playground?from=${id}`);
  await take("overview", "/");
  await page.emulateMedia({ colorScheme: "dark" });
  await take("overview-dark", "/");
  await page.setViewportSize({ width: 390, height: 844 });
  await take("overview-phone", "/");
});
