import assert from "node:assert/strict";
import { describe, it } from "node:test";
import { setTimeout as sleep } from "node:timers/promises";
import { OLDER_MAX } from "#wireguard/worker/sessions.ts";
import { delivered, Lab, missingForLab, OurDevice, ping } from "./wireguard-lab.ts";

const skip = missingForLab() ?? false;
const A = "10.99.0.1";
const B = "10.99.0.2";
const A_OUTSIDE = "10.77.0.1:51820";
const B_OUTSIDE = "10.77.0.2:51820";

/**
 * Two embedded devices that can reach each other directly, and this process as the relay between them. `wakeOver`: what an
 * agent does when its device reports a wake: awake, and these paths.
 */
async function connect(relayDelayMs = 0) {
  await using undo = new AsyncDisposableStack();
  const lab = undo.use(await Lab.create());
  const [a, b] = await Promise.all([
    OurDevice.start(lab, [`${A}/24`]),
    OurDevice.start(lab, [`${B}/24`], {}, lab.there),
  ]);
  undo.defer(() => Promise.all([a.close(), b.close()]).then(() => {}));
  let relayed = 0;
  const relay = (from: OurDevice, to: OurDevice): void => {
    from.onEvent(({ name, payload }) => {
      if (name !== "relay-out") return;
      relayed++;
      setTimeout(() => {
        void to.request({ op: "inject", key: from.publicKey, datagram: payload.datagram as string });
      }, relayDelayMs);
    });
  };
  relay(a, b);
  relay(b, a);
  const other = (device: OurDevice): OurDevice => (device === a ? b : a);
  const set = async (device: OurDevice, mode: "asleep" | "awake"): Promise<void> => {
    const allowedIps = [`${device === a ? B : A}/32`];
    await device.request({ op: "setPeer", key: other(device).publicKey, mode, allowedIps });
  };
  const setPath = (device: OurDevice, path: string): Promise<unknown> =>
    device.request({ op: "setPath", key: other(device).publicKey, path });
  const initiate = (device: OurDevice, ...paths: string[]): Promise<unknown> =>
    device.request({ op: "initiate", key: other(device).publicKey, paths });
  const pingB = (...args: string[]) => ping(lab, lab.here, "-W2", ...args, B);
  const pingA = (...args: string[]) => ping(lab, lab.there, "-W2", ...args, A);
  const stack = undo.move();
  return {
    lab,
    a,
    b,
    set,
    setPath,
    initiate,
    pingA,
    pingB,
    relayed: () => relayed,
    [Symbol.asyncDispose]: () => stack.disposeAsync(),
  };
}

const gave = async (device: OurDevice, name: string): Promise<number> => device.counter(name);

