import assert from "node:assert/strict";
import { describe, it } from "node:test";
import { setImmediate as turn } from "node:timers/promises";
import { parseEndpoint, parsePrefix } from "#base/ip.ts";
import { PrivateKey } from "#base/keys.ts";
import { ExternalDeviceError } from "./external-error.ts";
import { DIRECT, setUp } from "./testing/scripted-device.ts";

describe("peers of an external device", () => {
  it("are told in one call, however many come in one turn, and those of the next turns wait for it", async () => {
    const { device, backend, ends } = setUp();
    const { control } = backend;
    const keys = Array.from({ length: 1_000 }, () => PrivateKey.generate().publicKey);
    const { promise, resolve } = Promise.withResolvers<void>();
    control.gate = promise;
    for (const [index, key] of keys.entries())
      device.setPeer(key, { mode: "asleep", allowedIps: [parsePrefix(`100.64.${index >> 8}.${index & 255}/32`)] });
    await turn();
    assert.equal(control.calls.length, 1);
    assert.equal(control.calls[0]!.peers.length, 1_000);
    device.removePeer(keys[0]!);
    await turn();
    device.removePeer(keys[1]!);
    await turn();
    assert.equal(control.calls.length, 1, "one under way");
    resolve();
    await turn();
    assert.deepEqual(
      control.calls.map(({ peers }) => peers.length),
      [1_000, 2],
    );
    assert.equal(control.peers.size, 998);
    assert.equal(ends.opened.size, 998);
    assert.equal(device.allPeerStats().size, 998);
    assert.equal(device.counters().get("peers"), 998);
    await device.close();
    assert.equal(backend.closed, 1);
  });

  it("cost neither timer nor reading while they sleep", async () => {
    const { clock, control, set, pass, device, peer } = setUp();
    // Whether it has its port.
    await pass(11_000);
    assert.equal(control.reads, 2);
    set("asleep");
    device.setPath(peer, DIRECT);
    assert.equal(device.initiate(peer, [DIRECT]), false);
    await pass(100);
    assert.deepEqual(control.take(), ["add to 127.1.0.1:4000 ips 100.64.0.2/32 keepalive 0"]);
    assert.equal(clock.pending, 0);
    assert.equal(control.reads, 2);
  });

  it("are changed only where they changed", async () => {
    const { control, set, pass, device, peer } = setUp();
    const allowedIps = [parsePrefix("100.64.0.2/32")];
    device.setPeer(peer, { mode: "asleep", allowedIps });
    await pass(5);
    control.take();
    device.setPeer(peer, { mode: "asleep", allowedIps });
    await pass(5);
    assert.deepEqual(control.take(), []);
    set("asleep", { allowedIps: [parsePrefix("100.64.0.2/32"), parsePrefix("10.1.0.0/16")] });
    await pass(5);
    assert.deepEqual(control.take(), ["ips 100.64.0.2/32,10.1.0.0/16"]);
  });

  it("that the device refuses are counted, and nobody is hurt", async () => {
    const { device, control, set, pass } = setUp();
    control.failures.push(new Error("no"));
    set("asleep");
    await pass(5);
    set("asleep", { allowedIps: [parsePrefix("100.64.0.3/32")] });
    await pass(5);
    assert.equal(device.counters().get("changes-refused"), 1);
  });
});

