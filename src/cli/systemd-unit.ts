import { execFile } from "node:child_process";
import { existsSync } from "node:fs";
import { rename, rm, writeFile } from "node:fs/promises";
import { dirname, join, resolve } from "node:path";
import { fileURLToPath } from "node:url";
import { DaemonError } from "#agent/daemon/daemon-error.ts";
import { EXIT } from "./exit-codes.ts";

/** Where an administrator's units live. */
const UNIT_DIR = "/etc/systemd/system";
/** Exists exactly while systemd is the init of this machine (sd_booted(3)). */
const SYSTEMD_RUNS = "/run/systemd/system";

export interface UnitFlags {
  readonly daemonAddr?: string;
  readonly stateDir?: string;
  readonly logLevel?: string;
  readonly logFile?: string;
}

/**
 * The unit's text: started when the daemon answers, restarted after a failure and when its event loop or its data worker hangs
 * (a start with wrong flags is not tried again), may do what a tunnel needs and little else: its device, its sockets, the host's
 * routes, rules and resolver file (so /etc stays writable).
 */
export function unitText(perch: string, flags: UnitFlags): string {
  const args = [
    ["--daemon-addr", flags.daemonAddr],
    ["--state-dir", flags.stateDir && resolve(flags.stateDir)],
    ["--log-level", flags.logLevel],
    ["--log-file", flags.logFile && resolve(flags.logFile)],
  ].flatMap(([flag, value]) => (value === undefined ? [] : [flag!, value]));
  // Homes are read-only for the service; what it was told to write to is not.
  const writable = [flags.stateDir, flags.logFile && dirname(flags.logFile)].flatMap((path) =>
    path ? [resolve(path)] : [],
  );
  const writablePaths = writable.map((path) => `ReadWritePaths=-${quoteArgument(path)}\n`).join("");
  return `[Unit]
Description=Perch, a mesh VPN whose peers sleep until they are needed
Documentation=file://${resolve(perch, "../../README.md")}
Wants=network-online.target
After=network-online.target nss-lookup.target

[Service]
Type=notify
NotifyAccess=main
WatchdogSec=30
ExecStart=${[perch, "service", "run", ...args].map(quoteArgument).join(" ")}
ExecReload=/bin/kill -HUP $MAINPID
Restart=on-failure
RestartSec=2
RestartPreventExitStatus=${EXIT.usage}
TimeoutStartSec=60
TimeoutStopSec=20
KillMode=mixed
LimitNOFILE=65536
UMask=0077
CapabilityBoundingSet=CAP_NET_ADMIN CAP_NET_RAW CAP_NET_BIND_SERVICE CAP_SYS_MODULE CAP_CHOWN CAP_DAC_OVERRIDE CAP_FOWNER
NoNewPrivileges=true
DevicePolicy=closed
DeviceAllow=/dev/net/tun rw
ProtectSystem=true
ProtectHome=read-only
ProtectClock=true
ProtectHostname=true
ProtectControlGroups=true
ProtectKernelLogs=true
RestrictAddressFamilies=AF_UNIX AF_INET AF_INET6 AF_NETLINK
RestrictNamespaces=true
SystemCallArchitectures=native
RestrictRealtime=true
RestrictSUIDSGID=true
LockPersonality=true
${writablePaths}
[Install]
WantedBy=multi-user.target
`;
}

/** Writes, enables and starts the unit. Throws DaemonError `service-manager` or `value-invalid`. Returns what was done. */
export async function installUnit(name: string, flags: UnitFlags): Promise<string> {
  requireSystemd();
  const path = unitPath(name);
  const perch = fileURLToPath(new URL("../../bin/perch", import.meta.url));
  try {
    await writeFile(`${path}.new`, unitText(perch, flags), { mode: 0o644 });
    await rename(`${path}.new`, path);
  } catch (cause) {
    throw new DaemonError("service-manager", `cannot write ${path}: ${(cause as Error).message}`, { cause });
  }
  await systemctl("daemon-reload");
  await systemctl("enable", "--now", `${name}.service`);
  return `installed and started ${name}.service (${path}); connect with: perch up`;
}

/** Stops, disables and removes the unit. Throws DaemonError. */
export async function uninstallUnit(name: string): Promise<string> {
  requireSystemd();
  const path = unitPath(name);
  if (!existsSync(path)) throw new DaemonError("service-manager", `${name}.service is not installed (no ${path})`);
  await systemctl("disable", "--now", `${name}.service`);
  await rm(path, { force: true });
  await systemctl("daemon-reload");
  return `removed ${name}.service; identity and settings are kept`;
}

/** Throws DaemonError. */
export async function controlUnit(verb: "start" | "stop", name: string): Promise<string> {
  requireSystemd();
  unitPath(name);
  await systemctl(verb, `${name}.service`);
  return verb === "start" ? `started ${name}.service` : `stopped ${name}.service`;
}

/** Whether the unit is installed and runs. Throws DaemonError. */
export async function unitStatus(name: string): Promise<{ readonly text: string; readonly active: boolean }> {
  requireSystemd();
  if (!existsSync(unitPath(name))) return { text: `${name}.service is not installed`, active: false };
  const shown = await systemctl("show", "--property=ActiveState,SubState,MainPID", `${name}.service`);
  const value = (property: string): string => new RegExp(`^${property}=(.*)$`, "m").exec(shown)?.[1] ?? "unknown";
  const active = value("ActiveState") === "active";
  const process = active ? `, pid ${value("MainPID")}` : "";
  return { text: `${name}.service is ${value("ActiveState")} (${value("SubState")})${process}`, active };
}

function requireSystemd(): void {
  if (!existsSync(SYSTEMD_RUNS)) {
    throw new DaemonError(
      "service-manager",
      "systemd does not run this machine; have your init system run: perch service run",
    );
  }
}

function unitPath(name: string): string {
  if (!/^[A-Za-z0-9][\w.-]{0,63}$/.test(name)) {
    throw new DaemonError(
      "value-invalid",
      `--service must be 1 to 64 letters, digits, dots or dashes, got ${JSON.stringify(name)}`,
    );
  }
  return join(UNIT_DIR, `${name}.service`);
}

/** systemd splits at spaces and expands % and $ (systemd.service(5), "Command lines"). */
function quoteArgument(argument: string): string {
  const escaped = argument.replaceAll("%", "%%").replaceAll("$", "$$$$");
  return /^[\w@%+=:,./$-]+$/.test(escaped) ? escaped : `"${escaped.replace(/["\\]/g, "\\$&")}"`;
}

function systemctl(...args: readonly string[]): Promise<string> {
  const { promise, resolve: done, reject } = Promise.withResolvers<string>();
  execFile("systemctl", args, (error, stdout, stderr) => {
    if (!error) done(stdout);
    else
      reject(
        new DaemonError("service-manager", `systemctl ${args.join(" ")}: ${stderr.trim() || error.message}`, {
          cause: error,
        }),
      );
  });
  return promise;
}
