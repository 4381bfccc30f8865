import assert from "node:assert/strict";
import { execFileSync } from "node:child_process";
import { createServer, get, type IncomingMessage } from "node:http";
import type { AddressInfo } from "node:net";
import { describe, test } from "node:test";
import type { PublicKey } from "#base/keys.ts";
import { silentLogger } from "#base/log.ts";
import type { AgentStatus } from "../control.ts";
import { FakeAgent, makePeers } from "../daemon/testing/fake-agent.ts";
import { agentMetrics } from "./agent-metrics.ts";
import { formatFamilies } from "./exposition.ts";
import { MetricsServer } from "./metrics-server.ts";
import { WakeMeter } from "./wake-meter.ts";

const PARSER = `
import json, sys
from prometheus_client.parser import text_string_to_metric_families
out = [{"name": f.name, "type": f.type, "help": f.documentation,
        "samples": [[s.name, s.labels, s.value] for s in f.samples]}
       for f in text_string_to_metric_families(sys.stdin.read())]
print(json.dumps(out))
`;
interface Parsed {
  readonly name: string;
  readonly type: string;
  readonly help: string;
  readonly samples: readonly (readonly [string, Readonly<Record<string, string>>, number])[];
}
const hasParser = (() => {
  try {
    execFileSync("/usr/bin/python3", ["-c", "import prometheus_client"], { stdio: "ignore" });
    return true;
  } catch {
    return false;
  }
})();
const SETUP_KEY = "11111111-2222-3333-4444-555555555555";
const skip = !hasParser && "needs python3-prometheus-client";

/** Reads a text as Prometheus's own Python library does. */
function parse(text: string): readonly Parsed[] {
  return JSON.parse(execFileSync("/usr/bin/python3", ["-c", PARSER], { input: text, encoding: "utf8" })) as Parsed[];
}

async function freePort(): Promise<number> {
  const server = createServer();
  await new Promise<void>((resolve) => server.listen(0, "127.0.0.1", resolve));
  const { port } = server.address() as AddressInfo;
  await new Promise((resolve) => server.close(resolve));
  return port;
}

async function fetchText(
  port: number,
  path = "/metrics",
  headers: Record<string, string> = {},
): Promise<{ status: number; text: string; type: string }> {
  const response = await new Promise<IncomingMessage>((resolve, reject) =>
    get({ host: "127.0.0.1", port, path, headers, agent: false }, resolve).on("error", reject),
  );
  let text = "";
  for await (const part of response.setEncoding("utf8")) text += part;
  return { status: response.statusCode!, text, type: response.headers["content-type"] ?? "" };
}

const deps = (agent: FakeAgent) => ({ agent, log: silentLogger, version: "1.2.3", startedAt: 1_800_000_000_000 });

