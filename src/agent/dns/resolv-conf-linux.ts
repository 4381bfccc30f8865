import { readFileSync } from "node:fs";
import { isDeepStrictEqual } from "node:util";
import { messageOf } from "#base/errors.ts";
import { type Endpoint, parseIp } from "#base/ip.ts";
import type { Logger } from "#base/log.ts";
import type { Clock, Millis, Timer } from "#base/time.ts";
import { DnsError } from "./dns-error.ts";
import { type FileWatch, type OpenFileWatch, watchFiles } from "./file-watch.ts";
import type { HostNames, HostResolver } from "./host-resolver.ts";
import {
  contentOf,
  firstLine,
  isOurs,
  readOriginal,
  restoreResolvConf,
  targetOf,
  textOf,
  writeContent,
} from "./resolver-file-linux.ts";
import type { ResolverRecordStore } from "./resolver-record.ts";
import { REWRITE_POLICY, RewriteGuard, type RewritePolicy } from "./rewrite-guard.ts";

export const RESOLV_CONF = "/etc/resolv.conf";

/** First words of every file that an agent wrote; the interface follows. */
const MARK = "# Written by Perch";
/** Servers and search domains that the C library takes (resolv.conf(5)). */
const SERVERS_MAX = 3;
const SEARCH_MAX = 32;
const SEARCH_MAX_BYTES = 256;
/** A writer that never ends is not waited for longer. */
const SETTLES_MAX = 10;
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

export interface ResolvConfDeps {
  readonly clock: Clock;
  readonly log: Logger;
  readonly store: ResolverRecordStore;
  /** `problem` or `fallback()` is another. */
  readonly changed: () => void;
  readonly watch?: OpenFileWatch;
}

export interface ResolvConfOptions {
  readonly path?: string;
  readonly policy?: RewritePolicy;
}

/**
 * The resolver file of hosts without systemd-resolved. All questions come to the agent then; what is not its own it passes on
 * to the servers that the file named before.
 *
 *   the record names the original and what will be written --> the file is replaced --> ... --> the original is back --> no record
 *
 * A crash anywhere leaves a record from which `restoreResolvConf` knows what to do, and a whole file, old or new.
 *
 * While ours is there the file is watched. What another program (a DHCP client, a network manager) writes in its place becomes the
 * original, and ours is put in again; a program that does not leave it so has its way (rewrite-guard.ts).
 *
 *   ours --rewritten--> theirs, which is the original now --pause--> ours
 *                         '--too often--> theirs, and `problem` says so --truce--> ours
 */
export class ResolvConfFile implements HostResolver {
  readonly kind = "resolv.conf";
  readonly anyPort = false;
  readonly #deps: ResolvConfDeps;
  readonly #path: string;
  readonly #policy: RewritePolicy;
  #before: ResolvConf;
  /** Where the original leads when it is a link. */
  #target: string | undefined;
  #problem: string | undefined;
  /** What the file is to say; undefined while it is not ours. */
  #names: HostNames | undefined;
  /** Of ours, as it was written last. */
  #written = "";
  #guard: RewriteGuard;
  #watch: FileWatch | undefined;
  /** Somebody may have written: looked at when this fires. */
  #look: Timer | undefined;
  /** When the first of what is not looked at yet came. */
  #stirredAt: Millis | undefined;
  /** Somebody has written: ours is put in again when this fires. */
  #put: Timer | undefined;

  constructor(deps: ResolvConfDeps, options: ResolvConfOptions = {}) {
    this.#deps = deps;
    this.#path = options.path ?? RESOLV_CONF;
    this.#policy = options.policy ?? REWRITE_POLICY;
    this.#guard = new RewriteGuard(this.#policy);
    this.#before = parseResolvConf(this.#originalText());
  }

  get problem(): string | undefined {
    return this.#problem;
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
    this.#rest();
    this.#problem = undefined;
    this.#guard = new RewriteGuard(this.#policy);
    this.#takePlace(names);
    this.#names = names;
    this.#follow();
  }

  async restore(): Promise<readonly string[]> {
    this.#rest();
    this.#watch?.close();
    this.#watch = undefined;
    this.#names = undefined;
    this.#problem = undefined;
    const { problems } = restoreResolvConf(this.#deps.store);
    return problems;
  }

  /** Throws DnsError `resolver`, and what the record throws. */
  #takePlace(names: HostNames): void {
    try {
      this.#write(names);
    } catch (cause) {
      if (cause instanceof DnsError) throw cause;
      throw new DnsError("resolver", `cannot write ${this.#path}: ${messageOf(cause)}`, { cause });
    }
    this.#guard.notePut(this.#deps.clock.now());
  }

