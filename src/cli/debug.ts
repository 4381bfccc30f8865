import { constants, type PathLike } from "node:fs";
import { type FileHandle, open } from "node:fs/promises";
import { Command, InvalidArgumentError } from "commander";
import { DaemonError } from "#agent/daemon/daemon-error.ts";
import { parseDuration } from "#agent/daemon/settings.ts";
import { messageOf } from "#base/errors.ts";
import type { CaptureSummary } from "#gen/daemon_pb.ts";
import { type DaemonOptions, withDaemon, withDaemonOption } from "./daemon-connection.ts";
import { Interrupted, UsageError } from "./exit-codes.ts";
import { formatBytes, say } from "./terminal.ts";

/** A forgotten capture does not fill the disk. */
const DEFAULT_MAX_MEBIBYTES = 64;
const MEBIBYTE = 1 << 20;
const SNAP_LENGTH_MAX = 65_575;

interface CaptureFlags extends DaemonOptions {
  readonly peer?: string;
  readonly snaplen?: number;
  readonly count?: number;
  readonly maxSize: number;
  readonly duration?: number;
  readonly write: string;
}

export function debugCommand(): Command {
  return new Command("debug").description("Looks into a running agent.").addCommand(captureCommand());
}

function captureCommand(): Command {
  return withDaemonOption(new Command("capture"))
    .summary("write the tunnel's packets to a file")
    .description(
      "Writes the packets inside the tunnel, unencrypted, to a pcapng file (mode 0600) for tcpdump or Wireshark, until a bound is reached or Ctrl-C. Packets sent are written as the kernel handed them over: up to 64 KiB of one flow in one, checksum not finished. A comment marks those that wait for a session and those that the access rules dropped. A second capture ends the first. With --device kernel or wireguard-go, tcpdump on the interface shows the packets instead.",
    )
    .requiredOption("-w, --write <FILE>", "the file, replaced when it exists; - writes to stdout")
    .option("--peer <PEER>", "only this peer's packets: its name, overlay address or public key")
    .option("--snaplen <N>", "bytes kept of each packet (default: all)", wholeNumber(SNAP_LENGTH_MAX))
    .option("--count <N>", "end after so many packets", wholeNumber(Number.MAX_SAFE_INTEGER))
    .option("--max-size <MIB>", "end before the file is larger", wholeNumber(1 << 20), DEFAULT_MAX_MEBIBYTES)
    .option("--duration <TIME>", "end after so long: 30s, 5m", (text) => parseDuration(text, "--duration"))
    .addHelpText(
      "after",
      [
        "",
        "Examples:",
        "  perch debug capture -w /tmp/tunnel.pcapng --duration 30s",
        "  perch debug capture --peer bob --count 100 -w - | tcpdump -n -r -",
        "",
        "The file holds what programs said to each other: treat it as they would.",
      ].join("\n"),
    )
    .action((options: CaptureFlags) => capture(options));
}

async function capture(options: CaptureFlags): Promise<void> {
  if (options.write === "-" && process.stdout.isTTY)
    throw new UsageError("a capture is no text: give a file with -w FILE, or pipe stdout into a program");
  const request = {
    peer: options.peer ?? "",
    snapLength: options.snaplen ?? 0,
    packets: options.count ?? 0,
    bytes: options.maxSize * MEBIBYTE,
    durationMs: options.duration ?? 0,
  };
  let bytes = 0;
  let summary: CaptureSummary | undefined;
  let file: FileHandle | undefined;
  try {
    await withDaemon(options, async (client, signal) => {
      for await (const { part } of client.capture(request, { signal })) {
        if (part.case === "summary") summary = part.value;
        if (part.case !== "file") continue;
        // Opened when the daemon agreed: a refused capture leaves an older file alone.
        file ??= options.write === "-" ? undefined : await openPrivate(options.write);
        if (file) await file.writeFile(part.value);
        else await writeOut(part.value);
        if (bytes === 0) say("capturing; Ctrl-C ends it");
        bytes += part.value.length;
      }
    });
  } catch (error) {
    // Ctrl-C is how most captures end.
    if (!(error instanceof Interrupted) || bytes === 0) throw error;
  } finally {
    await file?.close();
  }
  const size = formatBytes(bytes);
  if (!summary) return say(`${size} written until it was interrupted`);
  const { packets, dropped, end } = summary;
  const lost = dropped > 0 ? `, ${dropped} more came faster than they could be written` : "";
  say(`${packets} packets, ${size}${lost}${ENDS[end] === undefined ? "" : `; ended because ${ENDS[end]}`}`);
}

/** Ends that somebody did not ask for by a flag. */
const ENDS: Readonly<Record<string, string>> = {
  bytes: "the file reached --max-size",
  "peer-removed": "the peer left the network",
  replaced: "somebody else began a capture",
  "device-closed": "the tunnel went down",
};

/** The file is readable for its owner alone, whatever was there before; a symbolic link is not followed. */
async function openPrivate(path: PathLike): Promise<FileHandle> {
  try {
    const file = await open(path, constants.O_WRONLY | constants.O_CREAT | constants.O_NOFOLLOW, 0o600);
    await file.chmod(0o600);
    await file.truncate();
    return file;
  } catch (cause) {
    throw new DaemonError("daemon-path", `cannot write ${path}: ${messageOf(cause)}`, { cause });
  }
}

function writeOut(bytes: Uint8Array): Promise<void> {
  return new Promise((resolve, reject) => process.stdout.write(bytes, (error) => (error ? reject(error) : resolve())));
}

function wholeNumber(limit: number): (text: string) => number {
  return (text) => {
    const value = Number(text);
    if (!(Number.isInteger(value) && value >= 1 && value <= limit))
      throw new InvalidArgumentError(`a whole number from 1 to ${limit} is needed.`);
    return value;
  };
}
