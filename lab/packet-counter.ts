/*
 * Packets that an interface gives to IP, told by nftables. The interface's own counter is not that: the kernel's WireGuard counts
 * handshakes and keepalives in it.
 */
const TABLE = "inet perch_count";

/** For `nft` in the interface's network namespace, once for each interface. */
export function packetCounterRules(interfaceName: string): string {
  const counter = `counter ${TABLE} ${interfaceName}`;
  const chain = `${TABLE} in`;
  return [
    `add table ${TABLE}`,
    `add ${counter}`,
    `add chain ${chain} { type filter hook prerouting priority -400; }`,
    `add rule ${chain} iifname ${interfaceName} counter name ${interfaceName}`,
  ].join("; ");
}

/** Arguments of `nft` whose output `packetsIn` reads. */
export function packetCounterArguments(interfaceName: string): string[] {
  return ["list", "counter", ...TABLE.split(" "), interfaceName];
}

export function packetsIn(output: string): number {
  return Number(/packets (\d+)/.exec(output)?.[1] ?? Number.NaN);
}