  #write(names: HostNames): void {
    const { store } = this.#deps;
    const record = store.read();
    const current = readOriginal(this.#path);
    const isKnown = record?.path === this.#path && isOurs(current, record);
    if (!isKnown && firstLine(current).startsWith(MARK)) {
      throw new DnsError("resolver", `${this.#path} was written by another Perch agent: ${firstLine(current)}`);
    }
    // Somebody else wrote the file since: theirs is what comes back in the end.
    const original = isKnown ? record.original : current;
    this.#before = parseResolvConf(textOf(original, this.#path));
    this.#target = targetOf(original, this.#path);
    const text = formatResolvConf(names, this.#before);
    this.#written = text;
    if (isKnown && contentOf(current).toString("utf8") === text) return;
    const mark = text.split("\n", 1)[0]!;
    if (!isKnown) store.write({ version: 1, path: this.#path, original, mark });
    const mode = original.kind === "file" ? original.mode : 0o644;
    writeContent(this.#path, { content: Buffer.from(text), mark, mode: mode | 0o444, uid: 0, gid: 0 });
  }

  /** Watches the file, and what a link in its place led to: that may change behind it. */
  #follow(): void {
    const { watch = watchFiles, log } = this.#deps;
    this.#watch ??= watch(
      () => this.#lookSoon(),
      (error) => log.warn("it is not noticed when another program writes the resolver file", { err: messageOf(error) }),
    );
    this.#watch.follow(this.#target === undefined ? [this.#path] : [this.#path, this.#target]);
    // Whatever came before the watch did.
    if (this.#isRewritten() || this.#isTargetOther()) this.#lookSoon();
  }

  /** When nothing happened for a while, or something for long. */
  #lookSoon(): void {
    if (!this.#names) return;
    const { clock } = this.#deps;
    const { settle } = this.#policy;
    const now = clock.now();
    this.#look?.cancel();
    this.#stirredAt ??= now;
    const delay = Math.min(settle, this.#stirredAt + SETTLES_MAX * settle - now);
    this.#look = clock.after(delay, () => this.#lookNow());
  }

  #lookNow(): void {
    this.#look = undefined;
    this.#stirredAt = undefined;
    if (!this.#names || this.#put) return;
    if (this.#isRewritten()) return this.#answer();
    if (!this.#isTargetOther()) return;
    const { clock } = this.#deps;
    const now = clock.now();
    this.#put = clock.after(this.#guard.nextPut(now) - now, () => this.#putAgain());
  }

  /** Ours is put in again, now or later. */
  #answer(): void {
    const { clock, log, changed } = this.#deps;
    const now = clock.now();
    const { at, isFight } = this.#guard.noteRewritten(now);
    if (isFight) {
      const { count } = this.#guard;
      const { window, truce } = this.#policy;
      this.#problem = `another program rewrote ${this.#path} ${count} times within ${window / 1000} s: it is left alone for ${truce / 60_000} min`;
      log.warn("another program fights for the resolver file and has it for now", { path: this.#path, count });
      changed();
    }
    const grace = textAt(this.#path).trim() === "" ? this.#policy.emptyGrace : 0;
    this.#put = clock.after(Math.max(at - now, grace), () => this.#putAgain());
  }

  #putAgain(): void {
    this.#put = undefined;
    if (!this.#names) return;
    const { clock, log, changed } = this.#deps;
    try {
      this.#takePlace(this.#names);
      this.#problem = undefined;
      const { servers } = this.#before;
      log.info("another program wrote the resolver file: ours is in its place again", { path: this.#path, servers });
    } catch (error) {
      this.#problem = messageOf(error);
      log.warn("the resolver file cannot be taken back", { err: this.#problem });
      this.#put = clock.after(this.#policy.truce, () => this.#putAgain());
    }
    this.#follow();
    changed();
  }

  #isRewritten(): boolean {
    try {
      const current = readOriginal(this.#path);
      return current.kind !== "file" || contentOf(current).toString("utf8") !== this.#written;
    } catch {
      return true;
    }
  }

  /** Ours is in the place of a link, and what the link leads to says something else by now. */
  #isTargetOther(): boolean {
    return this.#target !== undefined && !isDeepStrictEqual(parseResolvConf(textAt(this.#target)), this.#before);
  }

  #rest(): void {
    this.#look?.cancel();
    this.#put?.cancel();
    this.#look = undefined;
    this.#put = undefined;
    this.#stirredAt = undefined;
  }

  #originalText(): string {
    const record = this.#deps.store.read();
    const current = readOriginal(this.#path);
    return textOf(record?.path === this.#path && isOurs(current, record) ? record.original : current, this.#path);
  }
}

/** Empty when it cannot be read. */
function textAt(path: string): string {
  try {
    return readFileSync(path, "utf8");
  } catch {
    return "";
  }
}
