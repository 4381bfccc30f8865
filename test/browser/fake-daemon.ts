import { mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import type { PeerStatus } from "#agent/control.ts";
import { createDaemonClient, type DaemonClient } from "#agent/daemon/daemon-client.ts";
import type { DaemonLog } from "#agent/daemon/daemon-log.ts";
import { type RunningDaemon, startDaemon } from "#agent/daemon/run-daemon.ts";
import { FakeAgent, makePeers } from "#agent/daemon/testing/fake-agent.ts";
import { createLogger } from "#base/log.ts";
import { systemClock } from "#base/time.ts";
import type { UpRequest } from "#gen/daemon_pb.ts";

/** A real daemon, up, over an agent in memory. */
export interface FakeDaemon extends AsyncDisposable {
  readonly agent: FakeAgent;
  readonly client: DaemonClient;
  readonly address: string;
  /** HTTP statuses with which the page's server refused requests. */
  readonly refusals: readonly number[];
  /** A new link to the page. */
  link(): Promise<string>;
  stop(): Promise<void>;
}

export async function startFakeDaemon(
  peers: readonly PeerStatus[] = makePeers(8),
  environment: NodeJS.ProcessEnv = {},
): Promise<FakeDaemon> {
  const dir = mkdtempSync(join(tmpdir(), "perch-ui-daemon-"));
  const socketPath = join(dir, "d.sock");
  const agent = new FakeAgent(peers);
  const refusals: number[] = [];
  const logger = createLogger((_level, message, { status }) => {
    if (message === "the web page refused a request") refusals.push(Number(status));
  });
  const log: DaemonLog = { level: "debug", logger, reopen: () => {}, [Symbol.dispose]: () => {} };
  const daemon: RunningDaemon = await startDaemon(
    { createAgent: () => agent, clock: systemClock, log, environment },
    { socketPath, stateDir: join(dir, "state"), version: "0.1.0" },
  );
  const client = createDaemonClient(socketPath);
  const up = { flags: { managementUrl: "https://vpn.example.com" }, setupKey: "11111111-2222-3333-4444-555555555555" };
  for await (const _ of client.up(up as UpRequest));
  return {
    agent,
    client,
    refusals,
    address: `unix://${socketPath}`,
    link: async () => (await client.openUi({ port: 0 })).url,
    stop: () => daemon.close(),
    async [Symbol.asyncDispose]() {
      await daemon.close();
      rmSync(dir, { recursive: true, force: true });
    },
  };
}
