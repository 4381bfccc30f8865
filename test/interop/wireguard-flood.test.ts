import assert from "node:assert/strict";
import { once } from "node:events";
import { describe, it } from "node:test";
import { setTimeout as sleep } from "node:timers/promises";
import { fileURLToPath } from "node:url";
import { PrivateKey } from "#base/keys.ts";
import type { FloodOptions } from "../../lab/handshake-flooder.ts";
import { delivered, Judge, Lab, missingForLab, OurDevice, ping } from "./wireguard-lab.ts";

const skip = missingForLab() ?? false;
const A = "10.99.0.1";
const B = "10.99.0.2";
const FLOODER_OUTSIDE = "10.77.0.3";
const JUDGE_PORT = 51821;

/** Made messages wait for `start`, which resolves with their number when all are sent. */
async function makeFlood(
  lab: Lab,
  target: OurDevice | Judge,
  options: Pick<FloodOptions, "kind" | "perSecond" | "seconds"> & Partial<FloodOptions>,
): Promise<() => Promise<number>> {
  const isOurs = target instanceof OurDevice;
  const from = isOurs ? lab.there : lab.here;
  await lab.ip(from, "addr", "add", `${FLOODER_OUTSIDE}/24`, "dev", "wire");
  const all: FloodOptions = {
    to: isOurs ? "10.77.0.1" : "10.77.0.2",
    port: isOurs ? target.listenPort : JUDGE_PORT,
    from: FLOODER_OUTSIDE,
    publicKey: target.publicKey,
    ...options,
  };
  const script = fileURLToPath(new URL("../../lab/handshake-flooder.ts", import.meta.url));
  const child = lab.spawn(from, process.execPath, [script, JSON.stringify(all)], "input");
  await once(child.stdout!, "data");
  return async () => {
    child.stdin!.write("\n");
    const [sent] = (await once(child.stdout!, "data")) as [Buffer];
    return Number(sent.toString());
  };
}

async function connect() {
  await using undo = new AsyncDisposableStack();
  const lab = undo.use(await Lab.create());
  const [a, b] = await Promise.all([
    OurDevice.start(lab, [`${A}/24`]),
    OurDevice.start(lab, [`${B}/24`], {}, lab.there),
  ]);
  undo.defer(() => Promise.all([a.close(), b.close()]).then(() => {}));
  await a.request({ op: "setPeer", key: b.publicKey, mode: "awake", allowedIps: [`${B}/32`] });
  await b.request({ op: "setPeer", key: a.publicKey, mode: "awake", allowedIps: [`${A}/32`] });
  await a.request({ op: "setPath", key: b.publicKey, path: "10.77.0.2:51820" });
  await b.request({ op: "setPath", key: a.publicKey, path: "10.77.0.1:51820" });
  assert.equal((await ping(lab, lab.here, "-c1", "-W2", B)).received, 1);
  const stack = undo.move();
  return { lab, a, b, [Symbol.asyncDispose]: () => stack.disposeAsync() };
}

describe("2,000 handshake initiations a second", { skip, timeout: 60_000, concurrency: 1 }, () => {
  for (const kind of ["bogus", "stranger", "peer"] as const) {
    it(`of the kind "${kind}" stop neither the traffic of a pair nor its next handshake`, async () => {
      await using pair = await connect();
      const { lab, a, b } = pair;
      const other = PrivateKey.generate();
      await a.request({ op: "setPeer", key: other.publicKey, mode: "awake", allowedIps: ["10.99.0.9/32"] });
      const known = kind === "peer" ? { privateKey: other.toBase64() } : {};
      const start = await makeFlood(lab, a, { kind, perSecond: 2000, seconds: 2, ...known });
      const flood = start();
      const pings = 300;
      const arrived = await delivered(a, pings, () => ping(lab, lab.there, "-i0.005", `-c${pings}`, "-W2", A));
      assert.ok(arrived >= pings, `${arrived} of ${pings} packets arrived`);
      const before = b.count("established");
      for (let tries = 0; b.count("established") === before && tries < 10; tries++) {
        await b.request({ op: "initiate", key: a.publicKey, paths: ["10.77.0.1:51820"] });
        await sleep(250);
      }
      assert.equal(b.count("established"), before + 1, "a real handshake goes through");
      const sent = await flood;
      assert.ok(sent >= 3_900, `${sent} were sent`);
      await sleep(100);
      const seen = async (name: string): Promise<number> => a.counter(name);
      if (kind === "bogus") {
        assert.equal(await seen("drop-mac1"), sent);
        assert.equal(await seen("cookie-replies-sent"), 0);
      } else if (kind === "stranger") {
        const answered =
          (await seen("drop-handshake-unknown-peer")) +
          (await seen("cookie-replies-sent")) +
          (await seen("drop-unproved-source"));
        assert.equal(answered, sent);
      } else {
        const accepted = await seen("handshake-initiations-accepted");
        assert.ok(accepted > 20 && accepted < 150, `${accepted} were accepted, 50 a second may be`);
      }
      assert.equal(await seen("drop-handshake-queue"), 0);
      assert.equal(await seen("drop-socket-queue"), 0);
    });
  }
});

