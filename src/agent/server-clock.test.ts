import assert from "node:assert/strict";
import { createServer, type RequestListener } from "node:http";
import type { AddressInfo } from "node:net";
import { test } from "node:test";
import { systemClock } from "#base/time.ts";
import { readServerClock } from "./server-clock.ts";

async function withServer(answer: RequestListener, use: (url: string) => Promise<void>): Promise<void> {
  const server = createServer(answer);
  await new Promise<void>((resolve) => server.listen(0, "127.0.0.1", resolve));
  try {
    await use(`http://127.0.0.1:${(server.address() as AddressInfo).port}`);
  } finally {
    await new Promise((resolve) => server.close(resolve));
  }
}

test("a clock that is right, one that is ahead and one that is behind are told apart, whatever the answer's status", async () => {
  for (const aheadMs of [0, 3_600_000, -90_000]) {
    const answer: RequestListener = (_, response) =>
      response.writeHead(404, { date: new Date(Date.now() - aheadMs).toUTCString() }).end();
    await withServer(answer, async (url) => {
      const reading = await readServerClock(url, systemClock);
      assert.ok(reading);
      assert.ok(Math.abs(reading.aheadMs - aheadMs) <= reading.uncertaintyMs + 5, `${reading.aheadMs}`);
    });
  }
});

test("no date, no server, no URL and a caller who leaves give no reading", async () => {
  const dateless: RequestListener = (_, response) => {
    response.sendDate = false;
    response.end();
  };
  await withServer(dateless, async (url) => assert.equal(await readServerClock(url, systemClock), undefined));
  assert.equal(await readServerClock("http://127.0.0.1:1", systemClock), undefined);
  assert.equal(await readServerClock("vpn", systemClock), undefined);
  await withServer(
    () => {},
    async (url) => assert.equal(await readServerClock(url, systemClock, AbortSignal.timeout(50)), undefined),
  );
});