describe("two embedded devices", { skip, timeout: 60_000, concurrency: 2 }, () => {
  it("wake over the relay with the first packet and move to the direct path without losing one", async () => {
    await using pair = await connect(5);
    const { a, b, set, setPath, initiate, pingB } = pair;
    for (const device of [a, b]) await set(device, "asleep");
    a.onEvent(async ({ name }) => {
      if (name !== "wake") return;
      await set(a, "awake");
      await initiate(a, "relay");
    });
    b.onEvent(({ name }) => {
      if (name === "wake") void set(b, "awake");
    });
    assert.deepEqual(await pingB("-c1"), { sent: 1, received: 1 });
    assert.equal(a.count("wake"), 1);
    assert.equal(b.count("wake"), 1);
    assert.equal((await a.waitFor("established")).role, "initiator");
    assert.equal((await b.waitFor("established")).role, "responder");
    const over = await delivered(a, 100, async () => {
      const running = pingB("-c100", "-i0.01");
      await sleep(300);
      await setPath(a, B_OUTSIDE);
      await sleep(100);
      await setPath(b, A_OUTSIDE);
      await running;
    });
    assert.equal(over, 100);
    const before = pair.relayed();
    assert.equal(await delivered(a, 5, () => pingB("-c5", "-i0.01")), 5);
    assert.equal(pair.relayed(), before, "nothing over the relay any more");
    const back = await delivered(a, 60, async () => {
      const running = pingB("-c60", "-i0.01");
      await sleep(200);
      await Promise.all([setPath(a, "relay"), setPath(b, "relay")]);
      await running;
    });
    assert.equal(back, 60, "and back to the relay");
    assert.equal(a.count("established"), 1, "one session for all of it");
  });

  for (const path of ["relay", "direct"]) {
    it(`complete at once when both wake each other in the same instant, over the ${path} path`, async () => {
      await using pair = await connect(10);
      const { a, b, set, setPath, initiate } = pair;
      for (const device of [a, b]) {
        device.onEvent(async ({ name, payload }) => {
          if (name !== "wake") return;
          const to = path === "relay" ? "relay" : device === a ? B_OUTSIDE : A_OUTSIDE;
          await set(device, "awake");
          if ((payload as { cause: { kind: string } }).cause.kind === "packet") await initiate(device, to);
          await setPath(device, to);
        });
      }
      for (let round = 0; round < 10; round++) {
        for (const device of [a, b]) {
          // A peer that is removed and set again has no session: as cold as it gets.
          await device.request({ op: "removePeer", key: (device === a ? b : a).publicKey });
          await set(device, "asleep");
        }
        const started = performance.now();
        const results = await Promise.all([pair.pingB("-c1"), pair.pingA("-c1")]);
        const elapsed = performance.now() - started;
        assert.deepEqual(results, [
          { sent: 1, received: 1 },
          { sent: 1, received: 1 },
        ]);
        assert.ok(elapsed < 2000, `round ${round} took ${elapsed} ms`);
        // What is still under way from this round would wake the peers of the next.
        await sleep(60);
      }
      for (const device of [a, b]) {
        assert.equal(await gave(device, "drop-staged-given-up"), 0);
        assert.equal(await gave(device, "drop-authentication"), 0);
      }
    });
  }

  // The worker drops the session in use when two rekeys cross: one packet is lost in about every second run.
  it("keep talking over rekeys while both send", async () => {
    await using pair = await connect();
    const { a, b, set, setPath } = pair;
    await Promise.all([set(a, "awake"), set(b, "awake")]);
    await Promise.all([setPath(a, B_OUTSIDE), setPath(b, A_OUTSIDE)]);
    const both = (...args: string[]) => Promise.all([pair.pingB(...args), pair.pingA(...args)]);
    // Each side gets the requests of the other and the replies to its own.
    const counts = await Promise.all(
      [a, b].map((device) =>
        delivered(device, 302, async () => {
          if (device === b) return sleep(2500);
          await both("-c1");
          const traffic = both("-c150", "-i0.01");
          for (let i = 0; i < 12; i++) {
            await sleep(100);
            const starter = i % 3 === 0 ? a : b;
            await pair.initiate(starter, starter === a ? B_OUTSIDE : A_OUTSIDE);
            if (i % 4 === 0) await pair.initiate(a, B_OUTSIDE);
          }
          return traffic;
        }),
      ),
    );
    assert.deepEqual(counts, [302, 302]);
    assert.ok(a.count("established") >= 10);
    assert.equal(a.count("handshake-failed"), 0);
    for (const device of [a, b]) assert.ok((await gave(device, "sessions")) <= 2 + OLDER_MAX);
  });

  it("take a replayed packet and a replayed initiation once", async () => {
    await using pair = await connect();
    const { a, b, set, setPath, initiate, pingB } = pair;
    await Promise.all([set(a, "awake"), set(b, "awake")]);
    await initiate(a, "relay");
    await Promise.all([setPath(a, "relay"), setPath(b, "relay")]);
    assert.equal(await delivered(a, 3, () => pingB("-c3", "-i0.02")), 3);
    await sleep(30);
    const before = { rx: await gave(b, "tun-write"), accepted: await gave(b, "handshake-initiations-accepted") };
    const sent = a.events.filter(({ name }) => name === "relay-out").map(({ payload }) => payload.datagram as string);
    for (const datagram of sent) await b.request({ op: "inject", key: a.publicKey, datagram });
    await sleep(50);
    assert.equal(await gave(b, "tun-write"), before.rx, "nothing came out again");
    assert.equal(await gave(b, "handshake-initiations-accepted"), before.accepted);
    assert.equal(await gave(b, "drop-handshake-replay"), 1);
    assert.ok((await gave(b, "drop-replay")) >= 3);
  });
});
