import { isVersionAtLeast } from "#base/agent-version.ts";
import { type Prefix, prefixContains } from "#base/ip.ts";
import type { PublicKey } from "#base/keys.ts";
import { DNS_FORWARDER_PORT, DNS_FORWARDER_PORT_OLD, VERSION_WITH_NEW_FORWARDER_PORT } from "../protocol/version.ts";
import { ChangeLog } from "./change-log.ts";
import type { Account, Peer, PolicyRule } from "./model.ts";

/** Directions of a rule as the receiver sees them. */
export const DIRECTION_IN = 1;
export const DIRECTION_OUT = 2;

/** One peer that a receiver may talk to under one rule; `directions` is a sum of the above. */
export interface RuleMatch {
  readonly rule: PolicyRule;
  readonly peer: Peer;
  readonly directions: number;
}

/** What one receiver gets to see: protocol/management.md, section 5.5. */
export interface Visible {
  readonly peers: readonly Peer[];
  readonly rules: readonly RuleMatch[];
}

/**
 * The network in memory, kept equal to the store by the server: it applies here what the store has committed. Deriving maps from
 * it asks nobody.
 */
export class AccountState {
  readonly network: Prefix;
  readonly network6: Prefix;
  readonly domain: string;
  /** Every `put` and `remove`, from the first map on. */
  readonly changes = new ChangeLog();
  #lazy: boolean;
  #serial: number;
  readonly #rules: readonly PolicyRule[];
  readonly #allGroups: ReadonlySet<string>;
  readonly #peers = new Map<PublicKey, Peer>();
  /** Peers of agents that have the DNS forwarder on the old port. */
  #oldForwarders = 0;

  constructor(account: Account, defaultDomain: string) {
    this.network = account.network;
    this.network6 = account.network6;
    this.domain = account.domain || defaultDomain;
    this.#lazy = account.lazy;
    this.#serial = account.serial;
    this.#rules = account.rules;
    this.#allGroups = new Set(account.groups.filter((group) => group.isAll).map((group) => group.id));
    for (const peer of account.peers) this.#insert(peer);
  }

  get lazy(): boolean {
    return this.#lazy;
  }

  get serial(): number {
    return this.#serial;
  }

  get peers(): ReadonlyMap<PublicKey, Peer> {
    return this.#peers;
  }

  /** The port of the DNS forwarder that every peer of the account is told (section 7.3). */
  get forwarderPort(): number {
    return this.#oldForwarders === 0 ? DNS_FORWARDER_PORT : DNS_FORWARDER_PORT_OLD;
  }

  /** Adds or replaces a peer. */
  put(peer: Peer, serial: number): void {
    this.#insert(peer);
    this.changes.note(peer.key);
    this.#raise(serial);
  }

  #insert(peer: Peer): void {
    if (!prefixContains(this.network, peer.address))
      throw new RangeError(`${peer.address} of ${peer.name} is outside of the network ${this.network.address}`);
    const before = this.#peers.get(peer.key);
    if (before) this.#countForwarder(before, -1);
    this.#peers.set(peer.key, peer);
    this.#countForwarder(peer, 1);
  }

  remove(key: PublicKey, serial: number): void {
    const peer = this.#peers.get(key);
    if (peer) this.#countForwarder(peer, -1);
    this.#peers.delete(key);
    this.changes.note(key);
    this.#raise(serial);
  }

  setLazy(lazy: boolean, serial: number): void {
    this.#lazy = lazy;
    this.#raise(serial);
  }

  /** Every peer the receiver is to connect to, and the rules between them, without duplicates. */
  visibleTo(receiver: Peer): Visible {
    const peers = new Set<Peer>();
    const rules: RuleMatch[] = [];
    for (const rule of this.#rules) {
      if (!this.#isIn(receiver, rule.sources) && !this.#isIn(receiver, rule.destinations)) continue;
      for (const peer of this.#peers.values()) {
        const match = this.#match(rule, receiver, peer);
        if (!match) continue;
        peers.add(peer);
        rules.push(match);
      }
    }
    return { peers: [...peers], rules };
  }

  /** The rules between the receiver and one other peer; none: the receiver does not see it. */
  rulesBetween(receiver: Peer, peer: Peer): readonly RuleMatch[] {
    return this.#rules.flatMap((rule) => this.#match(rule, receiver, peer) ?? []);
  }

  /** What each rule allows between the receiver and everybody, by the built-in group; rules that allow nothing are left out. */
  rulesForAll(receiver: Peer): ReadonlyMap<PolicyRule, number> {
    const isAll = (group: string): boolean => this.#allGroups.has(group);
    const directions = new Map<PolicyRule, number>();
    for (const rule of this.#rules) {
      const reaches = this.#isIn(receiver, rule.sources) && rule.destinations.some(isAll);
      const isReached = this.#isIn(receiver, rule.destinations) && rule.sources.some(isAll);
      if (reaches || isReached) directions.set(rule, directionsOf(rule, reaches, isReached));
    }
    return directions;
  }

  #match(rule: PolicyRule, receiver: Peer, peer: Peer): RuleMatch | undefined {
    if (peer.key === receiver.key) return undefined;
    const reaches = this.#isIn(receiver, rule.sources) && this.#isIn(peer, rule.destinations);
    const isReached = this.#isIn(receiver, rule.destinations) && this.#isIn(peer, rule.sources);
    if (!reaches && !isReached) return undefined;
    return { rule, peer, directions: directionsOf(rule, reaches, isReached) };
  }

  /** Whether any rule connects the two, in either direction. */
  areConnected(a: Peer, b: Peer): boolean {
    return this.#rules.some(
      (rule) =>
        (this.#isIn(a, rule.sources) && this.#isIn(b, rule.destinations)) ||
        (this.#isIn(b, rule.sources) && this.#isIn(a, rule.destinations)),
    );
  }

  #isIn(peer: Peer, groups: readonly string[]): boolean {
    return groups.some((group) => this.#allGroups.has(group) || peer.groups.includes(group));
  }

  #countForwarder(peer: Peer, by: number): void {
    if (!isVersionAtLeast(peer.meta.netbirdVersion, VERSION_WITH_NEW_FORWARDER_PORT)) this.#oldForwarders += by;
  }

  /** Answers of the store may be applied out of order; the serial never goes back. */
  #raise(serial: number): void {
    this.#serial = Math.max(this.#serial, serial);
  }
}

function directionsOf({ bidirectional }: PolicyRule, reaches: boolean, isReached: boolean): number {
  const isIn = isReached || (bidirectional && reaches);
  const isOut = reaches || (bidirectional && isReached);
  return (isIn ? DIRECTION_IN : 0) + (isOut ? DIRECTION_OUT : 0);
}
