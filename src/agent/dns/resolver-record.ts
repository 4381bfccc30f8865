import { join } from "node:path";
import { z } from "zod";
import { HostRecord } from "../host-record.ts";
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

/** Remembers, across a crash, how the host's resolver file was. Its errors are DnsError `resolver-record`. */
export class ResolverRecordStore extends HostRecord<ResolverRecord> {
  constructor(stateDir: string) {
    super(
      join(stateDir, RESOLVER_RECORD_FILE),
      RecordSchema,
      (message, cause) => new DnsError("resolver-record", message, { cause }),
    );
  }
}
