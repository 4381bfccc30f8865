import { readFileSync, rmSync } from "node:fs";
import { join } from "node:path";
import { z } from "zod";
import { writeFileAtomically } from "#base/atomic-file.ts";
import { messageOf } from "#base/errors.ts";
import { DnsError } from "./dns-error.ts";

/** File in the state directory; there exactly while the host's resolver file is, or may be, ours. */
export const RESOLVER_RECORD_FILE = "resolver.json";

/** What a path held: enough to make it again. */
const OriginalSchema = z.discriminatedUnion("kind", [
  z.object({ kind: z.literal("absent") }),
  z.object({ kind: z.literal("symlink"), target: z.string(), uid: z.number(), gid: z.number() }),
  z.object({
    kind: z.literal("file"),
    contentBase64: z.base64(),
    mode: z.number(),
    uid: z.number(),
    gid: z.number(),
    /** Milliseconds since the epoch. */
    modifiedAt: z.number(),
  }),
]);

const RecordSchema = z.object({
  version: z.literal(1),
  path: z.string().startsWith("/"),
  original: OriginalSchema,
  /** First line of what we wrote, or were about to write: a file that begins otherwise is somebody else's by now. */
  mark: z.string().min(1),
});

export type OriginalFile = z.infer<typeof OriginalSchema>;
export type ResolverRecord = z.infer<typeof RecordSchema>;

/** Remembers, across a crash, how the host's resolver file was. */
export class ResolverRecordStore {
  readonly path: string;

  constructor(stateDir: string) {
    this.path = join(stateDir, RESOLVER_RECORD_FILE);
  }

  /** Undefined: nothing to restore. Throws DnsError `resolver-record` for a file that is none of ours. */
  read(): ResolverRecord | undefined {
    let text: string;
    try {
      text = readFileSync(this.path, "utf8");
    } catch (cause) {
      if ((cause as NodeJS.ErrnoException).code === "ENOENT") return undefined;
      throw new DnsError("resolver-record", `cannot read ${this.path}: ${messageOf(cause)}`, { cause });
    }
    try {
      return RecordSchema.parse(JSON.parse(text));
    } catch (cause) {
      throw new DnsError("resolver-record", `${this.path} is not readable: ${messageOf(cause)}`, { cause });
    }
  }

  /** Safe on the disk when it returns. Throws DnsError `resolver-record`. */
  write(record: ResolverRecord): void {
    try {
      writeFileAtomically(this.path, `${JSON.stringify(record, undefined, 2)}\n`);
    } catch (cause) {
      throw new DnsError("resolver-record", `cannot write ${this.path}: ${messageOf(cause)}`, { cause });
    }
  }

  remove(): void {
    rmSync(this.path, { force: true });
  }
}
