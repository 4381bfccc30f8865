import {
  chmodSync,
  chownSync,
  closeSync,
  constants,
  fstatSync,
  fsyncSync,
  ftruncateSync,
  lchownSync,
  lstatSync,
  openSync,
  readFileSync,
  readlinkSync,
  renameSync,
  rmSync,
  symlinkSync,
  utimesSync,
  writeSync,
} from "node:fs";
import { dirname, resolve } from "node:path";
import { messageOf } from "#base/errors.ts";
import { NOTHING_RESTORED, type Restoration } from "../host-record.ts";
import { DnsError } from "./dns-error.ts";
import type { OriginalFile, ResolverRecord, ResolverRecordStore } from "./resolver-record.ts";

/**
 * Puts the resolver file back as the record says, byte for byte, with mode, owner and time, link for link; a file that somebody
 * else wrote since stays. Without a record there is nothing to do. Idempotent; never throws.
 */
export function restoreResolvConf(store: ResolverRecordStore): Restoration {
  let path = "";
  try {
    const record = store.read();
    if (!record) return NOTHING_RESTORED;
    ({ path } = record);
    const { original } = record;
    const current = readOriginal(path);
    let done = `${path} was changed by another program since, and stays`;
    if (isOurs(current, record)) {
      putBack(record);
      done = `${path} is back as it was before`;
    } else if (sameFile(current, original)) {
      if (original.kind === "file") setTime(path, original.modifiedAt);
      done = `${path} is as it was`;
    }
    rmSync(draftOf(path), { force: true });
    syncDirectory(dirname(path));
    store.remove();
    return { done: [done], problems: [] };
  } catch (error) {
    return {
      done: [],
      problems: [error instanceof DnsError ? error.message : `cannot restore ${path}: ${messageOf(error)}`],
    };
  }
}

/** What the path holds now. Throws DnsError `resolver` for what is neither file nor link, and what the file system throws. */
export function readOriginal(path: string): OriginalFile {
  try {
    const stat = lstatSync(path);
    const { uid, gid } = stat;
    if (stat.isSymbolicLink()) return { kind: "symlink", target: readlinkSync(path), uid, gid };
    if (!stat.isFile()) throw new DnsError("resolver", `${path} is neither a file nor a link`);
    const contentBase64 = readFileSync(path).toString("base64");
    return { kind: "file", contentBase64, mode: stat.mode & 0o7777, uid, gid, modifiedAt: stat.mtimeMs };
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code === "ENOENT") return { kind: "absent" };
    throw error;
  }
}

function putBack({ path, original, mark }: ResolverRecord): void {
  switch (original.kind) {
    case "absent":
      return rmSync(path, { force: true });
    case "symlink": {
      const draft = draftOf(path);
      rmSync(draft, { force: true });
      symlinkSync(original.target, draft);
      lchownSync(draft, original.uid, original.gid);
      return renameSync(draft, path);
    }
    case "file":
      return writeContent(path, { ...original, content: contentOf(original), mark });
  }
}

interface Content {
  readonly content: Uint8Array;
  /** First line of ours. */
  readonly mark: string;
  readonly mode: number;
  readonly uid: number;
  readonly gid: number;
  /** Milliseconds since the epoch; default now. */
  readonly modifiedAt?: number;
}

/** Where the new file is made; there only while a record names the file. */
function draftOf(path: string): string {
  return `${path}.perch`;
}

/** What was renamed there stays so, whatever happens to the machine. */
function syncDirectory(path: string): void {
  const directory = openSync(path, "r");
  try {
    fsyncSync(directory);
  } finally {
    closeSync(directory);
  }
}

/** In one step where the file can be replaced; in place where it is a mount, as in containers. */
export function writeContent(path: string, { content, mark, mode, uid, gid, modifiedAt }: Content): void {
  const draft = draftOf(path);
  try {
    rmSync(draft, { force: true });
    const file = openSync(draft, "wx", 0o600);
    try {
      writeAll(file, content, 0);
      fsyncSync(file);
    } finally {
      closeSync(file);
    }
    chmodSync(draft, mode);
    if (process.getuid?.() === 0) chownSync(draft, uid, gid);
    if (modifiedAt !== undefined) setTime(draft, modifiedAt);
    renameSync(draft, path);
  } catch (error) {
    rmSync(draft, { force: true });
    // EBUSY: a mount point. EROFS, EACCES: a directory that cannot be written, with a file that may be.
    if (!["EBUSY", "EXDEV", "EROFS", "EACCES"].includes((error as NodeJS.ErrnoException).code ?? "")) throw error;
    overwrite(path, content, mark);
    if (modifiedAt !== undefined) setTime(path, modifiedAt);
  }
}

