/**
 * What a NetbirdConfig says about signal, relay, STUN and TURN, parsed once.
 * Source: protocol/management.md, sections 3.4 and 3.5.
 */

import { messageOf } from "#base/errors.ts";
import { encodeRelayToken, type RelayToken } from "#base/relay-token.ts";
import { HostConfig_Protocol, type NetbirdConfig } from "#gen/management_pb.ts";

/** A STUN or TURN server as its URI names it; `host` is a name or an address without brackets. */
export interface IceServer {
  readonly scheme: "stun" | "stuns" | "turn" | "turns";
  readonly host: string;
  readonly port: number;
  readonly transport: "udp" | "tcp";
}

export interface TurnServer extends IceServer {
  readonly user: string;
  readonly password: string;
}

/** Undefined or empty means what it means on the wire; see each field. */
export interface Infrastructure {
  /** Only the one in the login answer counts. */
  readonly signal: { readonly authority: string; readonly tls: boolean } | undefined;
  /** Undefined: relaying is off, the URL list is wiped. */
  readonly relay: { readonly urls: readonly string[]; readonly token: RelayToken } | undefined;
  /** Empty: keep the previous list. */
  readonly stuns: readonly IceServer[];
  readonly turns: readonly TurnServer[];
  /** What could not be used, in words; the rest stands. */
  readonly problems: readonly string[];
}

const DEFAULT_PORT = { stun: 3478, turn: 3478, stuns: 5349, turns: 5349 } as const;

/** Never throws: a stock agent drops the whole message for one bad URI, we drop the URI and say so. */
export function readInfrastructure(config: NetbirdConfig): Infrastructure {
  const problems: string[] = [];
  const attempt = <T>(read: () => T): T | undefined => {
    try {
      return read();
    } catch (error) {
      problems.push(messageOf(error));
      return undefined;
    }
  };
  const present = <T>(value: T | undefined): value is T => value !== undefined;
  return {
    signal: config.signal && {
      authority: config.signal.uri,
      tls: config.signal.protocol === HostConfig_Protocol.HTTPS,
    },
    relay:
      config.relay &&
      attempt(() => {
        const { urls, tokenPayload: payload, tokenSignature: signatureBase64 } = config.relay!;
        encodeRelayToken({ payload, signatureBase64 });
        return { urls, token: { payload, signatureBase64 } };
      }),
    stuns: config.stuns.map((host) => attempt(() => parseIceUri(host.uri, ["stun", "stuns"]))).filter(present),
    turns: config.turns
      .map((host) =>
        attempt(() => ({
          ...parseIceUri(host.hostConfig?.uri ?? "", ["turn", "turns"]),
          user: host.user,
          password: host.password,
        })),
      )
      .filter(present),
    problems,
  };
}

/** `scheme:host[:port][?transport=…]` (RFC 7064 and 7065); no slashes. Throws RangeError naming the URI. */
export function parseIceUri(uri: string, schemes: readonly IceServer["scheme"][]): IceServer {
  const bad = (why: string): RangeError => new RangeError(`${JSON.stringify(uri.slice(0, 200))}: ${why}`);
  const match = /^(stuns?|turns?):(\[[0-9a-fA-F:.]+\]|[^:?#/[\]\s]+)(?::(\d{1,5}))?(?:\?(.*))?$/.exec(uri);
  if (!match) throw bad("not a STUN or TURN URI such as stun:host:3478");
  const scheme = match[1] as IceServer["scheme"];
  if (!schemes.includes(scheme)) throw bad(`want ${schemes.join(" or ")}`);
  const port = match[3] === undefined ? DEFAULT_PORT[scheme] : Number(match[3]);
  if (port < 1 || port > 65535) throw bad("the port must be 1 to 65535");
  let transport: IceServer["transport"] = scheme.endsWith("s") ? "tcp" : "udp";
  if (match[4] !== undefined) {
    const query = /^transport=(udp|tcp)$/.exec(match[4]);
    if (!query || scheme.startsWith("stun")) throw bad("only a TURN URI takes a query, and only transport=udp or tcp");
    transport = query[1] as IceServer["transport"];
  }
  return { scheme, host: match[2]!.replace(/^\[|\]$/g, ""), port, transport };
}
