import { execFileSync, spawn } from "node:child_process";
import { once } from "node:events";
import { chmodSync, existsSync, mkdirSync, mkdtempSync, readdirSync, realpathSync, renameSync, rmSync } from "node:fs";
import { join } from "node:path";
import type { SystemPackage } from "../../scripts/system-packages.ts";
import { LabError } from "../errors.ts";

/** What makes and runs the machine; the kernel itself is only fetched and unpacked, and never installed. */
export const MACHINE_PACKAGES: readonly SystemPackage[] = [
  { name: "qemu-system-x86", command: "qemu-system-x86_64" },
  { name: "busybox-static", command: "busybox" },
  { name: "cpio", command: "cpio" },
  { name: "kmod", command: "modprobe" },
];

/** Debian's name of its newest kernel. Not the one for clouds, which has no 9p. */
const KERNEL = "linux-image-amd64";
/** The parts of the package that the machine needs, of 400 MB. */
const WANTED = [
  "./boot/vmlinuz-*",
  "./lib/modules/*/modules.*",
  ...["arch", "crypto", "lib", "net", "fs/9p", "fs/netfs", "fs/fscache", "fs/overlayfs", "drivers/virtio"].map(
    (folder) => `./lib/modules/*/kernel/${folder}/*`,
  ),
  ...["char/virtio_console", "net/veth", "net/tun", "net/dummy", "net/wireguard/wireguard"].map(
    (module) => `./lib/modules/*/kernel/drivers/${module}.ko*`,
  ),
];

export interface KernelFiles {
  readonly version: string;
  readonly image: string;
  /** To be seen by the machine as /lib/modules/VERSION. */
  readonly modules: string;
  /** Modules by which the machine reads its files, in the order of loading. */
  readonly early: readonly string[];
}

/**
 * Debian's newest kernel, fetched with apt into `folder` unless it is there, about 70 MB. Throws LabError `command-failed`,
 * `tool-missing`.
 */
export async function fetchKernel(folder: string, say: (line: string) => void): Promise<KernelFiles> {
  const packageName = newestKernel();
  const version = packageName.replace("linux-image-", "");
  mkdirSync(folder, { recursive: true });
  // The machine mounts it before links lead anywhere.
  const root = join(realpathSync(folder), version);
  if (!existsSync(root)) {
    say(`fetching ${packageName}, which is not installed`);
    const draft = mkdtempSync(join(folder, "draft-"));
    try {
      await unpack(packageName, draft);
      run("depmod", ["-b", draft, version]);
      chmodSync(draft, 0o755);
      renameSync(draft, root);
    } catch (error) {
      rmSync(draft, { recursive: true });
      // Another run may have been first.
      if (!existsSync(root)) throw error;
    }
  }
  return {
    version,
    image: join(root, "boot", `vmlinuz-${version}`),
    modules: join(root, "lib/modules", version),
    early: earlyModules(root, version),
  };
}

function newestKernel(): string {
  const depends = run("apt-cache", ["depends", "--important", KERNEL]);
  const name = /Depends: (linux-image-\S+)/.exec(depends)?.[1];
  if (name) return name;
  throw new LabError("command-failed", `apt knows no ${KERNEL}; apt-get update, or this is no Debian`);
}

async function unpack(packageName: string, draft: string): Promise<void> {
  run("apt-get", ["download", "-q", "-o", "APT::Sandbox::User=root", packageName], draft);
  const archive = readdirSync(draft).find((name) => name.endsWith(".deb"))!;
  const deb = spawn("dpkg-deb", ["--fsys-tarfile", archive], { cwd: draft, stdio: ["ignore", "pipe", "inherit"] });
  const tar = spawn("tar", ["-x", "--wildcards", ...WANTED], { cwd: draft, stdio: [deb.stdout, "ignore", "pipe"] });
  deb.stdout.destroy();
  // Some of what is wanted is built into some kernels, and is missed where it is needed.
  tar.stderr.resume();
  await once(tar, "close");
  rmSync(join(draft, archive));
}

function earlyModules(root: string, version: string): string[] {
  const names = ["virtio_pci", "9pnet_virtio", "9p", "overlay", "virtio_console"];
  const plan = run("modprobe", ["-d", root, "-S", version, "--show-depends", "-a", ...names]);
  return [...new Set(plan.match(/(?<=^insmod )\S+/gm))];
}

/** What it says. Throws LabError. */
function run(program: string, args: readonly string[], cwd?: string): string {
  const env = { ...process.env, LC_ALL: "C", PATH: `${process.env.PATH ?? ""}:/usr/sbin:/sbin` };
  try {
    return execFileSync(program, args, { cwd, env, stdio: ["ignore", "pipe", "pipe"], encoding: "utf8" });
  } catch (cause) {
    const { code, stderr } = cause as NodeJS.ErrnoException & { stderr?: string };
    if (code === "ENOENT") throw new LabError("tool-missing", `${program} is not installed`, { cause });
    throw new LabError("command-failed", `${program} ${args.join(" ")}: ${stderr?.trim()}`, { cause });
  }
}
