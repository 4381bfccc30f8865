import assert from "node:assert/strict";
import { once } from "node:events";
import { describe, it } from "node:test";
import { fileURLToPath } from "node:url";
import { buildForeign, type ForeignProgram } from "../../lab/foreign-program.ts";
import { WITHOUT_COMPILER } from "../../scripts/test-totals.ts";
import { sendUdp, type TrafficEnd } from "../integration/data-plane/checks.ts";
import { delivered, type JudgeProgram, type Lab, missingForLab, ping } from "./wireguard-lab.ts";
import { connect, HERE4, HERE6, OUTSIDE4, OUTSIDE6, PSK, THERE4, THERE6 } from "./wireguard-meeting.ts";

const WE4 = "10.77.0.1:51820";
const WE6 = "[fd77::1]:51820";
const TCP_BYTES = 30_000_000;
/** 40 datagrams each. Two at a time are what boringtun's socket holds, which has a buffer of the system's default size. */
const UDP_BURSTS = 50;

const trafficEnd = (lab: Lab, namespace: string): TrafficEnd => ({
  spawn: (program, ...args) => lab.spawn(namespace, program, args, "input"),
});

/** Payloads of ping: every residue of the padding, and around the packet that fills the MTU of 1420 bytes. */
const SIZES = {
  4: [...Array(17).keys(), 1375, 1376, 1377, 1391, 1392, 1393, 3000, 9000],
  6: [...Array(17).keys(), 1355, 1356, 1357, 1371, 1372, 1373, 3000, 9000],
} as const;

