import { PublicKey } from "#base/keys.ts";
import { hash, mac } from "../../blake2s.ts";
import { LABEL_MAC1 } from "../../constants.ts";
import { INITIATION, INITIATION_BYTES, MessageType } from "../../messages.ts";

const LABEL = Buffer.from(LABEL_MAC1);

/** For tests: an initiation of nobody for `responder`; all of it but type and mac1 is noise. */
export function fakeInitiation(responder: PublicKey): Uint8Array<ArrayBuffer> {
  const bytes = crypto.getRandomValues(new Uint8Array(INITIATION_BYTES));
  bytes.set([MessageType.initiation, 0, 0, 0]);
  bytes.set(mac(hash(LABEL, PublicKey.toBytes(responder)), bytes.subarray(0, INITIATION.mac1)), INITIATION.mac1);
  bytes.fill(0, INITIATION.mac2);
  return bytes;
}
