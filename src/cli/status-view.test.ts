import assert from "node:assert/strict";
import { test } from "node:test";
import { create } from "@bufbuild/protobuf";
import type { AgentStatus } from "#agent/control.ts";
import { resolveSettings } from "#agent/daemon/settings.ts";
import { encodeHead, encodePeer } from "#agent/daemon/status-message.ts";
import { FakeAgent, makePeers, PEER_EPOCH } from "#agent/daemon/testing/fake-agent.ts";
import { parsePrefix } from "#base/ip.ts";
import { PeerSchema } from "#gen/daemon_pb.ts";
import { renderStory } from "./peer-story.ts";
import { statusDocument } from "./status-json.ts";
import { renderDetail, renderSummary, renderTable, type StatusView } from "./status-view.ts";
import { clean, formatBytes, formatSpan, plain } from "./terminal.ts";
import { toYaml } from "./yaml.ts";

const NOW = PEER_EPOCH + 75_000;

function fixedView(change: Partial<AgentStatus> = {}): StatusView {
  const peers = makePeers(4);
  const status: AgentStatus = {
    ...new FakeAgent().status(),
    state: "up",
    publicKey: peers[0]!.key,
    fqdn: "laptop.perch.test",
    hostname: "laptop",
    address: parsePrefix("100.64.0.1/16"),
    address6: parsePrefix("fd00::1/64"),
    interfaceName: "perch0",
    wireguardPort: 51820,
    mtu: 1280,
    device: { kind: "embedded", features: ["udp-gso"] },
    lazy: { enabled: true, source: "network", thresholdMs: 900_000 },
    management: { url: "http://m.test:33073", connected: true, since: PEER_EPOCH },
    signal: { url: "http://s.test:10000", connected: false, since: PEER_EPOCH, error: "connection refused" },
    relays: [{ uri: "rel://relay.test:33073", available: true, since: PEER_EPOCH }],
    stuns: [{ uri: "stun:stun.test:3478", available: false, error: "no answer" }],
    serial: 7,
    firewall: { kind: "rules", rules: 12 },
    counts: { total: 4, idle: 1, connecting: 1, connected: 2 },
    peers,
    counters: new Map([
      ["drop-replay", 2],
      ["drop-none", 0],
    ]),
    ...change,
  };
  const settings = resolveSettings({
    flag: { managementUrl: "http://m.test:33073" },
    setting: { mtu: 1280, presharedKey: "Z4Z4" },
  });
  const facts = { version: "1.2.3", pid: 42, startedAt: PEER_EPOCH - 3_600_000, settings, logLevel: "info" };
  return { head: encodeHead(status, facts, NOW), peers: peers.map((peer) => encodePeer(peer, true)), now: NOW };
}

test("the summary tells what matters in a line each", () => {
  assert.equal(
    renderSummary(fixedView(), plain),
    [
      "Agent:           up, daemon running for 1 h 1 min",
      "Management:      Connected to http://m.test:33073 for 1 min 15 s",
      "Signal:          Disconnected from http://s.test:10000 for 1 min 15 s: connection refused",
      "Relays:          1/1 available",
      "Name:            laptop.perch.test",
      "Address:         100.64.0.1/16, fd00::1/64",
      "Interface:       perch0, embedded, UDP port 51820, MTU 1280",
      "Lazy connection: true, decided by the network; peers sleep after 15 min without traffic",
      "Firewall:        12 rules",
      "Peers:           2/4 connected, 1 connecting, 1 idle",
    ].join("\n"),
  );
});

test("wakes are told of when they wait, are held back, or failed", () => {
  const wakes = (change: object): string =>
    renderSummary(fixedView({ wakes: { negotiating: 5, waiting: 0, held: 0, kept: 0, ...change } }), plain);
  assert.doesNotMatch(wakes({}), /Wakes/);
  assert.match(
    wakes({ waiting: 3, held: 247, kept: 1 }),
    /^Wakes: +3 waiting for their turn, 247 held back as part of a sweep, 1 peer kept connected because waking failed$/m,
  );
  const document = statusDocument(fixedView({ wakes: { negotiating: 5, waiting: 3, held: 2, kept: 1 } }), "1");
  assert.deepEqual((document.perch as { wakes: unknown }).wakes, { negotiating: 5, waiting: 3, held: 2, kept: 1 });
});

test("a network without access rules is named", () => {
  assert.match(
    renderSummary(fixedView({ firewall: { kind: "open" } }), plain),
    /^Firewall: +allows everything \(legacy network\)$/m,
  );
});

test("an agent that is down says how to connect, one that needs a login how to register", () => {
  const down = { ...new FakeAgent().status() };
  assert.equal(
    renderSummary(fixedView({ ...down, address: undefined, address6: undefined }), plain),
    "Agent:           down (connect with: perch up), daemon running for 1 h 1 min",
  );
  const login = renderSummary(fixedView({ state: "needs-login", reason: "the login has expired" }), plain);
  assert.match(login, /^Agent: +needs login: the login has expired \(register with: perch up --setup-key-file FILE\)/);
});

