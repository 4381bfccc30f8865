import assert from "node:assert/strict";
import { mkdtempSync, readFileSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { test } from "node:test";
import { setTimeout as sleep } from "node:timers/promises";
import { buildPacket } from "#wireguard/worker/packet-model.ts";
import { firstChance } from "../fuzz/chance.ts";
import { DATAGRAM_ENDS, damaged, innerPacket, strangeDatagram, transport } from "../fuzz/device/packets.ts";
import type { TestSession } from "../fuzz/device/rig.ts";
import { ping, root } from "./data-plane/checks.ts";
import { type End, Pair } from "./data-plane/pair.ts";

const GUARD = new URL("../fuzz/device/guard-workers.ts", import.meta.url).href;
const DATAGRAMS = 600;

/** Received datagrams whose fate no counter and no event told. */
function unaccounted(end: End, counters: Record<string, number>): number {
  const told =
    DATAGRAM_ENDS.reduce((sum, name) => sum + counters[name]!, 0) + end.count("handshake") + end.count("stun");
  return counters["rx-datagrams"]! - told;
}

test(
  "a real device takes anything over UDP, forged or from the peer itself, and the tunnel goes on",
  root,
  async (t) => {
    const directory = mkdtempSync(join(tmpdir(), "perch-guard-"));
    process.env.PERCH_GUARD_LOG = join(directory, "log");
    process.env.NODE_OPTIONS = `--import ${GUARD}`;
    const chance = firstChance(t);
    try {
      await using pair = await Pair.start();
      const { a, b } = pair;
      await ping(a, "10.77.0.2");
      // A session of b's whose other end is this test: a peer that has the keys and means harm.
      const hostile: TestSession = {
        localIndex: 0x5151,
        remoteIndex: 0x5252,
        sendKey: chance.bytes(32),
        receiveKey: chance.bytes(32),
      };
      await b.call("installSession", 0, { role: "responder", ...hostile });
      let counter = 0;
      const next = (): Uint8Array<ArrayBuffer> => {
        const valid = (): Uint8Array<ArrayBuffer> => transport(hostile, counter++, innerPacket(chance, counter));
        return chance.once(3) ? strangeDatagram(chance, hostile) : chance.once(4) ? damaged(chance, valid()) : valid();
      };
      const before = await b.counters();
      let taken = 0;
      const send = async (datagram: Uint8Array): Promise<void> => {
        // A full socket takes nothing and says so.
        if ((await a.call("sendDatagram", datagram, pair.endpoint(b))) === null) taken++;
      };
      for (let sent = 0; sent < DATAGRAMS; sent += 20)
        await Promise.all(Array.from({ length: 20 }, () => send(next())));
      // Whole and right at the end: it is delivered, so nothing before it left the worker in disorder.
      await send(
        transport(hostile, 100_000, buildPacket({ v6: false, protocol: "udp", payload: new Uint8Array(100) })),
      );
      assert.ok(taken > DATAGRAMS / 2, `${taken} taken`);
      let after = await b.counters();
      for (let i = 0; i < 250; i++) {
        if (after["rx-datagrams"]! - before["rx-datagrams"]! >= taken && unaccounted(b, after) === 0) break;
        await sleep(20);
        after = await b.counters();
      }
      assert.ok(after["rx-datagrams"]! - before["rx-datagrams"]! >= taken, `${JSON.stringify(after)} of ${taken}`);
      assert.equal(unaccounted(b, after), 0);
      for (const name of ["drop-authentication", "drop-inner-malformed", "drop-allowed-ips", "drop-unknown-type"])
        assert.ok(after[name]! > before[name]!, `no ${name}`);
      assert.ok(after["tun-write"]! > before["tun-write"]!);

      await pair.install();
      await ping(a, "10.77.0.2");
      await ping(b, "fd77::1");
      for (const end of [a, b]) assert.equal(end.count("gone"), 0);
      const log = readFileSync(join(directory, "log"), "utf8").trim().split("\n");
      assert.deepEqual(
        log,
        ["guarded", "guarded"],
        "both workers ran behind the guard, none was refused or began again",
      );
    } finally {
      delete process.env.NODE_OPTIONS;
      delete process.env.PERCH_GUARD_LOG;
      rmSync(directory, { recursive: true });
    }
  },
);
