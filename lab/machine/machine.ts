import { spawn } from "node:child_process";
import { createWriteStream, existsSync, mkdirSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { copyFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { basename, join } from "node:path";
import { pipeline } from "node:stream/promises";
import type { Millis } from "#base/time.ts";
import { LabError } from "../errors.ts";
import type { KernelFiles } from "./kernel-files.ts";

const MEMORY_MIB = 3072;
/** Of an emulated processor, by which it tells the time: 2 ns. */
const ICOUNT_SHIFT = 1;
/** In the machine. */
const SHARE = "/run/perch-machine";

export interface MachineRun {
  readonly kernel: KernelFiles;
  /** For bash, as root, in a machine with these very files. */
  readonly script: string;
  /** Then it is ended, real time. */
  readonly timeoutMs: Millis;
}

export interface MachineResult {
  /** Of the script; undefined: it did not come to its end, and `console` has what the kernel said last. */
  readonly code: number | undefined;
  readonly console: string;
}

/**
 * A machine of one processor with its own kernel and this machine's files: whatever it writes is in its memory and goes with it.
 * The script's output goes to our stdout. Without hardware to run on it is emulated, and then its clock counts the processor's
 * instructions: a slow or busy host makes it no less punctual, only longer.
 *
 *   /  overlay: a tmpfs above this machine's /, read-only by 9p
 */
export async function runMachine({ kernel, script, timeoutMs }: MachineRun): Promise<MachineResult> {
  const folder = mkdtempSync(join(tmpdir(), "perch-machine-"));
  const share = join(folder, "share");
  try {
    mkdirSync(share);
    writeFileSync(join(share, "script"), script);
    const initrd = join(folder, "initrd");
    await packInitrd(join(folder, "root"), initrd, kernel);
    const log = join(folder, "console");
    await runQemu(
      [
        ...processor(),
        ...["-m", String(MEMORY_MIB), "-nodefaults", "-display", "none", "-no-reboot"],
        ...["-kernel", kernel.image, "-initrd", initrd, "-append", "console=ttyS0 quiet panic=-1 mitigations=off"],
        ...["-serial", `file:${log}`, "-device", "virtio-serial-pci"],
        ...["-chardev", "stdio,id=out,signal=off", "-device", "virtconsole,chardev=out"],
        ...sharedFolder("root", "/", ",readonly=on,multidevs=remap"),
        ...sharedFolder("share", share),
      ],
      timeoutMs,
    );
    const code = join(share, "code");
    return {
      code: existsSync(code) ? Number(readFileSync(code, "utf8")) : undefined,
      console: existsSync(log) ? readFileSync(log, "latin1") : "",
    };
  } finally {
    rmSync(folder, { recursive: true });
  }
}

function processor(): readonly string[] {
  // A /dev/kvm alone does not say that it runs any kernel.
  const hasHardware = ["kvm_intel", "kvm_amd"].some((module) => existsSync(`/sys/module/${module}`));
  if (hasHardware && existsSync("/dev/kvm")) return ["-accel", "kvm", "-cpu", "host"];
  return ["-accel", "tcg", "-icount", `shift=${ICOUNT_SHIFT}`, "-cpu", "max"];
}

function sharedFolder(tag: string, path: string, more = ""): readonly string[] {
  return [
    ...["-fsdev", `local,id=${tag},path=${path.replaceAll(",", ",,")},security_model=none${more}`],
    ...["-device", `virtio-9p-pci,fsdev=${tag},mount_tag=${tag}`],
  ];
}

async function runQemu(args: readonly string[], timeoutMs: Millis): Promise<void> {
  const qemu = spawn("qemu-system-x86_64", args, { stdio: ["ignore", "pipe", "pipe"], killSignal: "SIGKILL" });
  const end = (): void => void qemu.kill("SIGKILL");
  process.once("exit", end);
  const timer = setTimeout(end, timeoutMs);
  let complaint = "";
  qemu.stderr.setEncoding("utf8").on("data", (text: string) => {
    complaint += text;
  });
  qemu.stdout.on("data", (bytes: Buffer) => process.stdout.write(bytes));
  try {
    await new Promise<void>((resolve, reject) => {
      qemu.on("error", (cause) => reject(new LabError("tool-missing", `qemu: ${cause.message}`, { cause })));
      qemu.on("close", (code) => {
        if (code === 0 || code === null) resolve();
        else reject(new LabError("command-failed", `qemu ended with ${code}: ${complaint.trim()}`));
      });
    });
  } finally {
    clearTimeout(timer);
    process.off("exit", end);
  }
}

async function packInitrd(root: string, to: string, kernel: KernelFiles): Promise<void> {
  for (const folder of ["bin", "mods", "proc", "sys", "dev", "lower", "upper", "new"])
    mkdirSync(join(root, folder), { recursive: true });
  await copyFile("/bin/busybox", join(root, "bin/busybox"));
  const modules = kernel.early.map((path) => join("/mods", basename(path)));
  await Promise.all(kernel.early.map((path) => copyFile(path, join(root, "mods", basename(path)))));
  writeFileSync(join(root, "init"), initScript(kernel, modules), { mode: 0o755 });
  writeFileSync(join(root, "second"), secondScript(), { mode: 0o755 });
  const cpio = spawn("sh", ["-c", "find . | cpio --quiet -o -H newc"], {
    cwd: root,
    stdio: ["ignore", "pipe", "inherit"],
  });
  await pipeline(cpio.stdout, createWriteStream(to));
}

/** Of the initial file system: finds the files of the machine outside and goes on there. */
function initScript({ version, modules }: KernelFiles, early: readonly string[]): string {
  const mount = (tag: string, at: string, options: string): string =>
    `mount -t 9p -o trans=virtio,version=9p2000.L,msize=512000,${options} ${tag} ${at}`;
  return `#!/bin/busybox sh
export PATH=/bin
for name in $(/bin/busybox --list); do /bin/busybox ln -s busybox /bin/$name 2>/bin/null; done
set -e
mount -t proc proc /proc
mount -t sysfs sys /sys
mount -t devtmpfs dev /dev
${early.map((path) => `insmod ${path}`).join("\n")}
${mount("root", "/lower", "cache=loose,ro")}
mount -t tmpfs tmpfs /upper
mkdir /upper/up /upper/work
mount -t overlay -o lowerdir=/lower,upperdir=/upper/up,workdir=/upper/work overlay /new
for name in proc sys dev; do mount --move /$name /new/$name; done
mount -t tmpfs tmpfs /new/run
mkdir -p /new/dev/pts /new/dev/shm ${SHARE.replace("/run", "/new/run")} /new/lib/modules/${version}
mount -t devpts devpts /new/dev/pts
mount -t tmpfs -o mode=1777 tmpfs /new/dev/shm
mount --bind "/lower${modules}" /new/lib/modules/${version}
${mount("share", SHARE.replace("/run", "/new/run"), "cache=none")}
cp /second ${SHARE.replace("/run", "/new/run")}-init
exec switch_root /new ${SHARE}-init
`;
}

/** The machine's first process once its files are there. Powers off with what the script came to. */
function secondScript(): string {
  return `#!/bin/bash
export PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin HOME=/root LC_ALL=C
ln -s /proc/self/fd /dev/fd
ln -s fd/0 /dev/stdin
ln -s fd/1 /dev/stdout
ln -s fd/2 /dev/stderr
ln -sfn /run /var/run
ip link set lo up
modprobe tun
exec </dev/null >/dev/hvc0 2>&1
stty -onlcr <&1
bash ${SHARE}/script
echo $? >${SHARE}/code
sync
echo o >/proc/sysrq-trigger
sleep 60
`;
}
