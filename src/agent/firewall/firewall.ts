import { fromBinary } from "@bufbuild/protobuf";
import { messageOf } from "#base/errors.ts";
import { isV6, type Prefix } from "#base/ip.ts";
import { PublicKey } from "#base/keys.ts";
import type { Logger } from "#base/log.ts";
import { type FirewallRule, FirewallRuleSchema, type NetworkMap, type PerchMapPart } from "#gen/management_pb.ts";
import type { WireGuardDevice } from "#wireguard/device.ts";
import type { FilterRule, SourceRule } from "#wireguard/filter.ts";
import { convertRules, rulesText, type SourceAccess } from "./access-rules.ts";

/** What status shows. `open`: a network without access rules of the old kind, in which everything is allowed. */
export type FirewallStatus = { readonly kind: "rules"; readonly rules: number } | { readonly kind: "open" };

export interface FirewallDeps {
  readonly device: Pick<WireGuardDevice, "setFilter" | "setFilterSource">;
  readonly log: Logger;
}

/** Our own addresses in the network: what access rules are about. */
export interface OwnAddresses {
  readonly address: Prefix;
  readonly address6: Prefix | undefined;
}

/** Problems of one map that are logged one by one. */
const PROBLEMS_MAX = 20;
/** Different lists of rules; a network has few. */
const LISTS_MAX = 1024;
const NONE: readonly SourceAccess[] = [];
/** Who brought the rules about the whole network; no peer's key is empty. */
const NETWORK = "";

/**
 * Keeps the device's filter at what the network map allows; a map that changes the rules of one peer changes those of its
 * addresses. Until the first map nothing comes in. Rules are about our own overlay addresses: what peers send through this
 * machine to others is dropped, there being no rule for it.
 */
export class Firewall {
  readonly #deps: FirewallDeps;
  #own: OwnAddresses;
  #isOpen = false;
  /** Rules are being put together that are sent as a whole. */
  #isGathering = false;
  /** Rules by who brought them: a peer's key, or the source in a map that is not told by peers. */
  readonly #access = new Map<string, readonly SourceAccess[]>();
  /** The map is told by peers. */
  #byPeer = false;
  /** Those about the whole network as they came: every part that ends a change has them. */
  #networkRules: readonly Uint8Array[] | undefined;
  /** One list for all sources with the same rules. */
  readonly #lists = new Map<string, readonly SourceRule[]>();
  #rules = 0;
  /** Peers of the whole map whose parts are being read. */
  #seen: Set<string> | undefined;

  constructor(deps: FirewallDeps, own: OwnAddresses) {
    this.#deps = deps;
    this.#own = own;
    deps.device.setFilter({ inbound: [], otherwise: "drop" });
  }

  get status(): FirewallStatus {
    return this.#isOpen ? { kind: "open" } : { kind: "rules", rules: this.#rules };
  }

