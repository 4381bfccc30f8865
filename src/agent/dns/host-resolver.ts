import type { Endpoint } from "#base/ip.ts";
import type { DomainName } from "./domain-name.ts";

/** What the host's own resolver shall do. */
export interface HostNames {
  readonly interfaceName: string;
  /** Where this agent answers. */
  readonly server: Endpoint;
  /** Short names are completed with these, in this order. */
  readonly search: readonly DomainName[];
  /** What is asked here, where the host can tell questions apart; everything below a name belongs to it. */
  readonly match: readonly DomainName[];
  /** Everything that is nobody else's is asked here as well. */
  readonly everything: boolean;
}

/**
 * Makes programs of this host ask the agent, and undoes that. What is undone after a crash is written down before it is
 * done (resolver-record.ts).
 */
export interface HostResolver {
  readonly kind: HostResolverKind;
  /** Ports other than 53 can be told to the host. */
  readonly anyPort: boolean;
  /** Why programs do not ask us although `apply` worked: another program undid it since. */
  readonly problem: string | undefined;
  /** Servers the host asked before, for questions that are nobody else's: where all come to this agent. */
  fallback(): readonly Endpoint[];
  /** Again with each change. Throws DnsError `resolver`. */
  apply(names: HostNames): Promise<void>;
  /** Puts back what was there before; nothing to do is fine. Resolves with what could not be put back, in words. */
  restore(): Promise<readonly string[]>;
}

export type HostResolverKind = "systemd-resolved" | "resolv.conf";

/** The host is left as it is, and why. */
export interface NoHostResolver {
  readonly kind: "none";
  readonly reason: string;
}
