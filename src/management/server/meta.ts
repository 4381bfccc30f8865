/** What peers say of themselves, checked at the border. Source: protocol/management.md, section 3.2. */
import { clone, equals, toBinary } from "@bufbuild/protobuf";
import { type PeerSystemMeta, PeerSystemMetaSchema } from "#gen/management_pb.ts";

/** Most bytes of meta that are stored for a peer. */
export const META_MAX_BYTES = 256 * 1024;
/** Most bytes of an SSH public key; every other peer gets it. */
export const SSH_KEY_MAX_BYTES = 8 * 1024;

/** The meta to store: `incoming`, where it does not mean "as before". The result is `stored` itself when nothing changed. */
export function mergeMeta(stored: PeerSystemMeta, incoming: PeerSystemMeta | undefined): PeerSystemMeta {
  if (!incoming || isEmptyMeta(incoming)) return stored;
  const merged = normalizeMeta(incoming);
  if (merged.uiVersion === "") merged.uiVersion = stored.uiVersion;
  return equals(PeerSystemMetaSchema, merged, stored) ? stored : merged;
}

/** As new agents send it; a copy. */
export function normalizeMeta(meta: PeerSystemMeta): PeerSystemMeta {
  const copy = clone(PeerSystemMetaSchema, meta);
  if (copy.OSVersion === "") copy.OSVersion = copy.core;
  return copy;
}

/** Why this meta is not taken, in words; undefined when it is. */
export function metaProblem(meta: PeerSystemMeta | undefined): string | undefined {
  if (!meta) return undefined;
  const bytes = toBinary(PeerSystemMetaSchema, meta).length;
  return bytes > META_MAX_BYTES ? `meta of ${bytes} bytes, the limit is ${META_MAX_BYTES}` : undefined;
}

/** No text, no address, no file: an agent that says nothing of itself. */
function isEmptyMeta(meta: PeerSystemMeta): boolean {
  return (
    meta.networkAddresses.length === 0 &&
    meta.files.length === 0 &&
    Object.values(meta).every((value) => typeof value !== "string" || value === "" || value === meta.$typeName)
  );
}
