import { isIP } from "node:net";
import { PerchError } from "#base/errors.ts";

export class RelayUrlError extends PerchError<"relay-url-malformed"> {}

/** How to dial a relay. The text a relay is known by is kept apart from this and never normalised (relay.md, 2.1). */
export interface RelayTarget {
  readonly tls: boolean;
  /** Host name or address, without brackets. */
  readonly host: string;
  readonly port: number;
  /** Name for TLS; absent for an address. */
  readonly serverName?: string;
}

/** Reads `rel://host[:port]` or `rels://host[:port]`; a path is ignored. Throws RelayUrlError. */
export function parseRelayUrl(text: string): RelayTarget {
  const match = /^(rels?):\/\/(?:\[([0-9a-fA-F:.]+)\]|([^:/?#@[\]\s]+))(?::(\d{1,5}))?(?:[/?#].*)?$/i.exec(text);
  const tls = match?.[1]?.toLowerCase() === "rels";
  const host = match?.[2] ?? match?.[3];
  const port = match?.[4] === undefined ? (tls ? 443 : 80) : Number(match[4]);
  if (host === undefined || port < 1 || port > 65535)
    throw new RelayUrlError(
      "relay-url-malformed",
      `relay address must be rel://HOST[:PORT] or rels://HOST[:PORT], got ${JSON.stringify(text.slice(0, 100))}`,
    );
  return { tls, host, port, ...(isIP(host) === 0 && { serverName: host }) };
}
