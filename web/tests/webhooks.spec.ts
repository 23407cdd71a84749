import { createHmac } from "node:crypto";
import { createServer, type IncomingHttpHeaders } from "node:http";
import type { Page } from "@playwright/test";
import { call, expect, isAccessible, signIn, submitOne, test, url } from "./api";

type Received = { headers: IncomingHttpHeaders; body: string };

/** Somebody who is told: answers with the status it is given, and keeps what comes. */
async function receiver() {
  const got: Received[] = [];
  const self = { url: "", status: 200, got, close: () => server.close() };
  const server = createServer(async (request, response) => {
    let body = "";
    for await (const piece of request) body += piece;
    got.push({ headers: request.headers, body });
    response.writeHead(self.status).end(self.status === 200 ? "thanks" : "out of order");
  });
  await new Promise<void>((resolve) => server.listen(0, "127.0.0.1", resolve));
  const address = server.address();
  self.url = `http://127.0.0.1:${typeof address === "object" && address ? address.port : 0}/hook`;
  return self;
}

/** The signature that the receiver would make of it, as Standard Webhooks says. */
function signature(secret: string, { headers, body }: Received): string {
  const key = Buffer.from(secret.replace("whsec_", ""), "base64");
  const signed = `${headers["webhook-id"]}.${headers["webhook-timestamp"]}.${body}`;
  return `v1,${createHmac("sha256", key).update(signed).digest("base64")}`;
}

const choose = async (page: Page, to: string, item: string) => {
  await page.getByRole("button", { name: `More for ${to}` }).click();
  await page.getByRole("menuitem", { name: item }).click();
};

const make = (to: string, more: Record<string, unknown> = {}) =>
  call<{ id: string; secret: string }>("POST", "/api/webhooks", { url: to, ...more });

test("an endpoint is made, its secret shown once, tested, changed and removed", async ({ page }) => {
  const hook = await receiver();
  await signIn(page);
  await page.goto(`${url()}/webhooks`);
  await page.getByRole("button", { name: "Add an endpoint" }).click();
  await isAccessible(page, "[role=dialog]");
  await page.getByRole("textbox", { name: "URL" }).fill("http://10.0.0.1/hook");
  await page.getByRole("button", { name: "Add it" }).click();
  await expect(page.getByRole("alert")).toContainText("url");
  await page.getByRole("textbox", { name: "URL" }).fill(hook.url);
  await page.getByRole("checkbox", { name: "Job failed" }).check();
  await page.getByRole("button", { name: "Add it" }).click();
  const secret = (await page.getByLabel("Secret", { exact: true }).textContent()) ?? "";
  expect(secret).toMatch(/^whsec_/);
  await page.getByRole("button", { name: "I have kept it" }).click();
  const row = page.getByRole("row", { name: new RegExp(`^${hook.url}.*Enabled`) });
  await expect(row).toContainText("Job failed");
  await row.getByRole("button", { name: /Send a test/ }).click();
  await expect(row).toContainText("Delivered");
  const [first] = hook.got;
  expect(first?.headers["webhook-signature"]).toBe(signature(secret, first as Received));

  await choose(page, hook.url, "Replace secret");
  const dialog = page.getByRole("dialog");
  await dialog.getByRole("button", { name: "Make a new secret" }).click();
  await expect(dialog.getByText("The one before signs, too, until")).toBeVisible();
  expect(await page.getByLabel("Secret", { exact: true }).textContent()).not.toBe(secret);
  await page.getByRole("button", { name: "I have kept it" }).click();
  await expect(row).toContainText("The secret before signs, too");

  await choose(page, hook.url, "Edit");
  await page.getByRole("textbox", { name: "Description" }).fill("tells the night shift");
  await page.getByRole("button", { name: "Save" }).click();
  await expect(row).toContainText("night shift");

  await choose(page, hook.url, "Disable");
  await page.getByRole("button", { name: "Disable this endpoint" }).click();
  const off = page.getByRole("row", { name: new RegExp(`^${hook.url}.*Disabled`) });
  await off.getByRole("button", { name: /Enable/ }).click();
  await expect(row).toBeVisible();

  await choose(page, hook.url, "Remove");
  await expect(page.getByRole("dialog")).toContainText("cannot be undone");
  await page.getByRole("button", { name: "Remove this endpoint" }).click();
  await expect(row).toHaveCount(0);
  hook.close();
});

