/** The API, as the tests use it, and a page that is signed in to it. */
import { readFileSync } from "node:fs";
import AxeBuilder from "@axe-core/playwright";
import { test as base, expect, type Page } from "@playwright/test";

export const url = () => process.env.SLUICE_WEB_URL ?? "";
export const adminKey = () => readFileSync(`${process.env.SLUICE_WEB_HOME}/admin.key`, "utf8").trim();

export async function call<T>(method: string, path: string, body?: unknown): Promise<T> {
  const answer = await fetch(url() + path, {
    method,
    headers: { authorization: `Bearer ${adminKey()}`, "content-type": "application/json" },
    body: body ? JSON.stringify(body) : null,
  });
  if (!answer.ok) throw new Error(`${method} ${path}: ${answer.status} ${await answer.text()}`);
  return (answer.status === 204 ? undefined : await answer.json()) as T;
}

const prompts = [
  "Summarise the incident report of Tuesday night in three sentences.",
  "Translate this release note into plain German.",
  "Which of these support tickets are about billing?",
];

/** Jobs for every lane. */
export async function submit(count: number) {
  const lanes = [{ tags: ["team"] }, { model: "haiku" }, { model: "llama" }, { model: "echo" }, {}];
  const jobs = Array.from({ length: count }, (_, index) => ({
    prompt: prompts[index % prompts.length],
    ...lanes[index % lanes.length],
    metadata: { project: ["billing", "support"][index % 2] },
  }));
  await call("POST", "/api/jobs", jobs);
}

export async function submitOne(job: Record<string, unknown>, wait = "30s"): Promise<string> {
  const { id } = await call<{ id: string }>("POST", "/api/jobs", job);
  if (wait) await call("GET", `/api/jobs/${id}?wait=${wait}`);
  return id;
}

/** A batch of jobs that are alike. */
export async function submitBatch(
  name: string,
  count: number,
  job: Record<string, unknown>,
): Promise<{ id: string }> {
  const line = (_: unknown, index: number) =>
    JSON.stringify({ prompt: prompts[index % prompts.length], ...job });
  const answer = await fetch(`${url()}/api/batches?name=${encodeURIComponent(name)}`, {
    method: "POST",
    headers: { authorization: `Bearer ${adminKey()}`, "content-type": "application/jsonl" },
    body: Array.from({ length: count }, line).join("\n"),
  });
  if (!answer.ok) throw new Error(`a batch: ${answer.status} ${await answer.text()}`);
  return (await answer.json()) as { id: string };
}

export async function signIn(page: Page, key = adminKey()) {
  const answer = await page.request.post(`${url()}/api/session`, {
    data: { key },
    headers: { "sluice-dashboard": "1" },
  });
  expect(answer.status()).toBe(201);
}

/** No violation of the rules that a machine can check, once the page, or a part of it, is there. */
export async function isAccessible(page: Page, part?: string) {
  await expect(page.locator(part ?? "h1").first()).toBeVisible();
  const axe = new AxeBuilder({ page });
  const { violations } = await (part ? axe.include(part) : axe).analyze();
  const told = violations.map(
    ({ id, nodes }) => `${id}: ${nodes.map(({ html }) => html.slice(0, 160)).join(" | ")}`,
  );
  expect(told).toEqual([]);
}

/** A test fails when its page complains, the strict content security policy included. */
export const test = base.extend({
  page: async ({ page }, use) => {
    const complaints: string[] = [];
    page.on("pageerror", (error) => complaints.push(String(error)));
    page.on("console", (message) => {
      if (message.type() === "error" && !message.text().includes("Failed to load resource"))
        complaints.push(message.text());
    });
    await use(page);
    expect(complaints).toEqual([]);
  },
});
export { expect };
