import { type IpAddress, isV6, type Prefix, prefixContains } from "#base/ip.ts";
import type { PublicKey } from "#base/keys.ts";
import type { PeerInfo } from "../peer/peer-connection.ts";
import type { MapDifference } from "./peer-book.ts";

/**
 * Routes to peers whose addresses lie outside of our own network, which the interface's addresses do not cover. In most
 * networks there are none: only those peers are remembered.
 */
export class HostRoutes {
  readonly #byPeer = new Map<PublicKey, readonly Prefix[]>();
  #ranges: readonly { readonly prefix: Prefix; readonly beginning: string }[] = [];

  /** Our own network changed: looks at all peers anew. True when it did. */
  setRanges(ranges: readonly Prefix[], peers: Iterable<PeerInfo>): boolean {
    const isSame =
      ranges.length === this.#ranges.length &&
      ranges.every(({ address, bits }, i) => {
        const { prefix } = this.#ranges[i]!;
        return prefix.address === address && prefix.bits === bits;
      });
    if (isSame) return false;
    this.#ranges = ranges.map((prefix) => ({ prefix, beginning: commonText(prefix) }));
    this.#byPeer.clear();
    for (const info of peers) this.#put(info);
    return true;
  }

  /** True when the routes changed. */
  apply({ removed, changed, added }: Pick<MapDifference, "removed" | "changed" | "added">): boolean {
    let isChanged = false;
    for (const key of removed) if (this.#byPeer.delete(key)) isChanged = true;
    for (const info of changed) if (this.#put(info)) isChanged = true;
    for (const info of added) if (this.#put(info)) isChanged = true;
    return isChanged;
  }

  get routes(): Prefix[] {
    return [...this.#byPeer.values()].flat();
  }

  #put(info: PeerInfo): boolean {
    const strays = info.addresses.filter((address) => !this.#covers(address));
    if (strays.length === 0) return this.#byPeer.delete(info.key);
    this.#byPeer.set(
      info.key,
      strays.map((address) => ({ address, bits: isV6(address) ? 128 : 32 })),
    );
    return true;
  }

  #covers(address: IpAddress): boolean {
    return this.#ranges.some(
      ({ prefix, beginning }) => (beginning !== "" && address.startsWith(beginning)) || prefixContains(prefix, address),
    );
  }
}

/** A text that only addresses of the prefix begin with; empty when there is none. */
function commonText({ address, bits }: Prefix): string {
  const [separator, unit] = isV6(address) ? [":", 16] : [".", 8];
  if (bits % unit !== 0) return "";
  const groups = address
    .split("::")[0]!
    .split(separator)
    .slice(0, bits / unit);
  return groups.length === bits / unit && groups.length > 0 ? `${groups.join(separator)}${separator}` : "";
}
