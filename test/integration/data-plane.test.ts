import assert from "node:assert/strict";
import { describe, type TestContext, test } from "node:test";
import type { OffloadOptions } from "#wireguard/worker/data-plane.ts";
import type { LinkOptions } from "../../lab/link.ts";
import { ping, refusals, root, sendUdp, tcpArrivesWhole, udpArrivesWhole } from "./data-plane/checks.ts";
import { Pair } from "./data-plane/pair.ts";

/** Of each of a row's streams; the one of small datagrams carries a quarter. By hand more: see src/wireguard/README.md. */
const MIB = Number(process.env.PERCH_TRANSFER_MIB ?? 10);
const BYTES = MIB * (1 << 20);
const DATAGRAMS_PER_BURST = 40;
/** Slower than this on a busy machine, and a row is stuck. */
const BYTES_PER_MS_AT_LEAST = 2000;
const timeout = 20_000 + (4 * BYTES) / BYTES_PER_MS_AT_LEAST;
const options = "skip" in root ? root : { timeout };

interface Row {
  readonly name: string;
  readonly offload: OffloadOptions;
  readonly outer6?: boolean;
  readonly mtu?: number;
}

const ROWS: readonly Row[] = [
  { name: "all offloads", offload: {} },
  { name: "all offloads over IPv6", offload: {}, outer6: true },
  { name: "no virtio header", offload: { virtioHeader: false } },
  { name: "no UDP segmentation on the TUN", offload: { udpSegmentation: false } },
  { name: "no GSO", offload: { gso: false } },
  { name: "no GRO", offload: { gro: false } },
  { name: "no offload at all", offload: { virtioHeader: false, gso: false, gro: false, ipv6: false } },
  { name: "an odd MTU", offload: {}, mtu: 1371 },
];

/** Inner packets per second stay below what one processor of a busy machine forwards. */
const IMPAIRMENT: LinkOptions = {
  latencyMs: 1,
  loss: 0.005,
  reorder: 0.01,
  reorderMs: 3,
  duplicate: 0.01,
  bandwidthMbps: 200,
};
/** A stream over a link that loses is slow. */
const IMPAIRED_PART = 1 / 2;

const IMPAIRED_ROWS: readonly Row[] = [
  { name: "all offloads", offload: {} },
  { name: "all offloads over IPv6", offload: {}, outer6: true },
  { name: "no offload at all", offload: { virtioHeader: false, gso: false, gro: false } },
];

/** What the data plane may not say that it uses. */
const FEATURES: Readonly<Record<keyof OffloadOptions, string>> = {
  virtioHeader: "tun-tso",
  udpSegmentation: "tun-uso",
  gso: "udp-gso",
  gro: "udp-gro",
  ipv6: "ipv6",
};

/** A row without an offload that ran with it would prove nothing. */
function isWithout({ a, b }: Pair, offload: OffloadOptions): void {
  for (const [name, feature] of Object.entries(FEATURES))
    if (offload[name as keyof OffloadOptions] === false)
      for (const { started } of [a, b]) assert.ok(!started.features.includes(feature), `${feature} is off`);
}

const burstsOf = (bytes: number, size: number): number => Math.ceil(bytes / (DATAGRAMS_PER_BURST * size));

/** Runs `work` and notes what it was, how long it took and the hash that both ends agree on. */
async function measured(t: TestContext, what: string, bytes: number, work: Promise<string>): Promise<void> {
  const begun = performance.now();
  const hash = await work;
  const seconds = (performance.now() - begun) / 1000;
  t.diagnostic(
    `${what}: ${(bytes / (1 << 20)).toFixed(0)} MiB in ${seconds.toFixed(1)} s, sha256 ${hash.slice(0, 16)}`,
  );
}

// Two at a time: most of a run is waiting for processes to start. By hand the seconds mean more.
describe("traffic arrives unchanged", { concurrency: MIB > 64 ? 1 : 2 }, () => {
  for (const { name, offload, outer6 = false, mtu = 1420 } of ROWS) {
    test(`ping, TCP and UDP bursts with ${name}`, options, async (t) => {
      await using pair = await Pair.start({ plane: { offload, mtu }, outer6 });
      const { a, b } = pair;
      isWithout(pair, offload);
      await Promise.all([ping(a, "10.77.0.2"), ping(b, "fd77::1")]);
      // Every residue of the padding, and the packet that fills the MTU.
      for (const size of ["0", "1", "15", "16", "17", String(mtu - 28), String(mtu - 29)])
        await ping(a, "10.77.0.2", "-s", size);
      await Promise.all([
        measured(t, "TCP over IPv4", BYTES, tcpArrivesWhole(a, b, "10.77.0.2", BYTES)),
        measured(t, "TCP over IPv6", BYTES, tcpArrivesWhole(b, a, "fd77::1", BYTES)),
      ]);
      const large = { size: 1200, bursts: burstsOf(BYTES, 1200) };
      const small = { size: 333, bursts: burstsOf(BYTES / 4, 333) };
      await Promise.all([
        measured(t, "UDP over IPv4", BYTES, udpArrivesWhole(a, b, "10.77.0.2", large)),
        measured(t, "UDP over IPv6", BYTES / 4, udpArrivesWhole(b, a, "fd77::1", small)),
      ]);
      for (const end of [a, b]) assert.deepEqual(refusals(await end.counters()), {}, end.namespace);
    });
  }
});

describe("through a link that loses, reorders and doubles datagrams", { concurrency: 1 }, () => {
  for (const { name, offload, outer6 = false } of IMPAIRED_ROWS) {
    test(`streams are whole, and datagrams arrive unchanged and once, with ${name}`, options, async (t) => {
      await using pair = await Pair.start({ plane: { offload }, outer6, impairment: IMPAIRMENT });
      const { a, b, wire } = pair;
      isWithout(pair, offload);
      const bytes = BYTES * IMPAIRED_PART;
      await b.event("confirmed");
      const before = await wire.counters();
      const { sent, received } = await sendUdp(a, b, "10.77.0.2", { size: 1200, bursts: burstsOf(bytes, 1200) });
      const after = await wire.counters();
      t.diagnostic(`UDP over IPv4: ${received.datagrams} of ${sent.datagrams}, ${received.outOfOrder} out of order`);
      assert.equal(received.altered, 0);
      assert.equal(received.duplicates, 0);
      assert.ok(received.outOfOrder > 0);
      assert.equal(
        sent.datagrams - received.datagrams,
        after.up.lost - before.up.lost,
        "what the link lost, and no more",
      );
      await measured(t, "TCP over IPv4", bytes, tcpArrivesWhole(a, b, "10.77.0.2", bytes));
      await measured(t, "TCP over IPv6", bytes, tcpArrivesWhole(b, a, "fd77::1", bytes));
      const { up, down } = await wire.counters();
      for (const { lost, duplicated, reordered } of [up, down]) assert.ok(lost > 0 && duplicated > 0 && reordered > 0);
      for (const [end, { duplicated }] of [
        [b, up],
        [a, down],
      ] as const)
        assert.deepEqual(
          refusals(await end.counters()),
          { "drop-replay": duplicated },
          "each second copy, and nothing else",
        );
    });
  }
});