test("the lazy line names each source in words", () => {
  const words = {
    flag: "the flag of perch up",
    environment: "the environment",
    setting: "the stored setting",
    network: "the network",
    default: "the default",
  } as const;
  for (const source of Object.keys(words) as (keyof typeof words)[]) {
    const text = renderSummary(fixedView({ lazy: { enabled: false, source, thresholdMs: 900_000 } }), plain);
    assert.match(text, new RegExp(`Lazy connection: false, decided by ${words[source]}\n`));
  }
});

test("the details show each peer, its path, and why it may or may not sleep", () => {
  const text = renderDetail(fixedView(), plain);
  const third = text.slice(text.indexOf(" peer-3"), text.indexOf(" peer-4"));
  assert.equal(
    third,
    [
      " peer-3.perch.test",
      "   Address:        100.64.0.4",
      "   Public key:     WlpaWlpaWloAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAQ=",
      "   Status:         Connected for 1 min 15 s: direct path proven",
      "   Connection:     direct, host to srflx (192.168.1.2:51820 to 203.0.113.7:51820) for 1 min 14 s",
      "   Relay:          rel://relay.test:33073 on standby",
      "   Latency:        21.3 ms, measured 1 min 14 s ago",
      "   Last handshake: 1 min 15 s ago",
      "   Transferred:    1.5 KiB received, 3.3 MiB sent",
      "   Networks:       10.20.0.0/16",
      "   May sleep:      yes, nothing speaks against it",
      "",
      "",
    ].join("\n"),
  );
  assert.match(text, /relayed by rel:\/\/relay.test:33073/);
  assert.match(text, /May sleep: {6}no, agent 0.40.0 is older than 0.45.0/);
  assert.match(text, /rel:\/\/relay.test:33073 is available for 1 min 15 s/);
  assert.match(text, /stun:stun.test:3478 is not available: no answer/);
  const stuns = [{ uri: "stun:stun.test:3478", available: true, since: PEER_EPOCH + 70_000 }];
  assert.match(renderDetail(fixedView({ stuns }), plain), /stun:stun.test:3478 is available, answered 5 s ago/);
  assert.match(text, /management-url +http:\/\/m.test:33073 +from the flag of perch up/);
  assert.match(text, /mtu +1280 +from the stored setting/);
  assert.match(text, /preshared-key +set +from the stored setting/);
  assert.match(text, /drop-replay +2/);
  assert.doesNotMatch(text, /drop-none|Z4Z4/);
});

test("the details say how many peers the filters hold back", () => {
  const view = fixedView();
  assert.match(renderDetail({ ...view, peers: view.peers.slice(0, 1) }, plain), /\(1 of 4 peers pass the filters\)/);
});

test("names and reasons of others cannot act on the terminal", () => {
  const peer = create(PeerSchema, { fqdn: "evil\x1b[2J.test", reason: "a\nb\x9b", state: 1 });
  assert.equal(clean(peer.fqdn), "evil?[2J.test");
  for (const text of [
    renderDetail({ ...fixedView(), peers: [peer] }, plain),
    renderStory(peer, NOW, plain),
    renderTable([peer], NOW, plain),
  ]) {
    for (const part of ["\x1b", "\x9b", "a\nb"]) assert.equal(text.includes(part), false);
  }
});

test("the table has a row per peer and keeps to the width", () => {
  const { peers } = fixedView();
  const lines = renderTable(peers, NOW, plain, 60).split("\n");
  assert.equal(lines.length, 5);
  assert.equal(lines[0], "PEER               ADDRESS     STATE       FOR         PATH…");
  assert.match(
    renderTable(peers, NOW, plain),
    /peer-4.perch.test {2}100.64.0.5 {2}Connected {3}1 min 15 s {2}relay {3}- {8}no direct path found, relayed/,
  );
});

test("the story of a peer tells causes and milliseconds", () => {
  const story = renderStory(fixedView().peers[2]!, NOW, plain);
  assert.match(story, /\+0.00 ms {2}wake {4}tcp 100.64.0.1:40000 -> 100.64.0.3:22/);
  assert.match(story, /\+41.5 ms {2}relay {3}first path/);
  assert.match(story, /\+180 ms {2}direct {2}host to srflx/);
  assert.match(renderStory(fixedView().peers[0]!, NOW, plain), /Nothing has happened with peer-1.perch.test/);
});

