import { lookup } from "node:dns/promises";
import { type Endpoint, parseIp } from "#base/ip.ts";
import type { Logger } from "#base/log.ts";
import type { RelayToken } from "#base/relay-token.ts";
import { HostConfig_Protocol, type NetbirdConfig } from "#gen/management_pb.ts";

/** Where signal is (management document, section 3.5). */
export interface SignalAddress {
  readonly uri: string;
  readonly tls: boolean;
}

/** What management says of the servers around it. Absent parts mean: as before. */
export interface Infrastructure {
  readonly signal: SignalAddress | undefined;
  readonly stunUris: readonly string[] | undefined;
  /** A config without a relay part switches relays off: an empty list. */
  readonly relay: { readonly urls: readonly string[]; readonly token: RelayToken | undefined };
}

export function parseInfrastructure(config: NetbirdConfig): Infrastructure {
  const { signal, relay, stuns } = config;
  return {
    signal: signal && { uri: signal.uri, tls: signal.protocol === HostConfig_Protocol.HTTPS },
    stunUris: stuns.length > 0 ? stuns.map((stun) => stun.uri) : undefined,
    relay: {
      urls: relay?.urls ?? [],
      token: relay?.tokenPayload ? { payload: relay.tokenPayload, signatureBase64: relay.tokenSignature } : undefined,
    },
  };
}

const DEFAULT_STUN_PORT = 3478;

/** `stun:host[:port]` (RFC 7064), host a name or an address; undefined when it is neither. */
function parseStunUri(uri: string): { readonly host: string; readonly port: number } | undefined {
  const match = /^stun:(?:\[([^\]]+)\]|([^:/?]+))(?::(\d{1,5}))?$/i.exec(uri);
  const host = match?.[1] ?? match?.[2];
  const port = Number(match?.[3] ?? DEFAULT_STUN_PORT);
  return host !== undefined && port > 0 && port <= 65535 ? { host, port } : undefined;
}

/** Addresses of the STUN servers, one per family of each; names that do not resolve are logged and left out. */
export async function resolveStunServers(uris: readonly string[], log: Logger): Promise<Endpoint[]> {
  const resolved = await Promise.all(
    uris.map(async (uri) => {
      const server = parseStunUri(uri);
      if (!server) {
        log.warn("stun uri not usable", { uri });
        return [];
      }
      try {
        const addresses = await lookup(server.host, { all: true });
        const v4 = addresses.find(({ family }) => family === 4);
        const v6 = addresses.find(({ family }) => family === 6);
        return [v4, v6].flatMap((found) => (found ? [{ address: parseIp(found.address), port: server.port }] : []));
      } catch (err) {
        log.warn("stun server not found", { uri, err });
        return [];
      }
    }),
  );
  return resolved.flat();
}
