import assert from "node:assert/strict";
import { once } from "node:events";
import { mkdtempSync, rmSync } from "node:fs";
import { createServer, type RequestListener } from "node:http";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { type TestContext, test } from "node:test";
import { encodeMessage } from "#base/flagged-messages.ts";
import { createDaemonClient, type DaemonClient } from "./daemon-client.ts";

/** A client of something that listens where a daemon should. */
async function clientOf(t: TestContext, listener: RequestListener): Promise<DaemonClient> {
  const dir = mkdtempSync(join(tmpdir(), "perch-client-"));
  const server = createServer(listener).listen(join(dir, "d.sock"));
  await once(server, "listening");
  t.after(() => {
    server.close().closeAllConnections();
    rmSync(dir, { recursive: true });
  });
  return createDaemonClient(join(dir, "d.sock"));
}

async function drain(stream: AsyncIterable<unknown>): Promise<void> {
  for await (const _ of stream);
}

test("a daemon of another version, one that ends early and one that is none are told apart from a refusal", async (t) => {
  const answers: Readonly<Record<string, RequestListener>> = {
    Down: (_, response) => response.writeHead(404).end(),
    GetStatus: (_, response) => response.writeHead(404).end(),
    WatchStatus: (_, response) => response.end(encodeMessage(new Uint8Array())),
    Capture: (request) => request.socket.destroy(),
    Deregister: (_, response) => response.end("no message"),
    WatchActivity: (_, response) => response.writeHead(500).end("<html>"),
  };
  const client = await clientOf(t, (request, response) => answers[request.url!.split("/").pop()!]!(request, response));
  const unknown = (name: string) => ({
    code: "daemon-lost",
    message: `the daemon does not know ${name}: it is of another version, restart it`,
  });
  const lost = { code: "daemon-lost", message: /^the daemon on .*d\.sock ended before it was done$/ };
  await assert.rejects(client.down({}), unknown("Down"));
  await assert.rejects(drain(client.getStatus({})), unknown("GetStatus"));
  await assert.rejects(drain(client.watchStatus({})), lost);
  await assert.rejects(drain(client.capture({})), lost);
  await assert.rejects(client.deregister({}), lost);
  await assert.rejects(drain(client.watchActivity({})), lost);
  await assert.rejects(createDaemonClient("/nowhere/d.sock").down({}), lost);
});

test("an aborted call throws the reason and closes its connection, a stream that is left does too", async (t) => {
  let open = 0;
  const client = await clientOf(t, (request, response) => {
    open++;
    response.once("close", () => open--);
    if (request.url!.endsWith("Status")) response.write(encodeMessage(new Uint8Array()));
  });
  const closed = async (): Promise<void> => {
    while (open > 0) await new Promise((resolve) => setImmediate(resolve));
  };
  const reason = new Error("enough");
  const given = new AbortController();
  const call = client.down({}, { signal: given.signal });
  while (open === 0) await new Promise((resolve) => setImmediate(resolve));
  given.abort(reason);
  await assert.rejects(call, reason);
  await closed();
  await assert.rejects(client.down({}, { signal: AbortSignal.abort(reason) }), reason);
  const watching = new AbortController();
  await assert.rejects(async () => {
    for await (const _ of client.watchStatus({}, { signal: watching.signal })) watching.abort(reason);
  }, reason);
  await closed();
  for await (const _ of client.getStatus({})) break;
  await closed();
});
