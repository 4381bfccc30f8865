import { type IpAddress, isV6 } from "#base/ip.ts";
import type { PublicKey } from "#base/keys.ts";
import { hashText, SlotIndex, Slots } from "#base/slot-index.ts";
import type { DnsRecord } from "./dns-config.ts";
import { type DomainName, parentOf, toDomainName } from "./domain-name.ts";

/** What the table needs to know of a peer; the map's own objects fit. */
export interface NamedPeer {
  readonly key: PublicKey;
  readonly fqdn: string;
  readonly addresses: readonly IpAddress[];
}

/** Seconds for which others may keep a peer's addresses (management document, section 3.7, SimpleRecord). */
const PEER_TTL = 300;
const NONE: readonly DnsRecord[] = [];

/**
 * Names and addresses of the network. A peer costs an entry for its key, its name and each address, and no object of its own:
 * what a question needs is made when it is asked. A question costs the labels of its name, a change costs what it changes.
 *
 * Records that the network sends beside its peers (other names, CNAMEs) are kept by owner: one list for the zones of the map, one
 * for each peer that has some. What a peer says itself is not kept twice.
 */
export class NameTable {
  readonly #peers = new Slots<NamedPeer>();
  readonly #byKey = new SlotIndex();
  /** Those that have their name, and their addresses, for themselves: who came first. */
  readonly #byName = new SlotIndex();
  readonly #byAddress = new SlotIndex();
  readonly #records = new Map<DomainName, DnsRecord[]>();
  readonly #owned = new Map<PublicKey | "zones", readonly DnsRecord[]>();
  /** Records are left out that a peer says itself, and such a peer may have changed or gone since. */
  #hides = false;
  #isStale = false;
  /** How many names there are below a name: such a name exists even when it has no records (RFC 8020). */
  readonly #below = new Map<DomainName, number>();

  get peers(): number {
    return this.#byKey.size;
  }

  putPeer(peer: NamedPeer): void {
    this.#takeOut(peer.key);
    const slot = this.#peers.take(peer);
    this.#byKey.add(hashText(peer.key), slot);
    const name = toDomainName(peer.fqdn);
    if (name !== "" && !this.#named(name)) {
      this.#byName.add(hashText(name), slot);
      this.#countBelow(name, 1);
    }
    for (const address of peer.addresses) if (!this.peerAt(address)) this.#byAddress.add(hashText(address), slot);
  }

  removePeer(key: PublicKey): void {
    this.#takeOut(key);
    this.setRecords(key, NONE);
  }

  /** Records of the zones may be missing although no peer says them any more: `setRecords` has to be called anew. */
  get isStale(): boolean {
    return this.#isStale;
  }

  /** Replaces what an owner says beside the peers. */
  setRecords(owner: PublicKey | "zones", records: readonly DnsRecord[]): void {
    for (const record of this.#owned.get(owner) ?? NONE) this.#removeRecord(record);
    const kept = records.filter((record) => !this.#isPeerRecord(record));
    if (owner === "zones") {
      this.#hides = kept.length < records.length;
      this.#isStale = false;
    }
    if (kept.length === 0) this.#owned.delete(owner);
    else this.#owned.set(owner, kept);
    for (const record of kept) {
      const others = this.#records.get(record.name);
      if (others) others.push(record);
      else this.#records.set(record.name, [record]);
      this.#countBelow(record.name, 1);
    }
  }

  /** All records of a name; empty when there are none. */
  recordsOf(name: DomainName): readonly DnsRecord[] {
    const peer = this.#named(name);
    const records = this.#records.get(name);
    if (!peer) return records ?? NONE;
    const own = peer.addresses.map((address) => ({
      name,
      type: isV6(address) ? ("AAAA" as const) : ("A" as const),
      data: address as string,
      ttl: PEER_TTL,
    }));
    if (!records) return own;
    return [
      ...own,
      ...records.filter(({ type, data }) => !own.some((each) => each.type === type && each.data === data)),
    ];
  }

  /** Whether there are names below this one. */
  hasBelow(name: DomainName): boolean {
    return this.#below.has(name);
  }

  peerAt(address: IpAddress): NamedPeer | undefined {
    const slot = this.#byAddress.find(hashText(address), (each) => this.#peers.at(each)!.addresses.includes(address));
    return this.#peers.at(slot);
  }

  #named(name: DomainName): NamedPeer | undefined {
    const slot = this.#byName.find(hashText(name), (each) => toDomainName(this.#peers.at(each)!.fqdn) === name);
    return this.#peers.at(slot);
  }

  #takeOut(key: PublicKey): void {
    const hash = hashText(key);
    const slot = this.#byKey.find(hash, (each) => this.#peers.at(each)!.key === key);
    const peer = this.#peers.at(slot);
    if (!peer) return;
    this.#isStale ||= this.#hides;
    const name = toDomainName(peer.fqdn);
    if (this.#byName.remove(hashText(name), slot)) this.#countBelow(name, -1);
    for (const address of peer.addresses) this.#byAddress.remove(hashText(address), slot);
    this.#byKey.remove(hash, slot);
    this.#peers.give(slot);
  }

  #isPeerRecord({ name, type, data }: DnsRecord): boolean {
    return type !== "CNAME" && (this.#named(name)?.addresses.includes(data as IpAddress) ?? false);
  }

  #removeRecord(record: DnsRecord): void {
    const records = this.#records.get(record.name);
    const index = records?.indexOf(record) ?? -1;
    if (!records || index < 0) return;
    records.splice(index, 1);
    if (records.length === 0) this.#records.delete(record.name);
    this.#countBelow(record.name, -1);
  }

  #countBelow(name: DomainName, by: number): void {
    for (let above = parentOf(name); above !== undefined; above = parentOf(above)) {
      const count = (this.#below.get(above) ?? 0) + by;
      if (count === 0) this.#below.delete(above);
      else this.#below.set(above, count);
    }
  }
}