test("a delivery that failed shows why, and is sent anew", async ({ page }) => {
  const hook = await receiver();
  hook.status = 503;
  const { id } = await make(hook.url, { events: ["job.succeeded"] });
  const job = await submitOne({ prompt: "tell", model: "echo" });
  await signIn(page);
  await page.goto(`${url()}/webhooks/${id}`);
  const row = page.getByRole("row", { name: /^Failed Job succeeded/ });
  await row.getByRole("link", { name: "Job succeeded" }).click();
  await expect(page.getByText("HTTP 503")).toHaveCount(2);
  await expect(page.getByLabel("Response 1", { exact: true })).toContainText("out of order");
  await expect(page.getByLabel("Request", { exact: true })).toContainText(job);
  await isAccessible(page);
  hook.status = 200;
  await page.getByRole("button", { name: "Send anew" }).click();
  await expect(page.getByRole("main").getByText("Delivered", { exact: true })).toBeVisible();
  await expect(page.getByText("HTTP 200")).toBeVisible();
  expect(new Set(hook.got.map(({ headers }) => headers["webhook-id"])).size).toBe(1);
  await call("DELETE", `/api/webhooks/${id}`);
  hook.close();
});

test("what failed since a time is sent anew, after a count of it", async ({ page }) => {
  const hook = await receiver();
  hook.status = 500;
  const { id } = await make(hook.url, { events: ["job.succeeded"] });
  for (const prompt of ["one", "two", "three"]) await submitOne({ prompt, model: "echo" });
  await signIn(page);
  await page.goto(`${url()}/webhooks/${id}?state=%5B%22failed%22%5D`);
  await expect(page.getByRole("row", { name: /Failed/ })).toHaveCount(3);
  hook.status = 200;
  await page.getByRole("button", { name: "Send deliveries anew" }).click();
  const dialog = page.getByRole("dialog");
  await dialog.getByRole("button", { name: "Send 3 anew" }).click();
  await expect(page.getByText("3 deliveries go out again")).toBeVisible();
  await expect(page.getByText("No delivery fits these filters")).toBeVisible();
  await page.getByRole("button", { name: "Clear filters" }).last().click();
  await expect(page.getByRole("row", { name: /Delivered/ })).toHaveCount(3);
  await call("DELETE", `/api/webhooks/${id}`);
  hook.close();
});

test("who may only look at webhooks is offered nothing else", async ({ page }) => {
  const hook = await receiver();
  const { id } = await make(hook.url);
  const { id: delivery } = await call<{ id: string }>("POST", `/api/webhooks/${id}/test`);
  const { key } = await call<{ key: string }>("POST", "/api/keys", { name: "onlooker", scopes: ["read"] });
  await signIn(page, key);
  await page.goto(`${url()}/webhooks`);
  await expect(page.getByRole("row", { name: new RegExp(`^${hook.url}`) })).toBeVisible();
  await expect(page.getByRole("button", { name: /Add|Secret|test|More/ })).toHaveCount(0);
  await page.goto(`${url()}/webhooks/${id}`);
  await expect(page.getByRole("row", { name: /Test/ })).toBeVisible();
  await expect(page.getByRole("button", { name: /anew|test|More/ })).toHaveCount(0);
  await page.goto(`${url()}/webhooks/deliveries/${delivery}`);
  await expect(page.getByText("HTTP 200")).toBeVisible();
  await expect(page.getByRole("button", { name: "Send anew" })).toHaveCount(0);
  await call("DELETE", `/api/webhooks/${id}`);
  hook.close();
});