describe("an external device", () => {
  it("is given everything again when its program was restarted, in one call, and awake peers begin anew", async () => {
    const { backend, device, peer, connect, takeEvents, pass, clock, set } = setUp();
    await connect(DIRECT);
    const sleeper = PrivateKey.generate().publicKey;
    device.setPeer(sleeper, { mode: "asleep", allowedIps: [parsePrefix("100.64.0.3/32")] });
    await pass(5);
    const before = device.peerStats(peer)!;
    backend.restart();
    const { control } = backend;
    await pass(5);
    assert.deepEqual(takeEvents(), ["worker-restarted"]);
    assert.equal(control.calls.length, 1);
    const { change } = control.calls[0]!;
    assert.ok(change.privateKey && change.listenPort === 51820 && change.replacePeers);
    assert.deepEqual(control.take().sort(), [
      "add to 127.1.0.2:4000 ips 100.64.0.3/32 keepalive 0",
      "add to 192.0.2.2:51820 ips 100.64.0.2/32 keepalive 25",
    ]);
    control.note(peer, { lastHandshake: clock.wall(), rxBytes: 92, txBytes: 148 });
    await pass(1_100);
    assert.deepEqual(takeEvents(), ["established"]);
    assert.equal(device.peerStats(peer)!.rxBytes, before.rxBytes + 92);
    assert.equal(device.counters().get("worker-restarts"), 1);
    set("asleep");
    await pass(5);
    assert.ok(control.peers.get(peer)!.endpoint!.address.startsWith("127."));
  });

  it("that is gone says so once, is closed, and takes nothing any more", async () => {
    const { backend, device, set, takeEvents, rules, control, clock } = setUp();
    set("awake");
    backend.events.emit("gone", { reason: "deleted" });
    backend.events.emit("gone", { reason: "deleted" });
    await device.close();
    assert.deepEqual(takeEvents(), ["gone"]);
    assert.equal(backend.closed, 1);
    assert.deepEqual(rules.calls, [["close"]]);
    const { length } = control.calls;
    set("asleep");
    await turn();
    assert.equal(control.calls.length, length);
    assert.equal(clock.pending, 0);
  });

  it("is told everything anew a second after it did not answer, and peers keep their sessions", async () => {
    const { device, peer, connect, pass, control, takeEvents } = setUp();
    await connect(DIRECT);
    const former = PrivateKey.generate().publicKey;
    device.setPeer(former, { mode: "asleep", allowedIps: [] });
    await pass(5);
    control.failures.push(new ExternalDeviceError("control-failed", "no answer for 10 s", { retryable: true }));
    device.removePeer(former);
    await pass(5);
    assert.ok(control.peers.has(former));
    control.take();
    await pass(1_000);
    assert.deepEqual(control.take(), ["add to 192.0.2.2:51820 ips 100.64.0.2/32 keepalive 25"]);
    assert.deepEqual([...control.peers.keys()], [peer]);
    await pass(5_000);
    assert.deepEqual([control.take(), takeEvents()], [[], []]);
  });

  it("is gone when its program was restarted and somebody else has its port meanwhile", async () => {
    const { backend, takeEvents } = setUp({
      checkPort: (port) => {
        throw new Error(`UDP port ${port} is taken`);
      },
    });
    backend.restart();
    await turn();
    assert.deepEqual(takeEvents(), ["gone"]);
    assert.equal(backend.closed, 1);
    assert.deepEqual(backend.control.calls, []);
  });

  it("is gone when another program took its port just before it could", async () => {
    const { backend, takeEvents, pass } = setUp();
    backend.restart();
    await pass(5);
    takeEvents();
    // Somebody brings the interface up, and the device cannot open its port then.
    await pass(1_000);
    backend.control.listenPort = 0;
    await pass(2_000);
    assert.deepEqual(takeEvents(), ["gone"]);
    assert.equal(backend.closed, 1);
  });

  it("is gone when nobody reads its local ends any more", async () => {
    const { backend, ends, takeEvents } = setUp();
    ends.events.emit("failed", { reason: "the port thread died too often" });
    await turn();
    assert.deepEqual(takeEvents(), ["gone"]);
    assert.equal(backend.closed, 1);
  });

  it("is told everything anew when somebody else has changed its peers or its port, and not for its own changes", async () => {
    const { device, peer, connect, pass, control, takeEvents } = setUp();
    await connect(DIRECT);
    await pass(1_100);
    control.take();
    const [known] = control.peers.entries();
    control.peers.delete(peer);
    await pass(2_500);
    assert.deepEqual(control.take(), ["add to 192.0.2.2:51820 ips 100.64.0.2/32 keepalive 25"]);
    control.listenPort = 1234;
    await pass(2_500);
    assert.equal(control.calls.length, 1);
    assert.equal(control.calls[0]!.change.listenPort, 51820);
    // It refuses to have it otherwise: said once.
    control.take();
    await pass(10_000);
    assert.deepEqual(control.take(), []);
    control.listenPort = 51820;
    await pass(2_000);
    for (let i = 0; i < 20; i++) {
      device.setPeer(PrivateKey.generate().publicKey, { mode: "asleep", allowedIps: [] });
      await pass(250);
    }
    assert.deepEqual(new Set(control.calls.map(({ change }) => change.replacePeers)), new Set([undefined]));
    assert.equal(control.peers.size, 21);
    assert.deepEqual([takeEvents(), known![0]], [[], peer]);
  });

  it("closes although its program answers no call any more", async () => {
    const { backend, device, set, control } = setUp();
    control.gate = new Promise(() => {});
    set("awake");
    await turn();
    await device.close();
    assert.equal(backend.closed, 1);
  });

  it("moves a peer's local end when that moved", async () => {
    const { ends, peer, set, pass, control, device } = setUp();
    set("awake");
    await pass(5);
    control.take();
    const endpoint = parseEndpoint("127.9.9.9:4000");
    ends.events.emit("moved", { key: peer, endpoint });
    await pass(1);
    assert.deepEqual(control.take(), ["to 127.9.9.9:4000"]);
    device.setPath(peer, DIRECT);
    await pass(1);
    control.take();
    ends.events.emit("moved", { key: peer, endpoint });
    await pass(1);
    assert.deepEqual(control.take(), []);
  });

  it("has its packets filtered by its rules", async () => {
    const { device, rules } = setUp();
    device.setFilter({ inbound: [], otherwise: "drop" });
    device.setFilterSource(parsePrefix("100.64.0.2/32"), []);
    assert.deepEqual(rules.calls, [
      ["set", { inbound: [], otherwise: "drop" }],
      ["source", "100.64.0.2/32", 0],
    ]);
    await device.close();
  });

  it("tells its rules from where peers may send", async () => {
    const { device, rules, peer } = setUp();
    const first = [parsePrefix("100.64.0.7/32")];
    const second = [...first, parsePrefix("192.168.7.0/24")];
    device.setPeer(peer, { mode: "asleep", allowedIps: first });
    device.setPeer(peer, { mode: "awake", allowedIps: first });
    device.setPeer(peer, { mode: "awake", allowedIps: second });
    device.removePeer(peer);
    assert.deepEqual(rules.moves, [
      [[], ["100.64.0.7/32"]],
      [["100.64.0.7/32"], ["100.64.0.7/32", "192.168.7.0/24"]],
      [["100.64.0.7/32", "192.168.7.0/24"], []],
    ]);
    await device.close();
  });
});
