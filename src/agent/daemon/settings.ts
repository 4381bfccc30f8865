import { hostname } from "node:os";
import { formatEndpoint, parseEndpoint } from "#base/ip.ts";
import { PresharedKey } from "#base/keys.ts";
import type { Millis } from "#base/time.ts";
import { DaemonError } from "./daemon-error.ts";

/** Values of settings, each absent where it was not given. */
export interface SettingValues {
  readonly managementUrl?: string | undefined;
  readonly hostname?: string | undefined;
  readonly interfaceName?: string | undefined;
  /** 0: any free port. */
  readonly wireguardPort?: number | undefined;
  /** Bytes. */
  readonly mtu?: number | undefined;
  readonly device?: DeviceChoice | undefined;
  /** Base64; the empty text removes a stored one. */
  readonly presharedKey?: string | undefined;
  readonly lazy?: boolean | undefined;
  readonly inactivityThreshold?: Millis | undefined;
  readonly forceRelay?: boolean | undefined;
  readonly dns?: boolean | undefined;
  readonly dnsWake?: boolean | undefined;
  /** `ADDRESS:PORT` on loopback; the empty text removes a stored one. */
  readonly metrics?: string | undefined;
}

export const DEVICE_CHOICES = ["embedded", "kernel", "wireguard-go", "auto"] as const;
export type DeviceChoice = (typeof DEVICE_CHOICES)[number];

/** Smallest IPv4 datagram every host takes (RFC 791) and what the data plane's buffers hold. */
export const MTU_MIN = 576;
export const MTU_MAX = 8192;
/** Bytes of an interface name on Linux (IFNAMSIZ without the final zero). */
export const INTERFACE_NAME_MAX_BYTES = 15;
/** Bytes of a DNS name in text (RFC 1035, section 2.3.4). */
export const HOSTNAME_MAX_BYTES = 253;
/** Shortest time without traffic after which a peer may sleep. */
export const INACTIVITY_MIN: Millis = 60_000;
/** Longest; a year. */
export const INACTIVITY_MAX: Millis = 365 * 86_400_000;
/** Lowers INACTIVITY_MIN to a second, for demonstrations and tests. */
export const SHORT_INACTIVITY_VARIABLE = "PERCH_ALLOW_SHORT_INACTIVITY";

/** Where a value came from, in order of precedence; `network` is known to the agent alone. */
export const SETTING_SOURCES = ["flag", "environment", "setting", "default"] as const;
export type SettingSource = (typeof SETTING_SOURCES)[number];

/** One setting: how it is written, read and shown. */
export interface Setting<Value> {
  /** Long flag without dashes; PERCH_<FLAG> and NB_<FLAG> come from it. */
  readonly flag: string;
  readonly placeholder: string;
  readonly help: string;
  /** Further environment variables, read before those that the flag names. */
  readonly variables: readonly string[];
  readonly secret: boolean;
  /** Text to value. Throws DaemonError `value-invalid`; `name` is how the person gave it (`--mtu`, `PERCH_MTU`). */
  parse(text: string, name: string): Value;
  /** The limits again, for a value that came as one. */
  check(value: Value, name: string): Value;
  format(value: Value): string;
  fallback(): Value | undefined;
}

export type SettingName = keyof SettingValues;
type SettingTable = { readonly [Name in SettingName]-?: Setting<NonNullable<SettingValues[Name]>> };

