import { PublicKey } from "#base/keys.ts";
import type { Millis } from "#base/time.ts";
import { CookieChecker } from "../cookie.ts";
import { acceptInitiation, readInitiation } from "../handshake.ts";
import { type LocalIdentity, RemoteIdentity } from "../identity.ts";
import { Quota } from "../quota.ts";
import { isLaterTai64n } from "../tai64n.ts";

/** Each check costs a good half of a millisecond: so many in so long, further ones are not made. */
const CHECKS = 20;
const CHECKS_PER: Millis = 100;

export type InitiatorVerdict =
  | { readonly kind: "peer"; readonly key: PublicKey }
  /** Not for us, forged, of nobody known, or seen before: the device will not take it either. */
  | { readonly kind: "refused" }
  /** Too many at the moment. */
  | { readonly kind: "unchecked" };

/**
 * Says who made an initiation that the device answers by itself, proven by our private key and the order of its timestamps:
 * naming a key is free, and a message that was seen before must not wake anybody.
 */
export class InitiatorCheck {
  readonly #local: LocalIdentity;
  readonly #mac1: CookieChecker;
  readonly #quota = new Quota(CHECKS, CHECKS_PER);
  readonly #timestamps = new Map<PublicKey, Uint8Array>();

  constructor(local: LocalIdentity) {
    this.#local = local;
    this.#mac1 = new CookieChecker(local);
  }

  /** Whether the sender of an initiation or a response knows whom it writes to; cheap. */
  isForUs(message: Uint8Array): boolean {
    return this.#mac1.isMac1Valid(message);
  }

  /** `isKnown`: the peers that the device has. The message has the size of an initiation. */
  check(message: Uint8Array, isKnown: (key: PublicKey) => boolean, now: Millis): InitiatorVerdict {
    if (!this.isForUs(message)) return { kind: "refused" };
    if (!this.#quota.take(now)) return { kind: "unchecked" };
    const claim = readInitiation(this.#local, message);
    if (!claim) return { kind: "refused" };
    const key = PublicKey.fromBytes(claim.staticBytes);
    const remote = isKnown(key) ? RemoteIdentity.create(this.#local, claim.staticBytes) : undefined;
    if (!remote) {
      claim.transcript.wipe();
      return { kind: "refused" };
    }
    const received = acceptInitiation(claim, remote);
    remote.wipe();
    received?.transcript.wipe();
    if (!received) return { kind: "refused" };
    const last = this.#timestamps.get(key);
    if (last && !isLaterTai64n(received.timestamp, last)) return { kind: "refused" };
    this.#timestamps.set(key, received.timestamp.slice());
    return { kind: "peer", key };
  }

  /** The peer is gone: the device forgets its timestamps as well. */
  forget(key: PublicKey): void {
    this.#timestamps.delete(key);
  }
}
