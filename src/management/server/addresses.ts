/** Choosing networks and addresses. Source: protocol/management.md, section 5.3. */
import { randomBytes, randomInt } from "node:crypto";
import { type IpAddress, ipFromBytes, ipToBytes, maskPrefix, type Prefix, parseIp } from "#base/ip.ts";

const FIRST_HOST = 1;
const LAST_HOST = 65_534;
/** Random tries before the free hosts are counted out. */
const RANDOM_TRIES = 10;

/** A random /16 out of 100.64.0.0/10. */
export function randomNetwork(): Prefix {
  return { address: parseIp(`100.${64 + randomInt(64)}.0.0`), bits: 16 };
}

/** A random unique local /64 (RFC 4193 with 56 random bits). */
export function randomNetwork6(): Prefix {
  return maskPrefix({ address: ipFromBytes(Buffer.concat([Buffer.of(0xfd), randomBytes(15)])), bits: 64 });
}

/** A random free host of a /16; undefined when there is none. */
export function pickAddress(network: Prefix, isTaken: (address: IpAddress) => boolean): IpAddress | undefined {
  const [a, b] = ipToBytes(network.address);
  const host = (number: number): IpAddress => `${a}.${b}.${number >> 8}.${number & 0xff}` as IpAddress;
  for (let i = 0; i < RANDOM_TRIES; i++) {
    const address = host(randomInt(FIRST_HOST, LAST_HOST + 1));
    if (!isTaken(address)) return address;
  }
  // A well-filled network: walk it once from a random place.
  const count = LAST_HOST - FIRST_HOST + 1;
  const start = randomInt(count);
  for (let i = 0; i < count; i++) {
    const address = host(FIRST_HOST + ((start + i) % count));
    if (!isTaken(address)) return address;
  }
  return undefined;
}

/** A random host of a /64, neither all zeros nor all ones; 2^64 of them make a collision no concern. */
export function pickAddress6(network: Prefix): IpAddress {
  const bytes = ipToBytes(network.address).slice();
  do bytes.set(randomBytes(8), 8);
  while (bytes.subarray(8).every((byte) => byte === 0) || bytes.subarray(8).every((byte) => byte === 0xff));
  return ipFromBytes(bytes);
}
