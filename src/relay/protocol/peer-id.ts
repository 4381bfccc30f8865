import { hash } from "node:crypto";
import type { PublicKey } from "#base/keys.ts";

/** Bytes of a peer ID: `sha-` and a SHA-256 digest. */
export const PEER_ID_BYTES = 36;

const PREFIX = "sha-";
const PREFIX_BYTES = Buffer.from(PREFIX, "latin1");

/** Names a peer on a relay: the 36 bytes as latin1 text, so that it can be a map key. Servers treat it as opaque. */
export type PeerId = string & { readonly __brand: "PeerId" };

export const PeerId = {
  /** SHA-256 of the base64 text of the key, not of its bytes (relay.md, section 4). */
  of(key: PublicKey): PeerId {
    return PeerId.ofText(key);
  },
  /** Of any text; only the health probe uses another than a key. */
  ofText(text: string): PeerId {
    // Through bytes: a sum of texts would keep its two halves beside itself, once per peer.
    return Buffer.concat([PREFIX_BYTES, hash("sha256", text, "buffer")]).toString("latin1") as PeerId;
  },
  /** Reads 36 bytes at `offset`; the caller has checked that they are there. */
  read(bytes: Uint8Array, offset: number): PeerId {
    return Buffer.from(bytes.buffer, bytes.byteOffset + offset, PEER_ID_BYTES).toString("latin1") as PeerId;
  },
  toBytes(id: PeerId): Buffer {
    return Buffer.from(id, "latin1");
  },
  /** For logs: `sha-` and base64 of the digest. */
  format(id: PeerId): string {
    return PREFIX + Buffer.from(id.slice(PREFIX.length), "latin1").toString("base64");
  },
};

/** The pretended peer with which stock relays probe themselves; its authentication is meant to fail (relay.md, 10.3). */
export const HEALTH_PROBE_ID: PeerId = PeerId.ofText("healthcheck-agent");
