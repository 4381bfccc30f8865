import { resolve } from "node:path";
import { messageOf } from "#base/errors.ts";
import { type Endpoint, parseEndpoint } from "#base/ip.ts";
import type { PerchServerOptions, ServerRole } from "#server/server.ts";
import { UsageError } from "./exit-codes.ts";

export const DEFAULT_SERVER_DATA_DIR = "/var/lib/perch-server";

/** As given, before they are parsed. */
export interface ServerFlags {
  readonly listen?: string;
  readonly publicUrl?: string;
  readonly stunListen?: string;
  readonly dataDir?: string;
  readonly database?: string;
  readonly bus?: string;
  readonly roles?: string;
  readonly tlsCert?: string;
  readonly tlsKey?: string;
  readonly setupKeyFile?: string;
  readonly domain?: string;
  readonly logLevel?: string;
  readonly logFile?: string;
}

/** Roles by name; false: named in the design, not there yet. */
const ROLES: Readonly<Record<string, ServerRole | false>> = {
  management: "management",
  signal: "signal",
  relay: "relay",
  stun: "stun",
  console: false,
};

/** Throws UsageError, which names the flag, its value and what it may be. */
export function parseServerFlags(flags: ServerFlags): PerchServerOptions {
  const { tlsCert, tlsKey } = flags;
  if ((tlsCert === undefined) !== (tlsKey === undefined))
    throw new UsageError(`--tls-cert and --tls-key go together; ${tlsCert ? "--tls-key" : "--tls-cert"} is missing`);
  if (flags.bus !== undefined && flags.bus !== "local")
    throw new UsageError(`--bus ${show(flags.bus)} is not supported yet: only local is`);
  return {
    listen: parseListen("--listen", flags.listen ?? "0.0.0.0:33073"),
    stunListen: parseListen("--stun-listen", flags.stunListen ?? "0.0.0.0:3478"),
    publicUrl: flags.publicUrl,
    ...parseStorage(flags),
    roles: flags.roles === undefined ? undefined : parseRoles(flags.roles),
    tls: tlsCert !== undefined && tlsKey !== undefined ? { certFile: tlsCert, keyFile: tlsKey } : undefined,
    setupKeyFile: flags.setupKeyFile === undefined ? undefined : resolve(flags.setupKeyFile),
    domain: flags.domain === undefined ? undefined : parseDomain(flags.domain),
  };
}

/** Data directory and database, for the server and for the commands that act on it. */
export function parseStorage(flags: Pick<ServerFlags, "dataDir" | "database">): {
  readonly dataDir: string;
  readonly databasePath: string | undefined;
} {
  const { dataDir = DEFAULT_SERVER_DATA_DIR, database } = flags;
  if (dataDir === "") throw new UsageError('--data-dir "" names no directory');
  return { dataDir: resolve(dataDir), databasePath: database === undefined ? undefined : parseDatabase(database) };
}

function parseDatabase(text: string): string {
  const [, scheme, path] = /^([a-z]+):(.*)$/s.exec(text) ?? [];
  if (scheme === "postgres" || scheme === "postgresql")
    // The URL may hold a password.
    throw new UsageError(`--database ${scheme}://… is not supported yet: only sqlite:PATH is`);
  if (scheme !== "sqlite" || !path) throw new UsageError(`--database ${show(text)} is not sqlite:PATH`);
  return resolve(path);
}

function parseListen(flag: string, text: string): Endpoint {
  try {
    return parseEndpoint(text);
  } catch (error) {
    throw new UsageError(`${flag}: ${messageOf(error)}`);
  }
}

function parseRoles(text: string): ServerRole[] {
  const names = text.split(",").map((name) => name.trim());
  return names.map((name) => {
    const role = Object.hasOwn(ROLES, name) ? ROLES[name] : undefined;
    if (role === false) throw new UsageError(`--roles: ${name} is not supported yet`);
    if (role === undefined) throw new UsageError(`--roles: ${show(name)} is none of management, signal, relay, stun`);
    return role;
  });
}

function parseDomain(text: string): string {
  const domain = text.toLowerCase().replace(/\.$/, "");
  if (
    domain.length > 190 ||
    !/^([a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?)(\.[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?)*$/.test(domain)
  )
    throw new UsageError(`--domain ${show(text)} is not a domain name of at most 190 characters`);
  return domain;
}

const UNITS: Readonly<Record<string, number>> = { s: 1000, m: 60_000, h: 3_600_000, d: 86_400_000, w: 604_800_000 };
const LONGEST_DURATION_MS = 100 * 365 * 86_400_000;

/** `90s`, `30m`, `24h`, `7d`, `2w` in milliseconds; `never`: undefined. Throws UsageError. */
export function parseLifetime(flag: string, text: string): number | undefined {
  if (text === "never") return undefined;
  const [, count, unit] = /^(\d{1,9})([smhdw])$/.exec(text) ?? [];
  const milliseconds = Number(count) * (UNITS[unit ?? ""] ?? Number.NaN);
  if (!(milliseconds > 0 && milliseconds <= LONGEST_DURATION_MS))
    throw new UsageError(`${flag} ${show(text)} is not a time like 90s, 30m, 24h, 7d, 2w or never`);
  return milliseconds;
}

/** `0` to `2^31`; throws UsageError. */
export function parseCount(flag: string, text: string): number {
  if (!/^\d{1,9}$/.test(text)) throw new UsageError(`${flag} ${show(text)} is not a whole number of 0 to 999999999`);
  return Number(text);
}

function show(text: string): string {
  return JSON.stringify(text.slice(0, 100));
}
