import { readFileSync } from "node:fs";
import { call, expect, isAccessible, signIn, submitBatch, test, url } from "./api";

const lines = (jobs: unknown[]) => Buffer.from(jobs.map((job) => JSON.stringify(job)).join("\n"));

test("a batch is uploaded, followed to its end, and its results are downloaded", async ({ page }) => {
  await signIn(page);
  await page.goto(`${url()}/batches`);
  await page.getByRole("button", { name: "Upload a batch" }).click();
  const dialog = page.getByRole("dialog", { name: "Upload a batch" });
  await isAccessible(page, "[role=dialog]");
  const chooser = page.waitForEvent("filechooser");
  await dialog.getByRole("button", { name: "File" }).click();
  await (await chooser).setFiles({
    name: "tickets.jsonl",
    mimeType: "application/jsonl",
    buffer: lines(Array.from({ length: 12 }, (_, index) => ({ prompt: `ticket ${index}`, model: "echo" }))),
  });
  await expect(dialog.getByRole("textbox", { name: "Name" })).toHaveValue("tickets");
  await dialog.getByRole("button", { name: "Upload", exact: true }).click();
  await expect(page.getByRole("heading", { level: 1, name: "tickets" })).toBeVisible();
  await expect(page.getByTestId("ended")).toHaveText("12");
  await expect(page.getByRole("img", { name: "12 of 12 ended: Succeeded 12" })).toBeVisible();
  const download = page.waitForEvent("download");
  await page.getByRole("link", { name: "Download results", exact: true }).click();
  const file = await download;
  expect(file.suggestedFilename()).toBe("tickets.results.jsonl");
  const results = readFileSync(await file.path(), "utf8")
    .trim()
    .split("\n");
  expect(results.map((line) => JSON.parse(line).line)).toEqual(results.map((_, index) => index + 1));
  expect(results).toHaveLength(12);
  await page.getByRole("link", { name: "See its jobs" }).click();
  await expect(page.getByRole("row", { name: /Succeeded/ })).toHaveCount(12);
  await page
    .getByRole("row", { name: /Succeeded/ })
    .first()
    .getByRole("link")
    .click();
  await expect(page.getByRole("heading", { level: 1, name: "Job", exact: true })).toBeVisible();
  await page.getByRole("main").getByRole("link", { name: /…/ }).click();
  await expect(page.getByRole("heading", { level: 1, name: "tickets" })).toBeVisible();
});

test("an upload that is refused says which lines are at fault, and can leave them out", async ({ page }) => {
  await signIn(page);
  await page.goto(`${url()}/batches`);
  await page.getByRole("button", { name: "Upload a batch" }).click();
  const chooser = page.waitForEvent("filechooser");
  await page.getByRole("dialog").getByRole("button", { name: "File" }).click();
  await (await chooser).setFiles({
    name: "mixed.jsonl",
    mimeType: "application/jsonl",
    buffer: Buffer.from('{"prompt":"fine","model":"echo"}\nnot json\n{"prompt":"x","no_such":1}\n'),
  });
  await page.getByRole("button", { name: "Upload", exact: true }).click();
  const alert = page.getByRole("alert").filter({ hasText: "Nothing was accepted" });
  await expect(alert.getByRole("listitem")).toHaveCount(2);
  await expect(alert).toContainText("Line 2");
  await expect(alert).toContainText("Line 3");
  await isAccessible(page, "[role=dialog]");
  await page.getByRole("switch", { name: "Leave out lines" }).check();
  await expect(alert).toHaveCount(0);
  await page.getByRole("button", { name: "Upload", exact: true }).click();
  await expect(page.getByRole("heading", { level: 1, name: "mixed" })).toBeVisible();
  await expect(page.getByRole("heading", { name: "2 lines are no jobs and were left out" })).toBeVisible();
  await expect(page.getByRole("row", { name: /^2 / })).toBeVisible();
  await expect(page.getByTestId("ended")).toHaveText("1");
});

test("a batch is cancelled after a word about how many jobs end", async ({ page }) => {
  await call("POST", "/api/accounts/local-llama/pause");
  const { id } = await submitBatch("night", 7, { model: "llama" });
  await signIn(page);
  await page.goto(`${url()}/batches`);
  const row = page.getByRole("row", { name: /night/ });
  await expect(row).toContainText("0 of 7 ended");
  await row.getByRole("button", { name: "Cancel night" }).click();
  const dialog = page.getByRole("dialog", { name: "Cancel night?" });
  await expect(dialog).toContainText("7 jobs that have not ended");
  await dialog.getByRole("button", { name: "End 7 jobs" }).click();
  await expect(row).toContainText("7 of 7 ended");
  await expect(row.getByRole("button")).toHaveCount(0);
  await page.goto(`${url()}/batches/${id}`);
  await page.getByRole("link", { name: "Cancelled 7" }).click();
  await expect(page.getByRole("row", { name: /Cancelled/ })).toHaveCount(7);
  await call("POST", "/api/accounts/local-llama/resume");
});

test("who may only look at batches is offered nothing else", async ({ page }) => {
  const { key } = await call<{ key: string }>("POST", "/api/keys", { name: "looker", scopes: ["read"] });
  await call("POST", "/api/accounts/local-llama/pause");
  const { id } = await submitBatch("theirs", 2, { model: "llama" });
  await signIn(page, key);
  await page.goto(`${url()}/batches`);
  await expect(page.getByRole("row", { name: /theirs/ })).toBeVisible();
  await expect(page.getByRole("button", { name: /Cancel|Upload/ })).toHaveCount(0);
  await page.goto(`${url()}/batches/${id}`);
  await expect(page.getByRole("link", { name: "Download results so far" })).toBeVisible();
  await expect(page.getByRole("button", { name: "Cancel batch" })).toHaveCount(0);
  await call("POST", `/api/batches/${id}/cancel`);
  await call("POST", "/api/accounts/local-llama/resume");
});
