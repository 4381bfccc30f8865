import { isIP } from "node:net";
import type { NetworkInterfaceInfo } from "node:os";
import { type Endpoint, type IpAddress, isV6, parseIp } from "#base/ip.ts";
import { ServerError } from "./server-error.ts";

/** How agents reach the parts of this server: what management sends them, and what a person types. */
export interface PublicEndpoints {
  /** `http[s]://host:port`, for --management-url. */
  readonly managementUrl: string;
  /** Host and port of signal, without a scheme; the flag beside it says whether agents use TLS. */
  readonly signalUri: string;
  readonly tls: boolean;
  /** `rel[s]://host:port`; agents compare it byte for byte, so it is made here once (relay.md, section 2.1). */
  readonly relayUrl: string;
  /** `stun:host:port`; undefined without STUN. */
  readonly stunUri: string | undefined;
  /** Why the host may be wrong; to be logged. */
  readonly guessed: string | undefined;
}

export interface PublicEndpointsInput {
  /** `--public-url`: http or https, host, perhaps a port. */
  readonly publicUrl: string | undefined;
  /** The TCP port that was taken. */
  readonly listen: Endpoint;
  /** The UDP port that was taken. */
  readonly stunListen: Endpoint | undefined;
  /** The server has a certificate of its own. */
  readonly hasTls: boolean;
  /** `os.networkInterfaces()`. */
  readonly interfaces: NodeJS.Dict<NetworkInterfaceInfo[]>;
}

/** Throws ServerError `option-invalid` for an unusable public URL. */
export function decidePublicEndpoints(input: PublicEndpointsInput): PublicEndpoints {
  const { publicUrl, listen, stunListen, hasTls } = input;
  const given = publicUrl === undefined ? undefined : parsePublicUrl(publicUrl);
  const guess = given ? undefined : guessHost(listen.address, input.interfaces);
  const tls = given ? given.tls : hasTls;
  const host = given ? given.host : bracket(guess!.address);
  const port = given ? given.port : listen.port;
  const stunHost = !given && stunListen && !isWildcard(stunListen.address) ? bracket(stunListen.address) : host;
  return {
    managementUrl: `${tls ? "https" : "http"}://${host}:${port}`,
    signalUri: `${host}:${port}`,
    tls,
    relayUrl: `${tls ? "rels" : "rel"}://${host}:${port}`,
    stunUri: stunListen ? `stun:${stunHost}:${stunListen.port}` : undefined,
    guessed: guess?.reason,
  };
}

/** Throws ServerError `option-invalid`. */
export function parsePublicUrl(text: string): { host: string; port: number; tls: boolean } {
  const refuse = (why: string): ServerError =>
    new ServerError("option-invalid", `--public-url ${JSON.stringify(text.slice(0, 200))} ${why}`);
  const url = URL.parse(text);
  if (!url || !/^https?:\/\//i.test(text)) throw refuse("is not a URL like https://perch.example.org:33073");
  if (url.hostname === "") throw refuse("has no host");
  if (url.username !== "" || url.password !== "") throw refuse("must not hold a user or a password");
  if (url.pathname !== "/" || url.search !== "" || url.hash !== "")
    throw refuse("must end after the port: agents use host and port only");
  if (url.port === "0") throw refuse("needs a port of 1 to 65535");
  const literal = url.hostname.replace(/^\[|\]$/g, "");
  if (isIP(literal) && isWildcard(parseIp(literal))) throw refuse("names no host that an agent could reach");
  const tls = url.protocol === "https:";
  return { host: url.hostname, port: url.port === "" ? (tls ? 443 : 80) : Number(url.port), tls };
}

function guessHost(
  listen: IpAddress,
  interfaces: NodeJS.Dict<NetworkInterfaceInfo[]>,
): { address: IpAddress; reason: string | undefined } {
  if (!isWildcard(listen)) return { address: listen, reason: undefined };
  const all = Object.values(interfaces).flatMap((addresses) => addresses ?? []);
  // Link-local addresses need a zone, which only means something on this machine.
  const usable = all.filter(({ internal, address }) => !internal && !/^(fe80:|169\.254\.)/i.test(address));
  const found = usable.find(({ family }) => family === "IPv4") ?? usable[0];
  const address = parseIp(found?.address ?? "127.0.0.1");
  const reason = found
    ? "no --public-url: agents are told the first address of this machine"
    : "no --public-url and no address besides loopback: only agents on this machine can connect";
  return { address, reason };
}

function isWildcard(address: IpAddress): boolean {
  return address === "0.0.0.0" || address === "::";
}

function bracket(address: IpAddress): string {
  return isV6(address) ? `[${address}]` : address;
}