describe("metrics", () => {
  test("Prometheus's own parser reads what is served, and finds the status in it", { skip }, async () => {
    const agent = new FakeAgent(makePeers(40));
    await agent.up(
      { managementUrl: "http://m.test", hostname: "here", setupKey: SETUP_KEY } as never,
      new AbortController().signal,
    );
    const meter = new WakeMeter();
    const key = "k" as PublicKey;
    for (const sinceWake of [20, 700]) {
      meter.note(key, { at: 0, event: "wake", detail: "dns question for x", sinceWake: 0 });
      meter.note(key, { at: 0, event: "connected", detail: "", sinceWake });
    }
    const status = () => ({
      ...agent.status(),
      wakeTotals: meter.totals,
      paths: { direct: 7, relay: 2 },
      counters: new Map([
        ["rx-bytes", 10],
        ["drop-replay", 3],
        ["worker-restarts", 1],
      ]),
    });
    await using server = new MetricsServer({ ...deps(agent), agent: { status } });
    const port = await freePort();
    await server.serveAt(`127.0.0.1:${port}`);
    const { status: code, text, type } = await fetchText(port);
    assert.equal(code, 200);
    assert.match(type, /^text\/plain; version=0\.0\.4/);
    const families = new Map(parse(text).map((family) => [family.name, family]));
    const value = (family: string, labels: Record<string, string> = {}, name = family): number => {
      const found = families
        .get(family)!
        .samples.find(([sample, each]) => sample === name && Object.entries(labels).every(([k, v]) => each[k] === v));
      assert.ok(found, `${name} ${JSON.stringify(labels)}`);
      return found[2];
    };
    const { counts } = agent.status();
    for (const state of ["idle", "connecting", "connected"] as const)
      assert.equal(value("perch_peers", { state }), counts[state]);
    assert.equal(value("perch_build_info", { version: "1.2.3" }), 1);
    assert.equal(value("perch_peer_paths", { path: "direct" }), 7);
    assert.equal(value("perch_wakes", { cause: "dns" }, "perch_wakes_total"), 2);
    assert.equal(value("perch_dropped", { reason: "replay" }, "perch_dropped_total"), 3);
    assert.equal(value("perch_bytes", { direction: "received" }, "perch_bytes_total"), 10);
    assert.equal(value("perch_worker_restarts", {}, "perch_worker_restarts_total"), 1);
    const took = (le: string): number =>
      value("perch_wake_duration_seconds", { le }, "perch_wake_duration_seconds_bucket");
    assert.deepEqual([took("0.01"), took("0.025"), took("0.5"), took("1"), took("+Inf")], [0, 1, 1, 2, 2]);
    assert.equal(value("perch_wake_duration_seconds", {}, "perch_wake_duration_seconds_sum"), 0.72);
    for (const { type, help, name } of families.values())
      assert.ok(["counter", "gauge", "histogram"].includes(type) && help !== "", name);
  });

  test("what a device does not count is not said to be nothing", () => {
    const status = (kind: "embedded" | "wireguard-go", counters: [string, number][]) =>
      ({
        ...new FakeAgent(makePeers(1)).status(),
        wakeTotals: new WakeMeter().totals,
        device: { kind, features: [] },
        counters: new Map(counters),
      }) satisfies AgentStatus;
    const facts = { version: "", runtime: "", startedAt: 0, residentBytes: 0, loopDelay: { p50: 0, p99: 0, max: 0 } };
    const moved = (...of: Parameters<typeof status>): string[] =>
      agentMetrics(status(...of), facts)
        .map(({ name }) => name)
        .filter((name) => /perch_(bytes|packets)_total/.test(name));
    assert.deepEqual(moved("embedded", []), ["perch_bytes_total", "perch_packets_total"]);
    assert.deepEqual(moved("wireguard-go", []), []);
    assert.deepEqual(moved("wireguard-go", [["rx-bytes", 0]]), ["perch_bytes_total"]);
  });

  test("labels and help survive quotes, backslashes and lines", { skip }, () => {
    const odd = 'a"b\\c\nd';
    const [family] = parse(
      formatFamilies([{ name: "x", help: odd, type: "gauge", samples: [{ labels: { l: odd }, value: 1e21 }] }]),
    );
    assert.equal(family!.samples[0]![1].l, odd);
    assert.equal(family!.help, odd);
  });

  test("10,000 peers make as many lines as ten, and no peer is looked at", async () => {
    const [few, many] = [new FakeAgent(makePeers(10)), new FakeAgent(makePeers(10_000))];
    const lines: number[] = [];
    for (const agent of [few, many]) {
      await agent.up(
        { managementUrl: "http://m.test", hostname: "here", setupKey: SETUP_KEY } as never,
        new AbortController().signal,
      );
      const status = () => ({
        ...agent.status(),
        get peers(): never {
          throw new Error("a scrape read the peers");
        },
      });
      await using server = new MetricsServer({ ...deps(agent), agent: { status } });
      const port = await freePort();
      await server.serveAt(`127.0.0.1:${port}`);
      const { status: code, text } = await fetchText(port);
      assert.equal(code, 200);
      lines.push(text.split("\n").length);
    }
    assert.equal(lines[0], lines[1]);
  });

  test("foreign hosts, other paths and other methods are refused", async () => {
    await using server = new MetricsServer(deps(new FakeAgent()));
    const port = await freePort();
    await server.serveAt(`127.0.0.1:${port}`);
    assert.equal((await fetchText(port, "/metrics", { host: "evil.example" })).status, 421);
    assert.equal((await fetchText(port, "/")).status, 404);
    assert.equal((await fetch(`http://127.0.0.1:${port}/metrics`, { method: "POST" })).status, 405);
    assert.equal((await fetch(`http://localhost:${port}/metrics`)).status, 200);
  });

  test("it moves, stops, and keeps its place when the new one is taken", async () => {
    const server = new MetricsServer(deps(new FakeAgent()));
    const [first, second] = [await freePort(), await freePort()];
    await server.serveAt(`127.0.0.1:${first}`);
    const taken = createServer().listen(second, "127.0.0.1");
    await new Promise((resolve) => taken.once("listening", resolve));
    await assert.rejects(server.serveAt(`127.0.0.1:${second}`), { code: "EADDRINUSE" });
    assert.equal((await fetchText(first)).status, 200);
    await new Promise((resolve) => taken.close(resolve));
    await server.serveAt(`127.0.0.1:${second}`);
    assert.equal((await fetchText(second)).status, 200);
    await assert.rejects(fetchText(first), { code: "ECONNREFUSED" });
    await server[Symbol.asyncDispose]();
    await assert.rejects(fetchText(second), { code: "ECONNREFUSED" });
    assert.equal(server.at, undefined);
  });
});
