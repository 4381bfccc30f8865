import { type Answer, encode, RECURSION_DESIRED, type RecordType } from "dns-packet";
import { type Endpoint, type IpAddress, isV6, type Prefix, prefixContains } from "#base/ip.ts";
import type { PublicKey } from "#base/keys.ts";
import type { Clock } from "#base/time.ts";
import {
  type DnsQuery,
  encodeReply,
  packRecords,
  parseQuery,
  Rcode,
  type ReplyOptions,
  readAddresses,
} from "./dns-message.ts";
import type { DomainName } from "./domain-name.ts";
import type { Forwarder } from "./forwarder.ts";
import type { NamedPeer, NameTable } from "./name-table.ts";
import { NameWakes } from "./name-wakes.ts";
import { type Authorities, type Resolution, resolve } from "./resolve.ts";

export const DNS_COUNTERS = [
  "dns-questions",
  "dns-answered",
  "dns-not-found",
  "dns-forwarded",
  "dns-unanswered",
  "dns-refused",
  "dns-truncated",
  "dns-wakes",
  "dns-wakes-limited",
  "drop-dns-malformed",
  "drop-dns-foreign",
] as const;
export type DnsCounter = (typeof DNS_COUNTERS)[number];

/** What answers are made of at this moment; the owner replaces it as a whole. */
export interface Knowledge {
  readonly authorities: Authorities;
  /** Name of this machine. */
  readonly self: DomainName;
  readonly serial: number;
  /** Servers of the host, for what is nobody else's. */
  readonly fallback: readonly Endpoint[];
  readonly ownAddresses: ReadonlySet<IpAddress>;
  /** Networks behind the tunnel: who asks from there is not this machine. */
  readonly tunnelNetworks: readonly Prefix[];
  /** A question for a sleeping peer's name wakes it. */
  readonly wakes: boolean;
}

export interface ResponderDeps {
  readonly clock: Clock;
  readonly table: NameTable;
  readonly forwarder: Pick<Forwarder, "ask">;
  /** True when the peer slept, and is woken if `act`. */
  readonly wake: (key: PublicKey, name: string, act: boolean) => boolean;
}

/** Addresses of a foreign reply that end a chain of ours. */
const REST_MAX = 16;

/** Message in, message out: reads questions, answers what is ours, passes on the rest, wakes who was asked for. */
export class DnsResponder {
  readonly #deps: ResponderDeps;
  readonly #wakes: NameWakes;
  readonly #counters = new Map<DnsCounter, number>(DNS_COUNTERS.map((name) => [name, 0]));
  knowledge: Knowledge;

  constructor(deps: ResponderDeps, knowledge: Knowledge) {
    this.#deps = deps;
    this.#wakes = new NameWakes(deps.clock);
    this.knowledge = knowledge;
  }

  get counters(): ReadonlyMap<DnsCounter, number> {
    return this.#counters;
  }

  /** Undefined: nothing is sent back. Never rejects. */
  async answer(message: Uint8Array, from: IpAddress, overTcp: boolean): Promise<Uint8Array | undefined> {
    if (!this.#mayAsk(from)) return this.#drop("drop-dns-foreign");
    const parsed = parseQuery(message);
    if (parsed.kind === "malformed") return this.#drop("drop-dns-malformed");
    this.#count("dns-questions");
    if (parsed.kind === "reply") {
      this.#count("dns-refused");
      return parsed.message;
    }
    const { query } = parsed;
    if (query.edns && query.edns.version > 0) return this.#reply(query, { rcode: Rcode.BADVERS, overTcp });
    const resolution = query.isInternet ? this.#resolve(query) : ({ kind: "refuse" } as const);
    switch (resolution.kind) {
      case "refuse":
        this.#count("dns-refused");
        return this.#reply(query, { rcode: Rcode.REFUSED, overTcp });
      case "forward": {
        this.#count("dns-forwarded");
        const reply = await this.#deps.forwarder.ask(message, resolution.servers, overTcp);
        if (reply) return reply;
        this.#count("dns-unanswered");
        return this.#reply(query, { rcode: Rcode.SERVFAIL, overTcp });
      }
      case "answer":
        this.#count(resolution.rcode === "NXDOMAIN" ? "dns-not-found" : "dns-answered");
        this.#wake(resolution.named, query.name);
        return this.#answer(query, resolution, overTcp);
    }
  }

  #resolve(query: DnsQuery): Resolution {
    const { authorities, self, fallback } = this.knowledge;
    return resolve(this.#deps.table, authorities, query, self, fallback);
  }

  async #answer(
    query: DnsQuery,
    resolution: Extract<Resolution, { readonly kind: "answer" }>,
    overTcp: boolean,
  ): Promise<Uint8Array> {
    const { answers, authorities } = packRecords(resolution, this.knowledge);
    const rest = resolution.rest && (await this.#followOut(query, resolution.rest));
    if (resolution.rest && !rest) {
      this.#count("dns-unanswered");
      return this.#reply(query, { rcode: Rcode.SERVFAIL, overTcp });
    }
    const rcode = Rcode[resolution.rcode];
    return this.#reply(query, {
      rcode,
      answers: [...answers, ...(rest ?? [])],
      authorities,
      authoritative: !rest,
      overTcp,
    });
  }

  /** The end of a chain that leads out of our zones. */
  async #followOut(
    query: DnsQuery,
    { name, servers }: { name: DomainName; servers: readonly Endpoint[] },
  ): Promise<Answer[] | undefined> {
    this.#count("dns-forwarded");
    const question = encode({
      type: "query",
      flags: RECURSION_DESIRED,
      questions: [{ name, type: query.type as RecordType }],
    });
    const reply = await this.#deps.forwarder.ask(question, servers, false);
    if (!reply) return undefined;
    return readAddresses(reply, REST_MAX)
      .map(({ address, ttl }) => ({
        name,
        ttl,
        data: address,
        type: isV6(address) ? ("AAAA" as const) : ("A" as const),
      }))
      .filter(({ type }) => type === query.type);
  }

  #wake(named: readonly NamedPeer[], name: DomainName): void {
    if (!this.knowledge.wakes) return;
    for (const { key } of named) {
      if (!this.#deps.wake(key, name, false)) continue;
      const mayWake = this.#wakes.take();
      this.#count(mayWake ? "dns-wakes" : "dns-wakes-limited");
      if (mayWake) this.#deps.wake(key, name, true);
    }
  }

  /** Only this machine, and what runs on it or behind it, asks; other members of the network have agents of their own. */
  #mayAsk(from: IpAddress): boolean {
    const { ownAddresses, tunnelNetworks } = this.knowledge;
    return ownAddresses.has(from) || !tunnelNetworks.some((network) => prefixContains(network, from));
  }

  #reply(query: DnsQuery, options: ReplyOptions): Uint8Array {
    const { message, truncated } = encodeReply(query, options);
    if (truncated) this.#count("dns-truncated");
    return message;
  }

  #drop(counter: DnsCounter): undefined {
    this.#count(counter);
    return undefined;
  }

  #count(counter: DnsCounter): void {
    this.#counters.set(counter, this.#counters.get(counter)! + 1);
  }
}
