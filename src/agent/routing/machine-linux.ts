import { accessSync, constants, readFileSync } from "node:fs";
import { networkInterfaces } from "node:os";
import { type IpAddress, ipFromBytes, maskPrefix, type Prefix, parsePrefix } from "#base/ip.ts";

/** A route of the machine, or the network of one of its addresses. */
export interface MachineRoute {
  readonly prefix: Prefix;
  readonly interfaceName: string;
}

export interface MachineAddress {
  /** With the length of its network. */
  readonly prefix: Prefix;
  readonly interfaceName: string;
}

/** Bit of CAP_NET_ADMIN in the capability sets (capabilities(7)). */
const CAP_NET_ADMIN = 12n;
const TUN_DEVICE = "/dev/net/tun";
/** Flags of a route in both files (linux/route.h): usable, and refused. */
const RTF_UP = 0x1;
const RTF_REJECT = 0x200;

/** The main routing tables, default routes included; empty where they cannot be read. Asks the kernel, changes nothing. */
export function readRoutes(): MachineRoute[] {
  return [...parseRoutes4(readText("/proc/net/route")), ...parseRoutes6(readText("/proc/net/ipv6_route"))];
}

/** Addresses of all interfaces, without a zone. */
export function readAddresses(): MachineAddress[] {
  return Object.entries(networkInterfaces()).flatMap(([interfaceName, entries]) =>
    (entries ?? []).flatMap(({ cidr }) =>
      cidr ? [{ interfaceName, prefix: parsePrefix(cidr.replace(/%[^/]*/, "")) }] : [],
    ),
  );
}

/** Whether this process may configure interfaces; undefined where the system does not tell. */
export function canAdministerNetwork(): boolean | undefined {
  const mask = /^CapEff:\s*([0-9a-f]+)$/m.exec(readText("/proc/self/status"))?.[1];
  return mask === undefined ? undefined : ((BigInt(`0x${mask}`) >> CAP_NET_ADMIN) & 1n) === 1n;
}

/** Undefined: usable; else why TUN devices cannot be made. */
export function tunProblem(): string | undefined {
  try {
    accessSync(TUN_DEVICE, constants.R_OK | constants.W_OK);
    return undefined;
  } catch (error) {
    return (error as NodeJS.ErrnoException).code === "ENOENT"
      ? `${TUN_DEVICE} does not exist`
      : `${TUN_DEVICE} may not be opened`;
  }
}

/** Interface, destination, gateway, flags, three counts, mask: addresses are 32 bits in the machine's (little-endian) order. */
export function parseRoutes4(text: string): MachineRoute[] {
  return text
    .split("\n")
    .slice(1)
    .flatMap((line) => {
      const [interfaceName, destination, , flags, , , , mask] = line.split(/\s+/);
      if (!interfaceName || !destination || !flags || !mask || !isUsable(flags)) return [];
      const bits = Buffer.from(mask, "hex").reduce((sum, byte) => sum + byte.toString(2).replaceAll("0", "").length, 0);
      const address = Buffer.from(destination, "hex").reverse().join(".") as IpAddress;
      return [{ interfaceName, prefix: { address, bits } }];
    });
}

/** Destination, its length, source and its length, gateway, metric, two counts, flags, interface. */
export function parseRoutes6(text: string): MachineRoute[] {
  return text.split("\n").flatMap((line) => {
    const [destination, length, , , , , , , flags, interfaceName] = line.trim().split(/\s+/);
    if (!destination || !length || !flags || !interfaceName || !isUsable(flags)) return [];
    const address = ipFromBytes(new Uint8Array(Buffer.from(destination, "hex")));
    return [{ interfaceName, prefix: maskPrefix({ address, bits: Number.parseInt(length, 16) }) }];
  });
}

function isUsable(flags: string): boolean {
  const value = Number.parseInt(flags, 16);
  return (value & RTF_UP) !== 0 && (value & RTF_REJECT) === 0;
}

function readText(path: string): string {
  try {
    return readFileSync(path, "utf8");
  } catch {
    return "";
  }
}
