import assert from "node:assert/strict";
import { describe, test } from "node:test";
import type { OffloadOptions } from "#wireguard/worker/data-plane.ts";
import { ping, refusals, root, tcpArrivesWhole, udpArrivesWhole } from "./data-plane/checks.ts";
import { Pair } from "./data-plane/pair.ts";

const MODES: readonly { name: string; offload: OffloadOptions; outer6?: boolean; mtu?: number }[] = [
  { name: "all offloads", offload: {} },
  { name: "all offloads over IPv6", offload: {}, outer6: true },
  { name: "no virtio header", offload: { virtioHeader: false } },
  { name: "no UDP segmentation on the TUN", offload: { udpSegmentation: false } },
  { name: "no GSO", offload: { gso: false } },
  { name: "no GRO", offload: { gro: false } },
  { name: "no offload at all", offload: { virtioHeader: false, gso: false, gro: false, ipv6: false } },
  { name: "an odd MTU", offload: {}, mtu: 1371 },
];

// Two at a time: most of a run is waiting for processes to start.
describe("traffic arrives unchanged", { concurrency: 2 }, () => {
  for (const { name, offload, outer6 = false, mtu = 1420 } of MODES) {
    test(`ping, TCP and UDP bursts with ${name}`, root, async () => {
      await using pair = await Pair.start({ plane: { offload, mtu }, outer6 });
      const { a, b } = pair;
      await Promise.all([ping(a, "10.77.0.2"), ping(b, "fd77::1")]);
      // Every residue of the padding, and the packet that fills the MTU.
      for (const size of ["0", "1", "15", "16", "17", String(mtu - 28), String(mtu - 29)])
        await ping(a, "10.77.0.2", "-s", size);
      await Promise.all([tcpArrivesWhole(a, b, "10.77.0.2", 16 << 20), tcpArrivesWhole(b, a, "fd77::1", 16 << 20)]);
      await Promise.all([udpArrivesWhole(a, b, "10.77.0.2", 1200), udpArrivesWhole(b, a, "fd77::1", 333)]);
      for (const end of [a, b]) assert.deepEqual(refusals(await end.counters()), {}, end.namespace);
    });
  }
});
