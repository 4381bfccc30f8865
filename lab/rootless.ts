import { execFileSync, spawn, spawnSync } from "node:child_process";
import { accessSync, constants, existsSync, readFileSync } from "node:fs";
import { constants as osConstants } from "node:os";
import { LabError } from "./errors.ts";
import { signalOnParentDeath } from "./wait.ts";

/** How the lab may do what it does: as root, or as the root of a user namespace of its own. */
export type Privileges = "root" | "user-namespace";

/** Set in the process that runs inside the user namespace. */
const INSIDE_VARIABLE = "PERCH_LAB_USER_NAMESPACE";
const CAP_NET_ADMIN = 12n;
const CAP_SYS_ADMIN = 21n;
const UNSHARE = ["--user", "--map-root-user", "--net", "--mount"];
/** `ip netns` keeps its names in /run/netns: a /run of our own can be written. */
const ENTER = 'mount -t tmpfs -o mode=755 perch-lab /run && mkdir /run/netns && exec "$@"';

/**
 * Makes sure that namespaces and interfaces can be made. As root it returns at once. Otherwise it runs the whole program
 * again, with the same arguments and standard streams, as root of a user namespace with its own network and mounts, and this
 * process ends with that one's exit code: call it first thing in a program. Throws LabError `privileges-missing`.
 */
export async function ensurePrivileges(): Promise<Privileges> {
  const way = findPrivileges();
  if (way.kind === "none") throw new LabError("privileges-missing", way.reason);
  if (way.kind === "direct") {
    const isInside = process.env[INSIDE_VARIABLE] !== undefined;
    if (isInside) signalOnParentDeath(osConstants.signals.SIGTERM);
    return isInside ? "user-namespace" : "root";
  }
  const program = [process.execPath, ...process.execArgv, ...process.argv.slice(1)];
  const child = spawn("unshare", [...UNSHARE, "sh", "-c", ENTER, "perch-lab", ...program], {
    stdio: "inherit",
    env: { ...process.env, [INSIDE_VARIABLE]: "1" },
  });
  for (const signal of ["SIGTERM", "SIGHUP"] as const) process.on(signal, () => child.kill(signal));
  // A terminal sends Ctrl-C to both processes; here it only means waiting for the other one's clean-up.
  process.on("SIGINT", () => process.stdin.isTTY || child.kill("SIGINT"));
  return new Promise(() => {
    child.on("exit", (code, signal) => process.exit(signal ? 128 + osConstants.signals[signal] : (code ?? 1)));
  });
}

/**
 * For the `skip` of tests: false once labs can be made, which may mean running the test file again as `ensurePrivileges` does,
 * or the reason why none can. Await it at the top of a test file.
 */
export async function skipWithoutLab(): Promise<string | false> {
  const way = findPrivileges();
  if (way.kind === "none") return way.reason;
  await ensurePrivileges();
  return false;
}

/** Throws LabError `privileges-missing` when this process cannot make namespaces: `ensurePrivileges` was not called. */
export function assertPrivileges(): void {
  if (hasCapabilities()) return;
  throw new LabError(
    "privileges-missing",
    "this process may not make network namespaces: run it as root, or call ensurePrivileges() first",
  );
}

type Way = { readonly kind: "direct" | "unshare" } | { readonly kind: "none"; readonly reason: string };

function findPrivileges(): Way {
  if (process.platform !== "linux") return { kind: "none", reason: `the lab needs Linux, this is ${process.platform}` };
  if (spawnSync("ip", ["-V"], { stdio: "ignore" }).error)
    return { kind: "none", reason: "the program ip is missing (Debian package iproute2)" };
  if (hasCapabilities()) {
    if (hasTun()) return { kind: "direct" };
    return { kind: "none", reason: "there is no /dev/net/tun that may be opened, and it could not be made" };
  }
  if (!existsSync("/dev/net/tun")) return { kind: "none", reason: "there is no /dev/net/tun" };
  if (process.env[INSIDE_VARIABLE] !== undefined)
    return { kind: "none", reason: "the user namespace does not give CAP_NET_ADMIN and CAP_SYS_ADMIN" };
  const probe = spawnSync("unshare", [...UNSHARE, "sh", "-c", ENTER, "perch-lab", "ip", "netns", "add", "probe"], {
    stdio: ["ignore", "ignore", "pipe"],
    encoding: "utf8",
    timeout: 10_000,
  });
  if (probe.status === 0) return { kind: "unshare" };
  const detail = probe.stderr?.trim().split("\n")[0] || probe.error?.message || `unshare ended with ${probe.status}`;
  return {
    kind: "none",
    reason: `the lab needs root or user namespaces, and neither is allowed here (${detail}); run it as root`,
  };
}

function hasCapabilities(): boolean {
  const line = /^CapEff:\s*([0-9a-f]+)$/m.exec(readFileSync("/proc/self/status", "latin1"));
  const effective = BigInt(`0x${line?.[1] ?? "0"}`);
  return ((effective >> CAP_NET_ADMIN) & (effective >> CAP_SYS_ADMIN) & 1n) === 1n;
}

function hasTun(): boolean {
  if (!existsSync("/dev/net/tun")) {
    try {
      // Containers often come without the node although the kernel has the driver.
      execFileSync("sh", ["-c", "mkdir -p /dev/net && mknod -m 666 /dev/net/tun c 10 200"], { stdio: "ignore" });
    } catch {
      return false;
    }
  }
  try {
    accessSync("/dev/net/tun", constants.R_OK | constants.W_OK);
    return true;
  } catch {
    return false;
  }
}
