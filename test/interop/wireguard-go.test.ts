import assert from "node:assert/strict";
import { once } from "node:events";
import { describe, it } from "node:test";
import { setTimeout as sleep } from "node:timers/promises";
import { fileURLToPath } from "node:url";
import { OLDER_MAX } from "#wireguard/worker/sessions.ts";
import { delivered, missingForLab, ping } from "./wireguard-lab.ts";
import { connect, HERE4, HERE6, OUTSIDE4, OUTSIDE6, PSK, THERE4, THERE6 } from "./wireguard-meeting.ts";

const skip = missingForLab() ?? false;

describe("the embedded device and wireguard-go", { skip, timeout: 60_000, concurrency: 3 }, () => {
  for (const presharedKey of [undefined, PSK]) {
    for (const [family, path] of [
      ["IPv4", OUTSIDE4],
      ["IPv6", OUTSIDE6],
    ] as const) {
      const what = `${presharedKey ? "with" : "without"} a preshared key over ${family}`;

      it(`talk when we initiate, ${what}`, async () => {
        await using pair = await connect({ path, presharedKey });
        const { lab } = pair;
        assert.deepEqual(await ping(lab, lab.here, "-c1", "-W2", THERE4), { sent: 1, received: 1 });
        assert.deepEqual(await ping(lab, lab.here, "-c1", "-W2", "-s", "1372", THERE6), { sent: 1, received: 1 });
        for (const size of ["0", "1391", "1392", "3000"]) {
          assert.deepEqual(await ping(lab, lab.here, "-c1", "-W2", "-s", size, THERE4), { sent: 1, received: 1 }, size);
        }
        const established = await pair.ours.waitFor("established");
        assert.equal(established.role, "initiator");
        assert.equal(pair.ours.count("established"), 1);
        assert.equal(pair.ours.count("path-hint"), 0);
      });

      it(`talk when they initiate, ${what}`, async () => {
        const theyKnowUs = family === "IPv4" ? "10.77.0.1:51820" : "[fd77::1]:51820";
        await using pair = await connect({ presharedKey, theyKnowUs });
        const { lab } = pair;
        assert.deepEqual(await ping(lab, lab.there, "-c1", "-W2", HERE4), { sent: 1, received: 1 });
        assert.deepEqual(await ping(lab, lab.there, "-c1", "-W2", HERE6), { sent: 1, received: 1 });
        const established = await pair.ours.waitFor("established");
        assert.equal(established.role, "responder");
        assert.deepEqual(await ping(lab, lab.here, "-c1", "-W2", THERE4), { sent: 1, received: 1 }, "and back");
      });
    }
  }

  it("do not talk when only one has the preshared key", async () => {
    await using pair = await connect({ path: OUTSIDE4, presharedKey: PSK });
    const { lab } = pair;
    await pair.theirs.setPeer(pair.ours.publicKey, {
      allowedIps: [`${HERE4}/32`],
      presharedKey: PSK.replace("Wlpa", "AAAA"),
    });
    assert.deepEqual(await ping(lab, lab.here, "-c1", "-W1", THERE4), { sent: 1, received: 0 });
    assert.equal(pair.ours.count("established"), 0);
    assert.ok((await pair.ours.counter("drop-handshake-authentication")) >= 1);
  });

  it("lose no packet over many rekeys", async () => {
    await using pair = await connect({
      path: OUTSIDE4,
      setup: { sessionLimits: { rekeyAfterTime: 300 }, handshakeRetry: { rekeyTimeout: 100, jitter: 0 } },
    });
    const { lab } = pair;
    const count = await delivered(pair.ours, 150, () => ping(lab, lab.here, "-c150", "-i0.02", "-W1", THERE4));
    assert.equal(count, 150);
    const times = pair.ours.count("established");
    // The worker asks once a second at most.
    assert.ok(times >= 3, `${times} handshakes`);
    assert.equal(await pair.ours.counter("drop-authentication"), 0);
    const sessions = await pair.ours.counter("sessions");
    // The current one, the one before and some before that: what is under way is decrypted, more is not kept.
    assert.ok(sessions <= 2 + OLDER_MAX, `${sessions} sessions are kept`);
  });

  it("wake a sleeping peer with the first packet, which is delivered", async () => {
    await using pair = await connect({ mode: "asleep" });
    const { lab } = pair;
    pair.ours.onEvent(async (event) => {
      if (event.name !== "wake") return;
      await pair.setPeer("awake");
      await pair.setPath(OUTSIDE4);
    });
    assert.deepEqual(await ping(lab, lab.here, "-c1", "-W2", THERE4), { sent: 1, received: 1 });
    const wake = (await pair.ours.waitFor("wake")) as { cause: { kind: string; packet: { destination: string } } };
    assert.equal(wake.cause.kind, "packet");
    assert.equal(wake.cause.packet.destination, THERE4);
    assert.equal(pair.ours.count("wake"), 1);
    await pair.setPeer("asleep");
    const again = await delivered(pair.ours, 3, () => ping(lab, lab.here, "-c3", "-i0.05", "-W2", THERE4));
    assert.equal(again, 3, "and again after the next sleep");
    assert.equal(pair.ours.count("wake"), 2);
  });

  it("wake a sleeping peer when it calls, and its first packet is answered", async () => {
    await using pair = await connect({ mode: "asleep", theyKnowUs: "10.77.0.1:51820" });
    const { lab } = pair;
    pair.ours.onEvent((event) => {
      if (event.name === "wake") void pair.setPeer("awake");
    });
    assert.deepEqual(await ping(lab, lab.there, "-c1", "-W2", HERE4), { sent: 1, received: 1 });
    const wake = (await pair.ours.waitFor("wake")) as { cause: { kind: string } };
    assert.equal(wake.cause.kind, "handshake");
    assert.equal(pair.ours.count("wake"), 1);
  });

  it("go on when their port and their address change, by the hint", async () => {
    await using pair = await connect({ path: OUTSIDE4 });
    const { lab } = pair;
    assert.deepEqual(await ping(lab, lab.here, "-c1", "-W2", THERE4), { sent: 1, received: 1 });
    const hint = async (change: () => Promise<void>): Promise<string> => {
      const before = pair.ours.count("path-hint");
      await change();
      await ping(lab, lab.there, "-c1", "-W1", HERE4);
      for (let tries = 0; pair.ours.count("path-hint") === before && tries < 50; tries++) await sleep(20);
      const last = pair.ours.events.findLast((event) => event.name === "path-hint");
      const { endpoint } = (last!.payload as { source: { endpoint: { address: string; port: number } } }).source;
      const path = `${endpoint.address}:${endpoint.port}`;
      await pair.setPath(path);
      assert.equal(await delivered(pair.ours, 2, () => ping(lab, lab.here, "-c2", "-i0.05", "-W2", THERE4)), 2);
      return path;
    };
    assert.equal(await hint(() => pair.theirs.set("listen-port", "51999")), "10.77.0.2:51999");
    const moved = await hint(async () => {
      await lab.ip(lab.there, "addr", "del", "10.77.0.2/24", "dev", "wire");
      await lab.ip(lab.there, "addr", "add", "10.77.0.22/24", "dev", "wire");
      // wireguard-go clings to the source address it used for up to 15 s, except towards an endpoint it was given anew.
      await pair.theirs.set("peer", pair.ours.publicKey, "endpoint", "10.77.0.1:51820");
    });
    assert.equal(moved, "10.77.0.22:51999");
    assert.equal(pair.ours.count("established"), 1, "one session all along");
  });

  it("go on when our address changes", async () => {
    await using pair = await connect({ path: OUTSIDE4 });
    const { lab } = pair;
    assert.deepEqual(await ping(lab, lab.here, "-c1", "-W2", THERE4), { sent: 1, received: 1 });
    await lab.ip(lab.here, "addr", "del", "10.77.0.1/24", "dev", "wire");
    await lab.ip(lab.here, "addr", "add", "10.77.0.11/24", "dev", "wire");
    assert.equal(await delivered(pair.ours, 3, () => ping(lab, lab.here, "-c3", "-i0.05", "-W2", THERE4)), 3);
    assert.equal(await pair.theirs.endpoint(), "10.77.0.11:51820");
  });

  for (const address of [THERE4, THERE6]) {
    it(`carry TCP to ${address} and back unchanged`, async () => {
      await using pair = await connect({ path: OUTSIDE4 });
      const { lab } = pair;
      const script = fileURLToPath(new URL("./wireguard-tcp.ts", import.meta.url));
      const server = lab.spawn(lab.there, process.execPath, [script, "serve", address, "7000"]);
      await once(server.stdout!, "data");
      const bytes = 20_000_000;
      const text = await lab.exec(lab.here, process.execPath, script, "send", address, "7000", String(bytes));
      assert.deepEqual(JSON.parse(text), { back: bytes, isSame: true });
      await lab.end(server);
      assert.equal(await pair.ours.counter("drop-authentication"), 0);
      assert.equal(await pair.ours.counter("drop-replay"), 0);
    });
  }

  it("agree on what was transferred", async () => {
    await using pair = await connect({ path: OUTSIDE4 });
    const { lab } = pair;
    await ping(lab, lab.here, "-c5", "-i0.02", "-W2", THERE4);
    await sleep(50);
    const { rx, tx } = await pair.theirs.transfer();
    const stats = (await pair.ours.request({ op: "stats", key: pair.theirs.publicKey })) as {
      rxBytes: number;
      txBytes: number;
      lastHandshake: number;
    };
    assert.deepEqual({ rx: stats.rxBytes, tx: stats.txBytes }, { rx: tx, tx: rx });
    assert.ok(Math.abs(stats.lastHandshake - Date.now()) < 10_000);
  });
});