/** All settings of `perch up`; the one place for names, limits and defaults. */
export const SETTINGS: SettingTable = {
  managementUrl: text({
    flag: "management-url",
    placeholder: "URL",
    help: "server of the network, for example https://vpn.example.com",
    check: checkManagementUrl,
  }),
  hostname: text({
    flag: "hostname",
    placeholder: "NAME",
    help: "name of this machine in the network (default: its own)",
    check: checkHostname,
    fallback: () => hostname().slice(0, HOSTNAME_MAX_BYTES) || "perch",
  }),
  interfaceName: text({
    flag: "interface-name",
    placeholder: "NAME",
    help: "tunnel interface (default: perch0)",
    check: checkInterfaceName,
    fallback: () => "perch0",
  }),
  wireguardPort: {
    flag: "wireguard-port",
    placeholder: "PORT",
    help: "UDP port of the tunnel, 0 for any free one (default: 51820)",
    variables: [],
    secret: false,
    parse: (given, name) => wholeNumber(given, name, 0, 65535),
    check: (value, name) => inRange(value, name, 0, 65535),
    format: String,
    fallback: () => 51820,
  },
  mtu: {
    flag: "mtu",
    placeholder: "BYTES",
    help: `largest inner packet, ${MTU_MIN} to ${MTU_MAX} (default: 1280)`,
    variables: [],
    secret: false,
    parse: (given, name) => wholeNumber(given, name, MTU_MIN, MTU_MAX),
    check: (value, name) => inRange(value, name, MTU_MIN, MTU_MAX),
    format: String,
    fallback: () => 1280,
  },
  device: {
    flag: "device",
    placeholder: "KIND",
    help: "what implements WireGuard: embedded (Perch itself), kernel, wireguard-go, or auto: kernel where it works, else embedded (default: embedded)",
    variables: [],
    secret: false,
    parse: checkDevice,
    check: checkDevice,
    format: (value) => value,
    fallback: () => "embedded",
  },
  presharedKey: text({
    flag: "preshared-key",
    placeholder: "KEY",
    help: 'key shared by all peers of the network, 44 characters of base64; "" removes it',
    check: checkPresharedKey,
    secret: true,
  }),
  lazy: {
    flag: "enable-lazy-connection",
    placeholder: "BOOL",
    help: "let peers sleep until they are needed: true or false (default: as the network says)",
    variables: ["PERCH_LAZY_CONN", "NB_LAZY_CONN"],
    secret: false,
    parse: parseSwitch,
    check: (value) => value,
    format: String,
    fallback: () => undefined,
  },
  inactivityThreshold: {
    flag: "inactivity-threshold",
    placeholder: "TIME",
    help: "time without traffic after which a peer sleeps, at least 1m (default: 15m)",
    variables: ["PERCH_LAZY_CONN_INACTIVITY_THRESHOLD", "NB_LAZY_CONN_INACTIVITY_THRESHOLD"],
    secret: false,
    parse: (given, name) => checkInactivity(parseDuration(given, name), name),
    check: checkInactivity,
    format: formatDuration,
    fallback: () => 15 * 60_000,
  },
  forceRelay: {
    flag: "force-relay",
    placeholder: "BOOL",
    help: "never try a direct path (default: false)",
    variables: [],
    secret: false,
    parse: parseSwitch,
    check: (value) => value,
    format: String,
    fallback: () => false,
  },
  dns: {
    flag: "dns",
    placeholder: "BOOL",
    help: "find the network's names on this machine: on or off (default: as the network says)",
    variables: [],
    secret: false,
    parse: parseSwitch,
    check: (value) => value,
    format: String,
    fallback: () => undefined,
  },
  dnsWake: {
    flag: "dns-wake",
    placeholder: "BOOL",
    help: "wake a sleeping peer when its name is looked up: on or off (default: on)",
    variables: [],
    secret: false,
    parse: parseSwitch,
    check: (value) => value,
    format: String,
    fallback: () => true,
  },
  metrics: text({
    flag: "metrics",
    placeholder: "ADDRESS:PORT",
    help: 'serve Prometheus metrics on loopback, for example 127.0.0.1:9464; "" stops it (default: not served)',
    check: checkMetrics,
  }),
};

export const SETTING_NAMES = Object.keys(SETTINGS) as readonly SettingName[];

/** Variables of a setting, first one wins: PERCH before NB, the special names before those of the flag. */
export function variablesOf(name: SettingName): readonly string[] {
  const flag = variableSuffix(SETTINGS[name].flag);
  // The original switch of NetBird PR #3379 comes last: whoever sets a newer one means it.
  const original = name === "lazy" ? ["PERCH_ENABLE_EXPERIMENTAL_LAZY_CONN", "NB_ENABLE_EXPERIMENTAL_LAZY_CONN"] : [];
  return [...SETTINGS[name].variables, `PERCH_${flag}`, `NB_${flag}`, ...original];
}

/** `--daemon-addr` is PERCH_DAEMON_ADDR and NB_DAEMON_ADDR. */
function variableSuffix(flag: string): string {
  return flag.toUpperCase().replaceAll("-", "_");
}

/** The first of PERCH_<FLAG>, NB_<FLAG> that is set and not empty. */
export function environmentOf(
  flag: string,
  environment: NodeJS.ProcessEnv,
): { readonly variable: string; readonly text: string } | undefined {
  return firstVariable([`PERCH_${variableSuffix(flag)}`, `NB_${variableSuffix(flag)}`], environment);
}

function firstVariable(
  names: readonly string[],
  environment: NodeJS.ProcessEnv,
): { readonly variable: string; readonly text: string } | undefined {
  for (const variable of names) {
    const value = environment[variable]?.trim();
    if (value) return { variable, text: value };
  }
  return undefined;
}

/**
 * Settings in an environment. A wrong value goes to `refuse` and counts as absent, so that the caller chooses between an
 * error (a person's command) and a warning (a service that must start).
 */
