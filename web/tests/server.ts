/** Starts the real server for a run of the tests, with an empty home of its own, and stops it. */
import { type ChildProcess, spawn } from "node:child_process";
import { mkdtempSync, rmSync } from "node:fs";
import { createServer } from "node:net";
import { tmpdir } from "node:os";
import { join } from "node:path";

const binary = process.env.SLUICE_TEST_BINARY ?? "../target/debug/sluice";

/** A port that nobody listens on. */
export function freePort(): Promise<number> {
  return new Promise((resolve, reject) => {
    const server = createServer();
    server.once("error", reject);
    server.listen(0, "127.0.0.1", () => {
      const address = server.address();
      const port = typeof address === "object" && address ? address.port : 0;
      server.close(() => resolve(port));
    });
  });
}

export type Server = { url: string; home: string; link: string; stop: () => Promise<void> };

/** The environment without the settings of other tests. */
const plain = Object.fromEntries(Object.entries(process.env).filter(([name]) => !name.startsWith("SLUICE_")));

/** Runs `sluice up` until it answers. */
export async function start(home: string, port: number): Promise<Server> {
  const url = `http://127.0.0.1:${port}`;
  const child: ChildProcess = spawn(
    binary,
    ["up", "--listen", `127.0.0.1:${port}`, "--config", "tests/sluice.toml"],
    { env: { ...plain, SLUICE_HOME: home }, stdio: ["ignore", "pipe", "pipe"] },
  );
  let said = "";
  child.stdout?.on("data", (data) => {
    said += data;
  });
  child.stderr?.on("data", (data) => {
    said += data;
  });
  const ended = new Promise<void>((resolve) => child.once("exit", () => resolve()));
  for (let tries = 0; ; tries++) {
    const answer = await fetch(`${url}/health/ready`).catch(() => undefined);
    if (answer?.ok) break;
    if (child.exitCode !== null || tries > 300) throw new Error(`sluice did not come up:\n${said}`);
    await new Promise((resolve) => setTimeout(resolve, 100));
  }
  const link = /\/sign-in#(\S+)/.exec(said)?.[1] ?? "";
  const stop = async () => {
    child.kill("SIGINT");
    await ended;
  };
  return { url, home, link, stop };
}

export default async function setUp() {
  const home = mkdtempSync(join(tmpdir(), "sluice-web-"));
  const server = await start(home, await freePort());
  process.env.SLUICE_WEB_URL = server.url;
  process.env.SLUICE_WEB_HOME = home;
  process.env.SLUICE_WEB_LINK = server.link;
  return async () => {
    await server.stop();
    rmSync(home, { recursive: true, force: true });
  };
}
