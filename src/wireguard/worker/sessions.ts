import { libc } from "#net/libc.ts";
import type { Peer } from "./peers.ts";
import { ReplayWindow } from "./replay-window.ts";

const KEY_BYTES = 32;
const SESSION_KEY_BYTES = 2 * KEY_BYTES;
const KEYS_PER_CHUNK = 1024;
/** Sessions of a peer that three newer ones replaced and that still decrypt, until they expire. */
export const OLDER_MAX = 4;

/** One pair of transport keys (paper section 5.4.5). The keys lie in a KeyPool, so that OpenSSL can be given addresses. */
export class Session {
  readonly peer: Peer;
  readonly initiator: boolean;
  readonly localIndex: number;
  readonly remoteIndex: number;
  /** Device clock. */
  readonly createdAt: number;
  readonly sendKey: number;
  readonly receiveKey: number;
  readonly keyPlace: number;
  readonly window = new ReplayWindow();
  /** Counter of the next packet. */
  sendCounter = 0;
  /** Place in the order of installation. */
  installed = 0;
  /** The renewal on receiving happens once per session. */
  askedOnReceive = false;

  constructor(
    peer: Peer,
    options: { initiator: boolean; localIndex: number; remoteIndex: number; createdAt: number },
    keys: { place: number; address: number },
  ) {
    this.peer = peer;
    this.initiator = options.initiator;
    this.localIndex = options.localIndex;
    this.remoteIndex = options.remoteIndex;
    this.createdAt = options.createdAt;
    this.keyPlace = keys.place;
    this.sendKey = keys.address;
    this.receiveKey = keys.address + KEY_BYTES;
  }
}

/** Memory for session keys at fixed addresses, in chunks of 64 KiB; places are wiped when given back. */
class KeyPool {
  readonly #chunks: { bytes: Uint8Array; address: number }[] = [];
  readonly #free: number[] = [];

  /** `keys`: sending key, then receiving key. */
  take(bytes: Uint8Array, at: number): { place: number; address: number } {
    const place = this.#free.pop() ?? this.#grow();
    const chunk = this.#chunks[Math.floor(place / KEYS_PER_CHUNK)]!;
    const offset = (place % KEYS_PER_CHUNK) * SESSION_KEY_BYTES;
    for (let i = 0; i < SESSION_KEY_BYTES; i++) chunk.bytes[offset + i] = bytes[at + i]!;
    return { place, address: chunk.address + offset };
  }

  give(place: number): void {
    const chunk = this.#chunks[Math.floor(place / KEYS_PER_CHUNK)]!;
    const offset = (place % KEYS_PER_CHUNK) * SESSION_KEY_BYTES;
    chunk.bytes.fill(0, offset, offset + SESSION_KEY_BYTES);
    this.#free.push(place);
  }

  wipe(): void {
    for (const chunk of this.#chunks) chunk.bytes.fill(0);
  }

  #grow(): number {
    const bytes = new Uint8Array(new ArrayBuffer(KEYS_PER_CHUNK * SESSION_KEY_BYTES));
    const first = this.#chunks.length * KEYS_PER_CHUNK;
    this.#chunks.push({ bytes, address: libc().addressOf(bytes) });
    for (let i = KEYS_PER_CHUNK - 1; i > 0; i--) this.#free.push(first + i);
    return first;
  }
}

/**
 * All sessions of the device by local index, and their rotation within a peer:
 *
 *   initiator's session      previous = current, current = new; next stays
 *   responder's session      next = new; current keeps sending, previous stays
 *   first packet on next     previous = current, current = next; when current was installed after next (both sides began at
 *                            once), the one that both sides choose alike is current and the other previous
 *   peer put to sleep        previous = current: it decrypts what is under way, a wake begins with a new handshake
 *
 * Sessions before previous, OLDER_MAX at most, are kept as `older`. The paper's rotation drops more: those, the responder's
 * previous, and the initiator's current while there is a next. The peer may still be sending on those, and packets under way
 * would be lost: a link that comes back lets several handshakes through at once, ahead of what a relay held up.
 */
export class Sessions {
  readonly #byIndex = new Map<number, Session>();
  readonly #keys = new KeyPool();
  readonly #ended: (session: Session) => void;
  #last: Session | undefined;
  #installs = 0;