export function settingsFromEnvironment(
  environment: NodeJS.ProcessEnv,
  refuse: (error: DaemonError) => void,
): SettingValues {
  const values: Record<string, unknown> = {};
  for (const name of SETTING_NAMES) {
    const found = firstVariable(variablesOf(name), environment);
    if (!found) continue;
    try {
      values[name] = SETTINGS[name].parse(found.text, found.variable);
    } catch (error) {
      if (!(error instanceof DaemonError)) throw error;
      refuse(error);
    }
  }
  return values as SettingValues;
}

/** The same values, each held against its limits again. Throws DaemonError `value-invalid`. */
export function checkSettings(values: SettingValues, prefix = "--"): SettingValues {
  const checked: Record<string, unknown> = {};
  for (const name of SETTING_NAMES) {
    const value = values[name];
    if (value === undefined) continue;
    const setting = SETTINGS[name] as Setting<typeof value>;
    checked[name] = setting.check(value, prefix + setting.flag);
  }
  return checked as SettingValues;
}

export interface ResolvedSetting {
  readonly value: NonNullable<SettingValues[SettingName]>;
  readonly source: SettingSource;
}

/** What is in force, and who said so. */
export type ResolvedSettings = ReadonlyMap<SettingName, ResolvedSetting>;

/** Values by source; `default` needs no entry. */
export type SettingLayers = Readonly<Partial<Record<SettingSource, SettingValues>>>;

/** Picks each value from the first layer that has it, in the order of SETTING_SOURCES. */
export function resolveSettings(layers: SettingLayers): ResolvedSettings {
  const resolved = new Map<SettingName, ResolvedSetting>();
  for (const name of SETTING_NAMES) {
    for (const source of SETTING_SOURCES) {
      const value = source === "default" ? SETTINGS[name].fallback() : layers[source]?.[name];
      if (value === undefined) continue;
      if (value !== "") resolved.set(name, { value, source });
      break;
    }
  }
  return resolved;
}

/** The value of a setting as its own type. */
export function settingValue<Name extends SettingName>(
  resolved: ResolvedSettings,
  name: Name,
): NonNullable<SettingValues[Name]> | undefined {
  return resolved.get(name)?.value as NonNullable<SettingValues[Name]> | undefined;
}

/** Text of a value for people; a secret is only `set`. */
export function showSetting(name: SettingName, value: ResolvedSetting["value"]): string {
  const setting = SETTINGS[name] as Setting<typeof value>;
  return setting.secret ? "set" : setting.format(value);
}

/** Text that a UUID is made of, in any case. */
const UUID = /^[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}$/i;

/** A setup key is a UUID; the message shows its first characters only. Throws DaemonError `value-invalid`. */
export function checkSetupKey(given: string, name: string): string {
  if (UUID.test(given)) return given;
  const shown = given.length > 8 ? `${JSON.stringify(given.slice(0, 4)).slice(0, -1)}…"` : "a text";
  throw invalid(name, `must be a UUID (8-4-4-4-12 hexadecimal digits), got ${shown} of ${given.length} characters`);
}

/** `90s`, `15m`, `1h30m`, `2d`; a bare number is minutes (as stock agents read it). Throws DaemonError. */
export function parseDuration(given: string, name: string): Millis {
  const units = { ms: 1, s: 1000, m: 60_000, h: 3_600_000, d: 86_400_000 } as const;
  if (/^\d{1,9}$/.test(given)) return Number(given) * units.m;
  if (!/^(?:\d{1,9}(?:\.\d{1,6})?(?:ms|s|m|h|d))+$/.test(given)) {
    throw invalid(name, `must be a duration such as 15m, 90s or 1h30m, got ${quote(given)}`);
  }
  let sum = 0;
  for (const [, amount, unit] of given.matchAll(/([\d.]+)(ms|s|m|h|d)/g)) {
    sum += Number(amount) * units[unit as keyof typeof units];
  }
  return sum;
}

/** The shortest text that parseDuration reads as the same time. */
export function formatDuration(value: Millis): string {
  let rest = Math.round(value);
  let out = "";
  for (const [unit, size] of [
    ["d", 86_400_000],
    ["h", 3_600_000],
    ["m", 60_000],
    ["s", 1000],
    ["ms", 1],
  ] as const) {
    const amount = Math.floor(rest / size);
    if (amount > 0) out += `${amount}${unit}`;
    rest -= amount * size;
  }
  return out || "0s";
}