/** Everything that a WireGuard judges another by, with a program built from its source. `args`: before the interface's name. */
export async function describeJudge(program: ForeignProgram, args: readonly string[]): Promise<void> {
  const unable = missingForLab();
  const built = unable === undefined ? await buildForeign(program) : { kind: "missing" as const, reason: unable };
  const skip = built.kind === "missing" ? (unable ?? `${WITHOUT_COMPILER}${built.reason}`) : false;
  const judge: JudgeProgram = { binary: built.kind === "built" ? built.binary : "", args };
  const title = `the embedded device and ${program.name} ${program.version}`;

  describe(title, { skip, timeout: 60_000, concurrency: 3 }, () => {
    for (const presharedKey of [undefined, PSK]) {
      for (const [family, path, theyKnowUs] of [
        ["IPv4", OUTSIDE4, WE4],
        ["IPv6", OUTSIDE6, WE6],
      ] as const) {
        const what = `${presharedKey ? "with" : "without"} a preshared key over ${family}`;

        it(`talk when we initiate, ${what}`, async () => {
          await using pair = await connect({ judge, path, presharedKey });
          const { lab, ours } = pair;
          for (const to of [THERE4, THERE6])
            assert.deepEqual(await ping(lab, lab.here, "-c1", "-W2", to), { sent: 1, received: 1 });
          assert.equal((await ours.waitFor("established")).role, "initiator");
          assert.equal(ours.count("established"), 1);
          assert.equal(ours.count("path-hint"), 0);
        });

        it(`talk when they initiate, ${what}`, async () => {
          await using pair = await connect({ judge, presharedKey, theyKnowUs });
          const { lab, ours } = pair;
          for (const to of [HERE4, HERE6])
            assert.deepEqual(await ping(lab, lab.there, "-c1", "-W2", to), { sent: 1, received: 1 });
          assert.equal((await ours.waitFor("established")).role, "responder");
          assert.equal(ours.count("established"), 1);
          assert.deepEqual(await ping(lab, lab.here, "-c1", "-W2", THERE4), { sent: 1, received: 1 }, "and back");
        });
      }
    }

    it("do not talk when only one has the preshared key", async () => {
      await using pair = await connect({ judge, path: OUTSIDE4, presharedKey: PSK, theirPresharedKey: undefined });
      const { lab, ours } = pair;
      assert.deepEqual(await ping(lab, lab.here, "-c1", "-W1", THERE4), { sent: 1, received: 0 });
      assert.equal(ours.count("established"), 0);
    });

    it("take packets of every size at the padding's and the MTU's boundaries, from both sides", async () => {
      await using pair = await connect({ judge, path: OUTSIDE4, theyKnowUs: WE4 });
      const { lab } = pair;
      assert.equal((await ping(lab, lab.here, "-c1", "-W2", THERE4)).received, 1);
      for (const [from, to, sizes] of [
        [lab.here, THERE4, SIZES[4]],
        [lab.here, THERE6, SIZES[6]],
        [lab.there, HERE4, SIZES[4]],
        [lab.there, HERE6, SIZES[6]],
      ] as const) {
        // One after the other: an answer proves its size, and what is lost is named.
        const script = sizes.map((size) => `ping -q -c1 -W2 -s ${size} ${to} >/dev/null || echo ${size}`).join("; ");
        assert.equal(await lab.exec(from, "sh", "-c", script), "", `sizes that got no answer from ${to}`);
      }
    });

    it("lose no packet over many rekeys", async () => {
      await using pair = await connect({
        judge,
        path: OUTSIDE4,
        setup: { sessionLimits: { rekeyAfterTime: 300 }, handshakeRetry: { rekeyTimeout: 100, jitter: 0 } },
      });
      const { lab, ours } = pair;
      assert.equal(await delivered(ours, 150, () => ping(lab, lab.here, "-c150", "-i0.02", "-W1", THERE4)), 150);
      // The worker asks once a second at most.
      assert.ok(ours.count("established") >= 3, `${ours.count("established")} handshakes`);
      assert.equal(await ours.counter("drop-authentication"), 0);
    });

    it("go on by a handshake of theirs after they forgot the session", async () => {
      await using pair = await connect({ judge, path: OUTSIDE4, theyKnowUs: WE4 });
      const { lab, ours, theirs } = pair;
      assert.equal((await ping(lab, lab.here, "-c1", "-W2", THERE4)).received, 1);
      await theirs.set("peer", ours.publicKey, "remove");
      await theirs.setPeer(ours.publicKey, { allowedIps: [`${HERE4}/32`, `${HERE6}/128`], endpoint: WE4 });
      assert.deepEqual(await ping(lab, lab.there, "-c1", "-W2", HERE4), { sent: 1, received: 1 });
      await ours.waitForCount("established", 2);
      assert.equal(ours.events.findLast(({ name }) => name === "established")?.payload.role, "responder");
      assert.deepEqual(await ping(lab, lab.here, "-c1", "-W2", THERE6), { sent: 1, received: 1 });
      assert.equal(ours.count("established"), 2);
    });

    it("go on when our address changes", async () => {
      await using pair = await connect({ judge, path: OUTSIDE4 });
      const { lab, ours, theirs } = pair;
      assert.equal((await ping(lab, lab.here, "-c1", "-W2", THERE4)).received, 1);
      await lab.ip(lab.here, "addr", "del", "10.77.0.1/24", "dev", "wire");
      await lab.ip(lab.here, "addr", "add", "10.77.0.11/24", "dev", "wire");
      assert.equal(await delivered(ours, 3, () => ping(lab, lab.here, "-c3", "-i0.05", "-W2", THERE4)), 3);
      assert.equal(await theirs.endpoint(), "10.77.0.11:51820");
    });

    for (const [address, path, outside] of [
      [THERE4, OUTSIDE6, "IPv6"],
      [THERE6, OUTSIDE4, "IPv4"],
    ] as const) {
      it(`carry TCP to ${address} and back unchanged over ${outside}, and over renewals by the number of packets`, async () => {
        await using pair = await connect({
          judge,
          path,
          setup: { sessionLimits: { rekeyAfterMessages: 2000 }, handshakeRetry: { rekeyTimeout: 100, jitter: 0 } },
        });
        const { lab, ours } = pair;
        const script = fileURLToPath(new URL("./wireguard-tcp.ts", import.meta.url));
        const server = lab.spawn(lab.there, process.execPath, [script, "serve", address, "7000"]);
        await once(server.stdout!, "data");
        const text = await lab.exec(lab.here, process.execPath, script, "send", address, "7000", String(TCP_BYTES));
        assert.deepEqual(JSON.parse(text), { back: TCP_BYTES, isSame: true });
        await lab.end(server);
        // The worker asks for a renewal once a second, and a fast machine is done before that.
        assert.deepEqual(await ping(lab, lab.here, "-c8", "-i0.2", "-W2", address), { sent: 8, received: 8 });
        assert.ok(ours.count("established") >= 2, `${ours.count("established")} handshakes`);
        for (const name of ["drop-authentication", "drop-replay", "drop-malformed"])
          assert.equal(await ours.counter(name), 0, name);
      });
    }

    it("carry 2,000 datagrams sent by UDP_SEGMENT each way unchanged", async () => {
      await using pair = await connect({ judge, path: OUTSIDE4 });
      const { lab } = pair;
      const [here, there] = [trafficEnd(lab, lab.here), trafficEnd(lab, lab.there)];
      assert.equal((await ping(lab, lab.here, "-c1", "-W2", THERE4)).received, 1);
      for (const [from, to, address, size] of [
        [here, there, THERE4, 1200],
        [there, here, HERE6, 1372],
      ] as const) {
        const { sent, received } = await sendUdp(from, to, address, { bursts: UDP_BURSTS, size, ahead: 1 });
        // Its threads may change the order.
        assert.deepEqual(received, { ...sent, duplicates: 0, altered: 0, outOfOrder: received.outOfOrder }, address);
      }
    });
  });
}