test("the JSON document has NetBird's names and units, and ours under perch", () => {
  const document = JSON.parse(JSON.stringify(statusDocument(fixedView(), "1.2.3")));
  const { peers, perch, ...rest } = document;
  assert.deepEqual([peers.total, peers.connected], [4, 2]);
  assert.deepEqual(rest, {
    cliVersion: "1.2.3",
    daemonVersion: "1.2.3",
    daemonStatus: "Connected",
    management: { url: "http://m.test:33073", connected: true, error: "" },
    signal: { url: "http://s.test:10000", connected: false, error: "connection refused" },
    relays: {
      total: 2,
      available: 1,
      details: [
        { uri: "stun:stun.test:3478", available: false, error: "no answer" },
        { uri: "rel://relay.test:33073", available: true, error: "" },
      ],
    },
    netbirdIp: "100.64.0.1/16",
    netbirdIpv6: "fd00::1/64",
    publicKey: "WlpaWlpaWloAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAI=",
    usesKernelInterface: false,
    fqdn: "laptop.perch.test",
    quantumResistance: false,
    quantumResistancePermissive: false,
    networks: [],
    forwardingRules: 0,
    dnsServers: [],
    events: [],
    lazyConnectionEnabled: true,
    profileName: "default",
    sshServer: { enabled: false, sessions: [] },
  });
  const { perch: ours, ...third } = peers.details[2];
  assert.deepEqual(third, {
    fqdn: "peer-3.perch.test",
    netbirdIp: "100.64.0.4",
    netbirdIpv6: "",
    publicKey: "WlpaWlpaWloAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAQ=",
    status: "Connected",
    lastStatusUpdate: "2026-01-02T03:04:05.000Z",
    connectionType: "P2P",
    iceCandidateType: { local: "host", remote: "srflx" },
    iceCandidateEndpoint: { local: "192.168.1.2:51820", remote: "203.0.113.7:51820" },
    relayAddress: "rel://relay.test:33073",
    lastWireguardHandshake: "2026-01-02T03:04:05.000Z",
    transferReceived: 1500,
    transferSent: 3500000,
    latency: 21250000,
    quantumResistance: false,
    networks: ["10.20.0.0/16"],
  });
  assert.deepEqual([ours.lazy, ours.pinned, ours.timeline.length], [true, false, 3]);
  const since = peers.details.map((peer: { perch: { pathSince: string | null } }) => peer.perch.pathSince?.slice(-13));
  assert.deepEqual(since, [undefined, undefined, "03:04:05.180Z", "03:04:05.040Z"]);
  assert.deepEqual(perch.relays, [
    { uri: "stun:stun.test:3478", since: "0001-01-01T00:00:00Z" },
    { uri: "rel://relay.test:33073", since: "2026-01-02T03:04:05.000Z" },
  ]);
  assert.deepEqual(
    peers.details.map((peer: { status: string; connectionType: string }) => `${peer.status} ${peer.connectionType}`),
    ["Idle -", "Connecting -", "Connected P2P", "Connected Relayed"],
  );
  assert.equal(peers.details[0].lastWireguardHandshake, "0001-01-01T00:00:00Z");
  assert.deepEqual(perch.lazyConnection, { enabled: true, source: "network", inactivityThresholdMs: 900000 });
  assert.deepEqual(perch.peers, { total: 4, idle: 1, connecting: 1, connected: 2 });
  assert.deepEqual(perch.settings["preshared-key"], { value: "set", source: "setting" });
});

test("YAML quotes what readers would take for something else", () => {
  const value = {
    text: "plain words",
    number: 1.5,
    none: null,
    list: ["a", "100.64.0.1", "yes", "", "- x", "a: b", "#c", "trailing ", "line\nbreak"],
    empty: [],
    map: {},
    nested: [{ a: 1, b: [true] }, { c: { d: "e" } }],
    "odd key:": "~",
  };
  assert.equal(
    toYaml(value),
    `text: plain words
number: 1.5
none: null
list:
  - a
  - "100.64.0.1"
  - "yes"
  - ""
  - "- x"
  - "a: b"
  - "#c"
  - "trailing "
  - "line\\nbreak"
empty: []
map: {}
nested:
  - a: 1
    b:
      - true
  - c:
      d: e
"odd key:": "~"
`,
  );
});

test("spans and sizes are short and never negative", () => {
  const spans = [-5, 0, 999, 1000, 59_999, 60_000, 75_000, 600_000, 3_600_000, 5_400_000, 86_400_000, 97_200_000];
  assert.deepEqual(spans.map(formatSpan), [
    "0 ms",
    "0 ms",
    "999 ms",
    "1 s",
    "59 s",
    "1 min",
    "1 min 15 s",
    "10 min",
    "1 h",
    "1 h 30 min",
    "1 d",
    "1 d 3 h",
  ]);
  assert.deepEqual([0, 1023, 1024, 1536, 20_000, 5 * 2 ** 30].map(formatBytes), [
    "0 B",
    "1023 B",
    "1.0 KiB",
    "1.5 KiB",
    "20 KiB",
    "5.0 GiB",
  ]);
});
