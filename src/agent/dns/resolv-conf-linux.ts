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
import { dirname } from "node:path";
import { messageOf } from "#base/errors.ts";
import { type Endpoint, parseIp } from "#base/ip.ts";
import { NOTHING_RESTORED, type Restoration } from "../host-record.ts";
import { DnsError } from "./dns-error.ts";
import type { HostNames, HostResolver } from "./host-resolver.ts";
import type { OriginalFile, ResolverRecord, ResolverRecordStore } from "./resolver-record.ts";

export const RESOLV_CONF = "/etc/resolv.conf";

/** First words of every file that an agent wrote; the interface follows. */
const MARK = "# Written by Perch";
/** Servers and search domains that the C library takes (resolv.conf(5)). */
const SERVERS_MAX = 3;
const SEARCH_MAX = 32;
const SEARCH_MAX_BYTES = 256;
/** Ours comes before the others on purpose. */
const UNWANTED_OPTIONS: ReadonlySet<string> = new Set(["rotate"]);

/** What is read of a resolv.conf. */
export interface ResolvConf {
  readonly servers: readonly string[];
  readonly search: readonly string[];
  readonly options: readonly string[];
}

/** As the C library reads it: the last of `domain` and `search` counts, options add up. */
export function parseResolvConf(text: string): ResolvConf {
  const servers: string[] = [];
  const options: string[] = [];
  let search: readonly string[] = [];
  for (const line of text.split("\n")) {
    const [keyword, ...words] = line
      .replace(/[#;].*$/, "")
      .trim()
      .split(/\s+/);
    if (keyword === "nameserver" && words[0]) servers.push(words[0]);
    else if (keyword === "search") search = words;
    else if (keyword === "domain") search = words.slice(0, 1);
    else if (keyword === "options") options.push(...words);
  }
  return { servers, search, options };
}

/** The file while the tunnel is up: this agent first, then those that were there before, in case it dies. */
export function formatResolvConf(names: HostNames, before: ResolvConf): string {
  const own = names.server.address as string;
  // With servers of the network for everything, the host's own must not be asked at all.
  const others = names.everything ? [] : before.servers.filter((server) => server !== own);
  const search: string[] = [];
  let bytes = 0;
  for (const domain of [...names.search, ...before.search]) {
    bytes += domain.length + 1;
    if (search.length < SEARCH_MAX && bytes <= SEARCH_MAX_BYTES && !search.includes(domain)) search.push(domain);
  }
  const options = before.options.filter((option) => !UNWANTED_OPTIONS.has(option));
  return [
    `${MARK} (${names.interfaceName}) while its tunnel is up; \`perch down\` puts the file back that was here.`,
    "# After a crash: perch state clean",
    ...[own, ...others].slice(0, SERVERS_MAX).map((server) => `nameserver ${server}`),
    ...(search.length > 0 ? [`search ${search.join(" ")}`] : []),
    ...(options.length > 0 ? [`options ${options.join(" ")}`] : []),
    "",
  ].join("\n");
}

/**
 * The resolver file of hosts without systemd-resolved. All questions come to the agent then; what is not its own it passes on
 * to the servers that the file named before.
 *
 *   the record names the original and what will be written --> the file is replaced --> ... --> the original is back --> no record
 *
 * A crash anywhere leaves a record from which `restoreResolvConf` knows what to do, and a whole file, old or new.
 */
export class ResolvConfFile implements HostResolver {
  readonly kind = "resolv.conf";
  readonly anyPort = false;
  readonly #path: string;
  readonly #store: ResolverRecordStore;
  #before: ResolvConf;

  constructor(store: ResolverRecordStore, path: string = RESOLV_CONF) {
    this.#store = store;
    this.#path = path;
    this.#before = parseResolvConf(this.#originalText());
  }

  fallback(): readonly Endpoint[] {
    return this.#before.servers.flatMap((text) => {
      try {
        return [{ address: parseIp(text), port: 53 }];
      } catch {
        // With a zone, or no address at all.
        return [];
      }
    });
  }

  async apply(names: HostNames): Promise<void> {
    try {
      this.#apply(names);
    } catch (cause) {
      if (cause instanceof DnsError) throw cause;
      throw new DnsError("resolver", `cannot write ${this.#path}: ${messageOf(cause)}`, { cause });
    }
  }

  #apply(names: HostNames): void {
    const record = this.#store.read();
    const current = readOriginal(this.#path);
    const isKnown = record?.path === this.#path && isOurs(current, record);
    if (!isKnown && firstLine(current).startsWith(MARK)) {
      throw new DnsError("resolver", `${this.#path} was written by another Perch agent: ${firstLine(current)}`);
    }
    // Somebody else wrote the file since: theirs is what comes back in the end.
    const original = isKnown ? record.original : current;
    this.#before = parseResolvConf(textOf(original, this.#path));
    const text = formatResolvConf(names, this.#before);
    if (isKnown && contentOf(current).toString("utf8") === text) return;
    const mark = text.split("\n", 1)[0]!;
    if (!isKnown) this.#store.write({ version: 1, path: this.#path, original, mark });
    const mode = original.kind === "file" ? original.mode : 0o644;
    writeContent(this.#path, { content: Buffer.from(text), mark, mode: mode | 0o444, uid: 0, gid: 0 });
  }

  async restore(): Promise<readonly string[]> {
    const { problems } = restoreResolvConf(this.#store);
    return problems;
  }

  #originalText(): string {
    const record = this.#store.read();
    const current = readOriginal(this.#path);
    return textOf(record?.path === this.#path && isOurs(current, record) ? record.original : current, this.#path);
  }
}

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

function readOriginal(path: string): OriginalFile {
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
function writeContent(path: string, { content, mark, mode, uid, gid, modifiedAt }: Content): void {
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

/** The text that programs read there; a link is followed. */
function textOf(original: OriginalFile, path: string): string {
  if (original.kind === "file") return Buffer.from(original.contentBase64, "base64").toString("utf8");
  if (original.kind === "absent") return "";
  try {
    return readFileSync(new URL(original.target, `file://${path}`), "utf8");
  } catch {
    return "";
  }
}

/** Nobody else wrote the file since the record. */
function isOurs(current: OriginalFile, record: ResolverRecord): boolean {
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

function firstLine(current: OriginalFile): string {
  return contentOf(current).toString("utf8").split("\n", 1)[0]!;
}

function contentOf(file: OriginalFile): Buffer {
  return file.kind === "file" ? Buffer.from(file.contentBase64, "base64") : Buffer.alloc(0);
}