describe("a device under load and wireguard-go", { skip, timeout: 60_000 }, () => {
  it("agree on a cookie: the repeated initiation carries it and is answered", async () => {
    await using undo = new AsyncDisposableStack();
    const lab = undo.use(await Lab.create());
    const theirs = await Judge.start(lab, [`${B}/24`], JUDGE_PORT);
    const ours = await OurDevice.start(lab, [`${A}/24`]);
    undo.defer(() => ours.close());
    await ours.request({ op: "setPeer", key: theirs.publicKey, mode: "awake", allowedIps: [`${B}/32`] });
    // In bursts of more than main answers before the next: its queue is an eighth full again and again.
    const options = { kind: "stranger", perSecond: 1200, seconds: 7, tickMs: 500 } as const;
    const start = await makeFlood(lab, ours, options);
    const flood = start();
    while ((await ours.counter("cookie-replies-sent")) === 0) await sleep(20);
    const refused = await ours.counter("cookie-replies-sent");
    await theirs.setPeer(ours.publicKey, { allowedIps: [`${A}/32`], endpoint: `10.77.0.1:${ours.listenPort}` });
    const begun = performance.now();
    void ping(lab, lab.there, "-c1", "-W1", A);
    const established = await ours.waitFor("established", 8000);
    assert.equal(established.role, "responder");
    const elapsed = performance.now() - begun;
    assert.ok(elapsed > 4_500, `its first initiation was answered, after ${elapsed} ms`);
    assert.ok((await ours.counter("cookie-replies-sent")) > refused);
    assert.equal((await ping(lab, lab.there, "-c1", "-W2", A)).received, 1);
    await flood;
  });

  it("agree on a cookie the other way round: our repeated initiation carries theirs and is answered", async () => {
    await using undo = new AsyncDisposableStack();
    const lab = undo.use(await Lab.create());
    const theirs = await Judge.start(lab, [`${B}/24`], JUDGE_PORT);
    const ours = await OurDevice.start(lab, [`${A}/24`]);
    undo.defer(() => ours.close());
    await theirs.setPeer(ours.publicKey, { allowedIps: [`${A}/32`] });
    // More at once than an eighth of their queue of 1,024, again within the second that their load lasts.
    const start = await makeFlood(lab, theirs, { kind: "stranger", perSecond: 2000, seconds: 8, tickMs: 500 });
    const flood = start();
    await sleep(1200);
    await ours.request({ op: "setPeer", key: theirs.publicKey, mode: "awake", allowedIps: [`${B}/32`] });
    const begun = performance.now();
    await ours.request({ op: "initiate", key: theirs.publicKey, paths: [`10.77.0.2:${JUDGE_PORT}`] });
    const established = await ours.waitFor("established", 8000);
    assert.equal(established.role, "initiator");
    assert.ok((await ours.counter("cookie-replies-taken")) >= 1);
    const elapsed = performance.now() - begun;
    assert.ok(elapsed > 4_500, `the first initiation was answered, after ${elapsed} ms`);
    assert.equal((await ping(lab, lab.here, "-c1", "-W2", B)).received, 1);
    await flood;
  });
});