/** `on`, `off`, `true`, `false`, `1`, `0`, `yes`, `no` in any case. Throws DaemonError. */
export function parseSwitch(given: string, name: string): boolean {
  const word = given.trim().toLowerCase();
  if (["on", "true", "1", "yes", "t"].includes(word)) return true;
  if (["off", "false", "0", "no", "f"].includes(word)) return false;
  throw invalid(name, `must be true or false, got ${quote(given)}`);
}

function text(
  parts: Pick<Setting<string>, "flag" | "placeholder" | "help" | "check"> & {
    readonly fallback?: () => string;
    readonly secret?: boolean;
  },
): Setting<string> {
  return {
    flag: parts.flag,
    placeholder: parts.placeholder,
    help: parts.help,
    variables: [],
    secret: parts.secret ?? false,
    parse: parts.check,
    check: parts.check,
    format: (value) => value,
    fallback: parts.fallback ?? (() => undefined),
  };
}

function checkManagementUrl(given: string, name: string): string {
  const url = URL.parse(given);
  if (!url || (url.protocol !== "http:" && url.protocol !== "https:") || url.hostname === "") {
    throw invalid(name, `must be http://HOST[:PORT] or https://HOST[:PORT], got ${quote(given)}`);
  }
  if (url.username || url.password) throw invalid(name, `must not hold a user name or password (host ${url.host})`);
  return given;
}

function checkHostname(given: string, name: string): string {
  if (given.length === 0 || Buffer.byteLength(given) > HOSTNAME_MAX_BYTES) {
    throw invalid(name, `must have 1 to ${HOSTNAME_MAX_BYTES} bytes, got ${Buffer.byteLength(given)}`);
  }
  // biome-ignore lint/suspicious/noControlCharactersInRegex: control characters are what is looked for
  if (/[\x00-\x20\x7f/]/.test(given)) throw invalid(name, `must not hold spaces or slashes, got ${quote(given)}`);
  return given;
}

function checkInterfaceName(given: string, name: string): string {
  if (given.length === 0 || Buffer.byteLength(given) > INTERFACE_NAME_MAX_BYTES) {
    throw invalid(name, `must have 1 to ${INTERFACE_NAME_MAX_BYTES} bytes, got ${quote(given)}`);
  }
  // biome-ignore lint/suspicious/noControlCharactersInRegex: control characters are what is looked for
  if (given === "." || given === ".." || /[\x00-\x20\x7f/:%]/.test(given)) {
    throw invalid(name, `must not hold spaces, slashes, colons or percent signs, got ${quote(given)}`);
  }
  return given;
}

function checkDevice(given: string, name: string): DeviceChoice {
  const found = DEVICE_CHOICES.find((choice) => choice === given);
  if (!found) throw invalid(name, `must be one of ${DEVICE_CHOICES.join(", ")}, got ${quote(given)}`);
  return found;
}

function checkPresharedKey(given: string, name: string): string {
  if (given === "") return given;
  try {
    return PresharedKey.parse(given).toBase64();
  } catch {
    throw invalid(name, `must be 44 characters of base64 (32 bytes), got ${given.length} characters`);
  }
}

function checkMetrics(given: string, name: string): string {
  if (given === "") return given;
  const problem = `must be ADDRESS:PORT with an address of loopback (127.0.0.1 or [::1]), got ${quote(given)}`;
  try {
    const { address, port } = parseEndpoint(given);
    if (port > 0 && (address === "::1" || address.startsWith("127."))) return formatEndpoint({ address, port });
  } catch {
    // Said below.
  }
  throw invalid(name, problem);
}

function checkInactivity(value: Millis, name: string): Millis {
  const least = process.env[SHORT_INACTIVITY_VARIABLE] ? 1000 : INACTIVITY_MIN;
  if (!(value >= least && value <= INACTIVITY_MAX)) {
    throw invalid(
      name,
      `must be ${formatDuration(least)} to ${formatDuration(INACTIVITY_MAX)}, got ${formatDuration(value)}`,
    );
  }
  return value;
}

function wholeNumber(given: string, name: string, least: number, most: number): number {
  if (!/^\d{1,15}$/.test(given)) throw invalid(name, `must be a whole number ${least} to ${most}, got ${quote(given)}`);
  return inRange(Number(given), name, least, most);
}

function inRange(value: number, name: string, least: number, most: number): number {
  if (!Number.isInteger(value) || value < least || value > most)
    throw invalid(name, `must be ${least} to ${most}, got ${value}`);
  return value;
}

function quote(given: string): string {
  return JSON.stringify(given.length > 80 ? `${given.slice(0, 80)}…` : given);
}

function invalid(name: string, problem: string): DaemonError {
  return new DaemonError("value-invalid", `${name} ${problem}`);
}
