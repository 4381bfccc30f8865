import { execFileSync, spawnSync } from "node:child_process";
import { accessSync, constants } from "node:fs";
import { delimiter, join } from "node:path";

/** A Debian package and how to tell that what we want of it is there. */
export interface SystemPackage {
  readonly name: string;
  /** Found in PATH or in /usr/sbin and /sbin, which a plain user's PATH lacks. */
  readonly command?: string;
  /** Importable by SYSTEM_PYTHON. */
  readonly module?: string;
}

/** Debian's own Python, which alone sees Debian's modules; a `python3` earlier in PATH does not. */
export const SYSTEM_PYTHON = "/usr/bin/python3";

/** What the tests use of the system. */
export const TEST_PACKAGES: readonly SystemPackage[] = [
  { name: "iproute2", command: "ip" },
  { name: "nftables", command: "nft" },
  { name: "iputils-ping", command: "ping" },
  { name: "iperf3", command: "iperf3" },
  { name: "tcpdump", command: "tcpdump" },
  { name: "bind9-dnsutils", command: "dig" },
  { name: "ethtool", command: "ethtool" },
  { name: "openssl", command: "openssl" },
  { name: "wireguard-go", command: "wireguard-go" },
  { name: "wireguard-tools", command: "wg" },
  { name: "chromium", command: "chromium" },
  { name: "protobuf-compiler", command: "protoc" },
  { name: "python3-grpcio", module: "grpc" },
  { name: "python3-nacl", module: "nacl" },
  { name: "python3-protobuf", module: "google.protobuf" },
  { name: "python3-websockets", module: "websockets" },
  { name: "python3-aioice", module: "aioice" },
  { name: "python3-prometheus-client", module: "prometheus_client" },
];

/** The packages of the list that are not usable here. */
export function missingPackages(packages: readonly SystemPackage[]): SystemPackage[] {
  const modules = packages.flatMap(({ module }) => (module ? [module] : []));
  const absent = new Set(modules.length > 0 ? absentModules(modules) : []);
  return packages.filter(
    ({ command, module }) => (command && !commandExists(command)) || (module !== undefined && absent.has(module)),
  );
}

/**
 * Installs with apt what is missing when this is root on a Debian-like machine; otherwise says exactly what to install.
 * Returns what is still missing. `say` gets lines for a person.
 */
export function ensurePackages(packages: readonly SystemPackage[], say: (line: string) => void): SystemPackage[] {
  const missing = missingPackages(packages);
  if (missing.length === 0) return [];
  const names = missing.map(({ name }) => name);
  const advice = `apt-get install ${names.join(" ")}`;
  if (process.getuid?.() !== 0) {
    say(`missing from the system, and not root to install it; what needs it is skipped. As root: ${advice}`);
    return missing;
  }
  if (!commandExists("apt-get")) {
    say(`missing from the system, which has no apt-get; the Debian packages are: ${names.join(" ")}`);
    return missing;
  }
  say(`installing with apt-get: ${names.join(" ")}`);
  if (!aptInstall(names)) say(`apt-get could not install everything; try it by hand: ${advice}`);
  return missingPackages(missing);
}

function aptInstall(names: readonly string[]): boolean {
  const apt = (...args: string[]): boolean =>
    spawnSync("apt-get", args, {
      stdio: ["ignore", "ignore", "inherit"],
      env: { ...process.env, DEBIAN_FRONTEND: "noninteractive" },
      timeout: 300_000,
    }).status === 0;
  const install = ["install", "-y", "-q", "--no-install-recommends", ...names];
  // A fresh image has no package lists, and old lists name versions that are gone: then once more with new ones.
  return apt(...install) || (apt("update", "-q") && apt(...install));
}

function commandExists(command: string): boolean {
  const folders = [...(process.env.PATH ?? "").split(delimiter), "/usr/sbin", "/sbin"];
  return folders.some((folder) => {
    try {
      accessSync(join(folder, command), constants.X_OK);
      return true;
    } catch {
      return false;
    }
  });
}

function absentModules(modules: readonly string[]): readonly string[] {
  const script = [
    "import importlib, sys",
    "for name in sys.argv[1:]:",
    "  try: importlib.import_module(name)",
    "  except Exception: print(name)",
  ].join("\n");
  try {
    const output = execFileSync(SYSTEM_PYTHON, ["-c", script, ...modules], { stdio: ["ignore", "pipe", "ignore"] });
    return output.toString().split("\n").filter(Boolean);
  } catch {
    return modules;
  }
}