  setOwn(own: OwnAddresses): void {
    const before = this.#own;
    this.#own = own;
    if (own.address.address === before.address.address && own.address6?.address === before.address6?.address) return;
    if (!this.#isOpen) this.#sendAll();
  }

  /** Takes a whole map: no rules and no word that this is meant so allow everything (management document, 3.7, field 9). */
  applyMap({ FirewallRules, firewallRulesIsEmpty }: NetworkMap): void {
    if (FirewallRules.length === 0 && !firewallRulesIsEmpty) {
      this.#open();
      return;
    }
    const problems: string[] = [];
    const wanted = convertRules(FirewallRules, problems);
    this.#report(problems);
    this.#enforce(false, () => {
      this.#keepOnly(wanted);
      for (const [text, access] of wanted) this.#put(text, [access]);
    });
  }

  /** Takes one part of a map that is told by peers. Such a map always has rules: a peer without any may do nothing. */
  applyPart(part: PerchMapPart): void {
    const problems: string[] = [];
    this.#enforce(true, () => {
      if (part.reset) this.#seen = new Set();
      for (const { peer, rules } of part.peers) {
        if (!peer) continue;
        this.#seen?.add(peer.wgPubKey);
        this.#put(peer.wgPubKey, [...convertRules(decodeRules(rules, problems), problems).values()]);
      }
      for (const bytes of part.removed) if (bytes.length === 32) this.#put(PublicKey.fromBytes(bytes), NONE);
      if (part.more) return;
      if (!isSameRules(this.#networkRules, part.rules))
        this.#put(NETWORK, [...convertRules(decodeRules(part.rules, problems), problems).values()]);
      this.#networkRules = part.rules;
      this.#seen?.add(NETWORK);
      if (this.#seen) this.#keepOnly(this.#seen);
      this.#seen = undefined;
    });
    this.#report(problems);
  }

  #put(owner: string, wanted: readonly SourceAccess[]): void {
    const before = this.#access.get(owner) ?? NONE;
    const after = wanted.map(({ source, rules }) => ({ source, rules: this.#intern(rules) }));
    for (const { source, rules } of before) {
      this.#rules -= rules.length;
      if (!after.some((one) => isSame(one.source, source))) this.#send(source, []);
    }
    for (const { source, rules } of after) {
      this.#rules += rules.length;
      const isKnown = before.some((one) => one.rules === rules && isSame(one.source, source));
      if (!isKnown) this.#send(source, rules);
    }
    if (after.length > 0) this.#access.set(owner, after);
    else this.#access.delete(owner);
  }

  #keepOnly(owners: { has(owner: string): boolean }): void {
    for (const owner of this.#access.keys()) if (!owners.has(owner)) this.#put(owner, NONE);
  }

  #intern(rules: readonly SourceRule[]): readonly SourceRule[] {
    const text = rulesText(rules);
    const known = this.#lists.get(text);
    if (known) return known;
    if (this.#lists.size >= LISTS_MAX) this.#lists.clear();
    this.#lists.set(text, rules);
    return rules;
  }

  #forget(): void {
    this.#access.clear();
    this.#lists.clear();
    this.#rules = 0;
    this.#networkRules = undefined;
    this.#seen = undefined;
  }

  #open(): void {
    this.#forget();
    if (this.#isOpen) return;
    this.#isOpen = true;
    this.#deps.log.warn("the network has no access rules: every peer may reach everything on this machine", {});
    this.#deps.device.setFilter(undefined);
  }

  /** Makes the change; after an open network, or a map told in the other way, all rules are sent at once. */
  #enforce(byPeer: boolean, change: () => void): void {
    if (!this.#isOpen && this.#byPeer === byPeer) {
      change();
      return;
    }
    this.#forget();
    this.#byPeer = byPeer;
    this.#isGathering = true;
    try {
      change();
    } finally {
      this.#isGathering = false;
    }
    this.#sendAll();
    this.#isOpen = false;
  }

  #send(source: Prefix, rules: readonly SourceRule[]): void {
    if (this.#isGathering) return;
    const destination = this.#destination(source);
    // Without an address of the family there is nothing here to reach.
    this.#deps.device.setFilterSource(source, destination ? rules.map((rule) => ({ ...rule, destination })) : []);
  }

  #sendAll(): void {
    const inbound: FilterRule[] = [];
    for (const { source, rules } of [...this.#access.values()].flat()) {
      const destination = this.#destination(source);
      if (destination) for (const rule of rules) inbound.push({ ...rule, source, destination });
    }
    this.#deps.device.setFilter({ inbound, otherwise: "drop" });
  }

  #destination(source: Prefix): Prefix | undefined {
    const { address, address6 } = this.#own;
    const own = [address, address6].find((one) => one && isV6(one.address) === isV6(source.address));
    return own && { address: own.address, bits: isV6(own.address) ? 128 : 32 };
  }

  #report(problems: readonly string[]): void {
    for (const problem of problems.slice(0, PROBLEMS_MAX))
      this.#deps.log.warn("access rule not understood", { problem });
    const more = problems.length - PROBLEMS_MAX;
    if (more > 0) this.#deps.log.warn("more access rules not understood", { count: more });
  }
}

function isSame(a: Prefix, b: Prefix): boolean {
  return a.address === b.address && a.bits === b.bits;
}

function isSameRules(before: readonly Uint8Array[] | undefined, rules: readonly Uint8Array[]): boolean {
  return before?.length === rules.length && rules.every((bytes, index) => Buffer.compare(bytes, before[index]!) === 0);
}

/** A rule that is broken may be one to drop, so without it none of the peer's others counts. */
function decodeRules(rules: readonly Uint8Array[], problems: string[]): FirewallRule[] {
  try {
    return rules.map((bytes) => fromBinary(FirewallRuleSchema, bytes));
  } catch (error) {
    problems.push(messageOf(error));
    return [];
  }
}
