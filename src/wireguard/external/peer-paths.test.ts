import assert from "node:assert/strict";
import { describe, it } from "node:test";
import { DIRECT, ELSEWHERE, message, NONE, RELAY, setUp } from "./testing/scripted-device.ts";

describe("the path of an awake peer of an external device", () => {
  it("has everything that the device sends passed on over its path, and kept while there is none", () => {
    const { set, out, device, peer, takeRelayed, port, events } = setUp();
    set("awake");
    const kept = out(message(4));
    assert.deepEqual(takeRelayed(), []);
    device.setPath(peer, RELAY);
    const next = out(message(4));
    assert.deepEqual(takeRelayed(), [kept, next]);
    device.setPath(peer, DIRECT);
    const late = out(message(4));
    assert.deepEqual(port.sent, [{ datagram: late, to: "192.0.2.2:51820" }], "the device was not told yet");
    port.errors.push("ENETUNREACH", "EAGAIN");
    out(message(4));
    out(message(4));
    assert.deepEqual(
      events.map(({ payload }) => payload),
      [{ key: peer, endpoint: DIRECT.endpoint, code: "ENETUNREACH" }],
    );
    device.setPath(peer, NONE);
    for (let i = 0; i < 200; i++) out(message(4, 1_452));
    assert.equal(device.peerStats(peer)!.stagedBytes, 128 * 1_452);
    assert.equal(device.counters().get("drop-staged-bytes"), 72 * 1_452);
  });

  it("has the device sent to its path, and to its local end when that is over", async () => {
    const { set, device, peer, control, pass, local } = setUp();
    set("awake");
    device.setPath(peer, RELAY);
    await pass(1);
    control.take();
    device.setPath(peer, DIRECT);
    device.setPath(peer, DIRECT);
    await pass(1);
    assert.deepEqual(control.take(), ["to 192.0.2.2:51820"]);
    device.setPath(peer, RELAY);
    await pass(1);
    assert.deepEqual(control.peers.get(peer)!.endpoint, local());
  });

  it("hints when the device roamed, and returns it to the relay when the caller stays there", async () => {
    const { peer, control, connect, pass, events, local, device } = setUp();
    await connect(RELAY);
    control.note(peer, { rxBytes: 128, endpoint: ELSEWHERE.endpoint });
    await pass(1_100);
    assert.deepEqual(
      events.splice(0).map(({ payload }) => payload),
      [{ key: peer, source: ELSEWHERE }],
    );
    assert.deepEqual(control.peers.get(peer)!.endpoint, local());
    device.events.on("path-hint", ({ source }) => device.setPath(peer, source));
    control.note(peer, { rxBytes: 128, endpoint: ELSEWHERE.endpoint });
    await pass(2_000);
    assert.equal(events.length, 1, "it is its path now");
    assert.deepEqual(control.peers.get(peer)!.endpoint, ELSEWHERE.endpoint);
  });

  it("on a direct path goes back to it when data came by the relay, and says so", async () => {
    const { peer, control, connect, pass, events, local, device } = setUp();
    await connect(DIRECT);
    device.injectRelayed(peer, message(4));
    control.note(peer, { rxBytes: 128, endpoint: local() });
    await pass(1_100);
    assert.deepEqual(
      events.map(({ name, payload }) => [name, payload]),
      [["path-hint", { key: peer, source: RELAY }]],
    );
    assert.deepEqual(control.peers.get(peer)!.endpoint, DIRECT.endpoint);
  });

  it("becomes direct with a response that came directly, and the relay again when nothing answers there", async () => {
    const { device, peer, set, out, control, pass, events, local, clock } = setUp();
    const chosen: string[] = [];
    // As the agent does.
    device.events.on("established", ({ source }) => device.setPath(peer, source));
    device.events.on("silent", () => device.setPath(peer, RELAY));
    device.events.on("path-hint", ({ source }) => chosen.push(source.kind));
    set("asleep");
    out(message(1));
    set("awake");
    device.initiate(peer, [DIRECT, RELAY]);
    device.setPath(peer, RELAY);
    await pass(60);
    control.note(peer, { lastHandshake: clock.wall(), rxBytes: 92, txBytes: 148, endpoint: DIRECT.endpoint });
    await pass(1_100);
    assert.deepEqual(control.peers.get(peer)!.endpoint, DIRECT.endpoint);
    events.length = 0;
    control.note(peer, { txBytes: 256 });
    await pass(1_700);
    assert.deepEqual(
      events.splice(0).map(({ name }) => name),
      ["silent"],
    );
    assert.deepEqual(control.peers.get(peer)!.endpoint, local());
    control.note(peer, { txBytes: 256, rxBytes: 256 });
    await pass(20_000);
    assert.deepEqual(events, [], "the relay carries");
    assert.deepEqual(control.peers.get(peer)!.endpoint, local());
    assert.deepEqual(chosen, []);
  });
});