function setTime(path: string, modifiedAt: number): void {
  utimesSync(path, modifiedAt / 1000, modifiedAt / 1000);
}

/**
 * In place a file cannot change in one step. So that it is known as ours, or as half ours, at any moment, our first line is the
 * first thing that comes and the last that goes:
 *
 *   theirs --head--> our head, their rest --rest, length--> ours --rest, length--> our head, their rest --head--> theirs
 */
function overwrite(path: string, content: Uint8Array, mark: string): void {
  const file = openSync(path, constants.O_RDWR | constants.O_NOFOLLOW);
  try {
    const head = Buffer.from(`${mark}\n`);
    const isOurs = head.equals(content.subarray(0, head.length));
    if (isOurs) writeAll(file, head, 0);
    writeAll(file, content.subarray(head.length), head.length);
    const length = Math.max(content.length, head.length);
    if (fstatSync(file).size > length) ftruncateSync(file, length);
    if (!isOurs) {
      writeAll(file, paddedHead(content, head.length), 0);
      ftruncateSync(file, content.length);
    }
    fsyncSync(file);
  } finally {
    closeSync(file);
  }
}

/** The beginning of a file in `length` bytes: newlines stand in for what a short one lacks. */
function paddedHead(content: Uint8Array, length: number): Buffer {
  return Buffer.concat([content.subarray(0, length), Buffer.alloc(Math.max(0, length - content.length), "\n")]);
}

function writeAll(file: number, content: Uint8Array, position: number): void {
  for (let at = 0; at < content.length; ) at += writeSync(file, content, at, content.length - at, position + at);
}

/** Where a link leads; undefined for anything else. */
export function targetOf(original: OriginalFile | undefined, path: string): string | undefined {
  return original?.kind === "symlink" ? resolve(dirname(path), original.target) : undefined;
}

/** The text that programs read there; a link is followed. */
export function textOf(original: OriginalFile, path: string): string {
  if (original.kind === "file") return Buffer.from(original.contentBase64, "base64").toString("utf8");
  if (original.kind === "absent") return "";
  try {
    return readFileSync(targetOf(original, path)!, "utf8");
  } catch {
    return "";
  }
}

/** Nobody else wrote the file since the record. */
export function isOurs(current: OriginalFile, record: ResolverRecord): boolean {
  return firstLine(current) === record.mark || isTorn(current, record);
}

/** A crash came in the midst of `overwrite`: each byte of the first line is ours or theirs, and the rest is theirs. */
function isTorn(current: OriginalFile, { original, mark }: ResolverRecord): boolean {
  const [now, then, head] = [contentOf(current), contentOf(original), Buffer.from(`${mark}\n`)];
  if (current.kind !== "file" || original.kind !== "file" || now.length < then.length || now.equals(then)) return false;
  const padded = paddedHead(then, head.length);
  return (
    now.subarray(0, head.length).every((byte, i) => byte === head[i] || byte === padded[i]) &&
    now.subarray(head.length).equals(then.subarray(head.length))
  );
}

function sameFile(a: OriginalFile, b: OriginalFile): boolean {
  if (a.kind === "file" && b.kind === "file") return a.contentBase64 === b.contentBase64;
  if (a.kind === "symlink" && b.kind === "symlink") return a.target === b.target;
  return a.kind === "absent" && b.kind === "absent";
}

/** Of a file; empty for anything else. */
export function firstLine(current: OriginalFile): string {
  return contentOf(current).toString("utf8").split("\n", 1)[0]!;
}

/** Of a file; empty for anything else. */
export function contentOf(file: OriginalFile): Buffer {
  return file.kind === "file" ? Buffer.from(file.contentBase64, "base64") : Buffer.alloc(0);
}
