import { NAT } from "./nat.ts";
import { Network } from "./network.ts";
import { encodeSamplePacket } from "./sample-packet.ts";
import { resolveTopology } from "./topology.ts";

const ROUNDS = 2000;

/**
 * Runs packets through a network of its own until the engine has compiled the path: otherwise the first packets of a lab
 * take a millisecond longer than all others, and the first packet is the one that is measured.
 */
export function warmUp(): void {
  const topology = resolveTopology({
    sites: [
      { name: "left", nat: NAT.portRestricted, latencyMs: 1 },
      { name: "right", latencyMs: 1 },
    ],
    hosts: [
      { name: "a", site: "left" },
      { name: "b", site: "right" },
    ],
  });
  let delivered = 0;
  const network = new Network(topology, {
    deliver: () => {
      delivered++;
    },
    seenAtSite: () => {},
  });
  const [a, b] = topology.hosts;
  const send = (host: number, bytes: Uint8Array, now: number): void => {
    const packet = network.take();
    if (!packet) return;
    packet.bytes.set(bytes);
    packet.length = bytes.length;
    network.receive(host, packet, now);
  };
  for (const protocol of ["udp", "tcp", "icmp"] as const) {
    const out = encodeSamplePacket({ protocol, source: a!.address, destination: b!.address });
    const back = encodeSamplePacket({
      protocol,
      source: b!.address,
      destination: topology.sites[0]!.publicAddress!,
      sourcePort: protocol === "icmp" ? 1000 : 2000,
      destinationPort: 1000,
    });
    for (let round = 0; round < ROUNDS; round++) {
      send(0, out, round);
      send(1, back, round);
      network.advance(round);
    }
    network.advance(ROUNDS + 2);
  }
  if (delivered !== ROUNDS * 6) throw new Error(`warm-up delivered ${delivered} of ${ROUNDS * 6} packets`);
}