  /** `ended` is told of each session that is dropped, for whatever reason. */
  constructor(ended: (session: Session) => void) {
    this.#ended = ended;
  }

  get size(): number {
    return this.#byIndex.size;
  }

  /** The session whose packets carry this receiver index. */
  find(localIndex: number): Session | undefined {
    const last = this.#last;
    if (last !== undefined && last.localIndex === localIndex) return last;
    // As a signed integer the key is never a boxed number.
    const session = this.#byIndex.get(localIndex | 0);
    if (session !== undefined) this.#last = session;
    return session;
  }

  /** Installs a session; `keys` are 64 bytes at `at`: sending key, receiving key. */
  install(
    peer: Peer,
    options: { initiator: boolean; localIndex: number; remoteIndex: number; createdAt: number },
    keys: Uint8Array,
    at: number,
  ): Session {
    const session = new Session(peer, options, this.#keys.take(keys, at));
    const clash = this.#byIndex.get(session.localIndex | 0);
    if (clash) this.#remove(clash);
    this.#byIndex.set(session.localIndex | 0, session);
    session.installed = this.#installs++;
    const { current } = peer;
    if (!options.initiator) {
      if (peer.next) {
        // The peer may have begun to send with it, and its packets may have met a dead path: they come after this handshake.
        this.#keepOlder(peer, peer.next);
      }
      peer.next = session;
    } else if (
      current &&
      !current.initiator &&
      current.createdAt > session.createdAt &&
      rank(current) > rank(session)
    ) {
      // The peer's handshake began after ours and is confirmed already; both go on with the peer's.
      this.#displace(peer);
      peer.previous = session;
    } else {
      if (current) {
        this.#displace(peer);
        peer.previous = current;
      }
      peer.current = session;
    }
    return session;
  }

  /** The peer proved that it has the keys of `next`. */
  confirm(peer: Peer): void {
    const { current, next } = peer;
    // Installed after next: both sides began at once and both handshakes completed. Both must go on with the same one.
    const isCrossed = current?.initiator && next && next.installed < current.installed;
    const keepsCurrent = isCrossed && rank(current) > rank(next);
    if (current) {
      this.#displace(peer);
      peer.previous = keepsCurrent ? next : current;
    }
    if (!keepsCurrent) peer.current = next;
    peer.next = undefined;
  }

  /**
   * Ends sending with the current session. The other side may have lost it by the time the peer wakes, and a packet sent
   * into a lost session is lost; what is still under way towards us is decrypted until the session expires.
   */
  retire(peer: Peer): void {
    if (!peer.current) return;
    this.#displace(peer);
    peer.previous = peer.current;
    peer.current = undefined;
  }

  /** Drops sessions of the peer that are `age` or older at `now`; all for age 0. */
  expire(peer: Peer, now: number, age: number): void {
    for (const session of [...peer.older, peer.previous, peer.current, peer.next]) {
      if (session && now - session.createdAt >= age) this.#remove(session);
    }
  }

  /** Wipes all keys. */
  close(): void {
    this.#byIndex.clear();
    this.#last = undefined;
    this.#keys.wipe();
  }

  /**
   * Makes room for another previous session. The one before still decrypts: where both sides began at once there are two new
   * sessions within a round trip, and the remote may be sending with the third last.
   */
  #displace(peer: Peer): void {
    if (peer.previous) this.#keepOlder(peer, peer.previous);
    peer.previous = undefined;
  }

  #keepOlder(peer: Peer, session: Session): void {
    const kept = [session, ...peer.older];
    if (kept.length > OLDER_MAX) this.#drop(kept.pop());
    peer.older = kept;
  }

  #remove(session: Session): void {
    const { peer } = session;
    if (peer.older.includes(session)) peer.older = peer.older.filter((each) => each !== session);
    if (peer.previous === session) peer.previous = undefined;
    if (peer.current === session) peer.current = undefined;
    if (peer.next === session) peer.next = undefined;
    this.#drop(session);
  }

  #drop(session: Session | undefined): void {
    if (!session) return;
    this.#byIndex.delete(session.localIndex | 0);
    if (this.#last === session) this.#last = undefined;
    this.#keys.give(session.keyPlace);
    this.#ended(session);
  }
}

/** The same number on both sides. */
function rank(session: Session): number {
  return (session.localIndex ^ session.remoteIndex) >>> 0;
}
