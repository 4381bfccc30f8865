import { formatPrefix, isHostPrefix, maskPrefix, type Prefix } from "#base/ip.ts";
import type { PresharedKey, PublicKey } from "#base/keys.ts";
import type { Millis } from "#base/time.ts";
import type { DevicePath, PacketSource } from "./device.ts";

/** One configured peer of the embedded device. One that never woke has nothing but this. */
export interface PeerRow {
  readonly key: PublicKey;
  /** Names the peer towards the data worker. */
  readonly slot: number;
  mode: "asleep" | "awake";
  presharedKey: PresharedKey | undefined;
  /** The list as last given, of which others may have taken some away: the same object again means no change. */
  allowedIps: readonly Prefix[];
  /** To read; `useOf` is to write. */
  use: Readonly<PeerUse>;
}

/** What a row has once the peer was awake, called or heard. */
export interface PeerUse {
  /** Seconds, 0 = off. */
  keepalive: number;
  /** Chosen by the caller; `none` while asleep. */
  path: DevicePath;
  /** Stands in while `path` is `none`: where the peer was last heard. */
  adopted: PacketSource | undefined;
  /** Where it was heard while asleep; adopted when it wakes. */
  heard: PacketSource | undefined;
  /** Paths of the last `initiate`, for repetitions while there is no other. */
  initiatePaths: readonly DevicePath[];
  /** Where an initiation goes that could not be sent at once. */
  delayedPaths: readonly DevicePath[] | undefined;
  /** What the unanswered initiation went over so far. */
  sentOver: readonly DevicePath[];
  /** A wake was reported in this sleep. */
  woken: boolean;
  /** Wall clock, ms; 0 = never. */
  lastHandshake: number;
}

/** A freed slot rests this long, so that a late report about its last owner is not taken for one about the next. */
const SLOT_REST: Millis = 5_000;

/** What a change of allowed IPs means for the data path. */
export interface PrefixChange {
  readonly added: readonly Prefix[];
  readonly removed: readonly Prefix[];
}

/** The peers of one device by key and by slot, and who owns which prefix. All operations cost what changes, not what is. */
export class PeerTable {
  readonly #byKey = new Map<PublicKey, PeerRow>();
  readonly #bySlot: (PeerRow | undefined)[] = [];
  /** `ownerKey` of the masked prefix -> its one owner. */
  readonly #owners = new Map<string, PeerRow>();
  readonly #resting: { readonly slot: number; readonly since: Millis }[] = [];
  #restingFrom = 0;
  readonly #capacity: number;

  /** `capacity`: slots there are; near it, resting slots are used early. */
  constructor(capacity: number) {
    this.#capacity = capacity;
  }

  get size(): number {
    return this.#byKey.size;
  }

  get(key: PublicKey): PeerRow | undefined {
    return this.#byKey.get(key);
  }

  at(slot: number): PeerRow | undefined {
    return this.#bySlot[slot];
  }

  rows(): IterableIterator<PeerRow> {
    return this.#byKey.values();
  }

  /** Undefined when all slots are taken. */
  add(key: PublicKey, now: Millis): PeerRow | undefined {
    const slot = this.#takeSlot(now);
    if (slot === undefined) return undefined;
    const row: PeerRow = {
      key,
      slot,
      mode: "asleep",
      presharedKey: undefined,
      allowedIps: NO_PREFIXES,
      use: NO_USE,
    };
    this.#byKey.set(key, row);
    this.#bySlot[slot] = row;
    return row;
  }

  remove(row: PeerRow, now: Millis): void {
    for (const prefix of row.allowedIps) {
      const key = ownerKey(maskPrefix(prefix));
      if (this.#owners.get(key) === row) this.#owners.delete(key);
    }
    this.#byKey.delete(row.key);
    this.#bySlot[row.slot] = undefined;
    this.#resting.push({ slot: row.slot, since: now });
  }

  /** Makes `allowedIps` the peer's prefixes; those that another peer had move over. */
  setPrefixes(row: PeerRow, allowedIps: readonly Prefix[]): PrefixChange {
    if (allowedIps === row.allowedIps) return NO_CHANGE;
    const wanted = byOwnerKey(allowedIps);
    const removed: Prefix[] = [];
    for (const [key, prefix] of byOwnerKey(row.allowedIps)) {
      if (this.#owners.get(key) !== row || wanted.has(key)) continue;
      this.#owners.delete(key);
      removed.push(prefix);
    }
    const added: Prefix[] = [];
    for (const [key, prefix] of wanted) {
      if (this.#owners.get(key) === row) continue;
      this.#owners.set(key, row);
      added.push(prefix);
    }
    row.allowedIps = allowedIps;
    return { added, removed };
  }

  /** The prefixes that lead to the peer: those of its list that no other took. */
  prefixesOf(row: PeerRow): readonly Prefix[] {
    return row.allowedIps.filter((prefix) => this.#owners.get(ownerKey(maskPrefix(prefix))) === row);
  }

  #takeSlot(now: Millis): number | undefined {
    const first = this.#resting[this.#restingFrom];
    const isFull = this.#bySlot.length >= this.#capacity;
    if (first && (isFull || now - first.since >= SLOT_REST)) {
      this.#restingFrom++;
      if (this.#restingFrom > 1024 && this.#restingFrom * 2 > this.#resting.length) {
        this.#resting.splice(0, this.#restingFrom);
        this.#restingFrom = 0;
      }
      return first.slot;
    }
    if (isFull) return undefined;
    this.#bySlot.push(undefined);
    return this.#bySlot.length - 1;
  }
}

export const NO_PATH: DevicePath = { kind: "none" };
export const NO_PATHS: readonly DevicePath[] = [];
/** Of all rows that have no own one. */
const NO_USE: Readonly<PeerUse> = Object.freeze({
  keepalive: 0,
  path: NO_PATH,
  adopted: undefined,
  heard: undefined,
  initiatePaths: NO_PATHS,
  delayedPaths: undefined,
  sentOver: NO_PATHS,
  woken: false,
  lastHandshake: 0,
});

/** The row's own, made when it has none. */
export function useOf(row: PeerRow): PeerUse {
  if (row.use === NO_USE) row.use = { ...NO_USE };
  return row.use;
}

const NO_PREFIXES: readonly Prefix[] = [];
const NO_CHANGE: PrefixChange = { added: [], removed: [] };

function byOwnerKey(prefixes: readonly Prefix[]): Map<string, Prefix> {
  return new Map(prefixes.map(maskPrefix).map((prefix) => [ownerKey(prefix), prefix]));
}

/** Of a host prefix its address, which is in memory anyway: there are as many of them as peers. */
function ownerKey(prefix: Prefix): string {
  return isHostPrefix(prefix) ? prefix.address : formatPrefix(prefix);
}

export function samePresharedKey(a: PresharedKey | undefined, b: PresharedKey | undefined): boolean {
  return a === undefined || b === undefined ? a === b : a.equals(b);
}
