import { DeadlineQueue } from "#base/deadline-queue.ts";
import { type PresharedKey, type PrivateKey, PublicKey } from "#base/keys.ts";
import type { Millis } from "#base/time.ts";
import {
  HANDSHAKE_INITIATION_INTERVAL,
  type HandshakeTiming,
  PROTOCOL_TIMING,
  UNDER_LOAD_HOLD,
  ZERO_KEYS_TIME,
} from "./constants.ts";
import { CookieChecker, CookieJar } from "./cookie.ts";
import {
  acceptInitiation,
  consumeResponse,
  createInitiation,
  createResponse,
  type InitiationClaim,
  readInitiation,
  type SentInitiation,
} from "./handshake.ts";
import {
  HANDSHAKE_COUNTERS,
  type HandshakeAction,
  type HandshakeCounter,
  type HandshakeSource,
  sourceBytes,
} from "./handshake-action.ts";
import { LocalIdentity, RemoteIdentity } from "./identity.ts";
import { IndexTable } from "./index-table.ts";
import { COOKIE_REPLY, MessageType, messageType, RESPONSE, readU32 } from "./messages.ts";
import { RateLimiter, rateLimitKey } from "./rate-limiter.ts";
import { isLaterTai64n, Tai64nClock } from "./tai64n.ts";
import { type Ephemeral, generateEphemeral } from "./x25519.ts";

/** What a handshake needs to know of a configured peer. */
export interface HandshakePeer {
  /** Names the peer in every action. */
  readonly slot: number;
  readonly key: PublicKey;
  /** From the next handshake on; sessions stay. */
  readonly presharedKey: PresharedKey | undefined;
}

export interface HandshakeManagerDeps {
  /** The peers there are, which somebody keeps anyway: one without handshakes costs nothing here. */
  readonly peers: {
    get(key: PublicKey): HandshakePeer | undefined;
    at(slot: number): HandshakePeer | undefined;
  };
  /** Milliseconds since the Unix epoch, for timestamps in initiations. */
  readonly wall: () => number;
  /** In [0, 1), for the jitter of retransmissions; default Math.random. */
  readonly random?: () => number;
  /** Default: a new pair for each handshake, which is the only right thing outside of tests. */
  readonly ephemeral?: () => Ephemeral;
  /** Gets each new secret of cookies, to read and not to keep. */
  readonly cookieSecretChanged?: (secret: Uint8Array) => void;
}

/**
 * An initiation that is asked for again this soon goes out again as the same bytes: a responder accepts one in 20 ms, and a
 * new message would have thrown away the state that the answer to the first one needs.
 */
const RESEND_WITHIN: Millis = 50;
/** Least time between two different initiations to one peer: what a responder insists on, and some for the way. */
const INITIATION_GAP: Millis = HANDSHAKE_INITIATION_INTERVAL + 5;
/** How often contacts are looked through for ones that are over. Only while there are any. */
const SWEEP_INTERVAL: Millis = 60_000;
const SWEEP_ID = -1;

interface InFlight {
  readonly sent: SentInitiation;
  readonly sentAt: Millis;
  /** When this run of attempts began. */
  readonly startedAt: Millis;
  readonly resent: boolean;
}

/** What is kept of a peer that handshakes were exchanged with, until 9 minutes after the last one. */
interface Contact {
  readonly remote: RemoteIdentity;
  readonly cookies: CookieJar;
  inFlight: InFlight | undefined;
  /** An initiation waits for the gap to the one before; the time its run of attempts began. */
  delayedFrom: Millis | undefined;
  /** The remote would refuse an initiation that comes earlier. */
  initiateFrom: Millis;
  /** Last initiation or response sent, for the 5 s rule. */
  lastSentAt: Millis;
  lastAcceptedAt: Millis;
  lastActiveAt: Millis;
}

/** Of a peer that handshakes were exchanged with, ever. */
interface Acquaintance {
  readonly peer: HandshakePeer;
  contact: Contact | undefined;
  /** Greatest timestamp accepted; outlives the contact, or old initiations could be replayed. */
  lastTimestamp: Uint8Array | undefined;
}

/**
 * Handshakes of one device (paper, sections 5 and 6): who may open one, what is answered, repeated and given up. No IO and
 * no clock: datagrams and the time come in, actions go out. A peer that nothing was exchanged with has nothing here; what
 * has a cost appears with the first initiation in either direction.
 *
 * Our own initiation and the peer's do not share state, other than in the paper: when both start at once, both handshakes
 * complete and either session carries data, where sharing would discard both initiations and wait 5 s for the next.
 */
export class HandshakeManager {
  readonly local: LocalIdentity;
  readonly #checker: CookieChecker;
  readonly #limiter = new RateLimiter();
  readonly #timestamps: Tai64nClock;
  readonly #indices = new IndexTable<number>();
  readonly #peers: HandshakeManagerDeps["peers"];
  /** By slot. */
  readonly #known = new Map<number, Acquaintance>();
  readonly #inContact = new Set<Acquaintance>();
  /** By slot: when an unanswered initiation is repeated; and the sweep. */
  readonly #deadlines = new DeadlineQueue<number>();
  readonly #counters = new Map<HandshakeCounter, number>(HANDSHAKE_COUNTERS.map((name) => [name, 0]));
  readonly #random: () => number;
  readonly #ephemeral: () => Ephemeral;
  readonly #timing: HandshakeTiming;
  #underLoadUntil: Millis = Number.NEGATIVE_INFINITY;

  constructor(deps: HandshakeManagerDeps, privateKey: PrivateKey, timing: Partial<HandshakeTiming> = {}) {
    this.local = new LocalIdentity(privateKey);
    this.#checker = new CookieChecker(this.local, undefined, deps.cookieSecretChanged);
    this.#peers = deps.peers;
    this.#timestamps = new Tai64nClock(deps.wall);
    this.#random = deps.random ?? Math.random;
    this.#ephemeral = deps.ephemeral ?? generateEphemeral;
    this.#timing = { ...PROTOCOL_TIMING, ...timing };
  }

  // Peers

  /** The peer is gone, or another will have its slot. */
  removePeer(slot: number): void {
    const known = this.#known.get(slot);
    if (!known) return;
    this.#endContact(known);
    this.#known.delete(slot);
  }

  /** Stops repeating our initiation and forgets it. Never an error. */
  cancel(slot: number): void {
    const contact = this.#known.get(slot)?.contact;
    if (contact) this.#dropInFlight(slot, contact);
  }

  /** The peer goes to sleep: as `cancel`, and the 5 s rule does not hold up the handshake that its next wake begins with. */
  rest(slot: number): void {
    const contact = this.#known.get(slot)?.contact;
    if (!contact) return;
    this.#dropInFlight(slot, contact);
    contact.lastSentAt = Number.NEGATIVE_INFINITY;
  }

  /** Peers that cost more than a map entry, for tests and `status`. */
  get contacts(): number {
    return this.#inContact.size;
  }

  /** Handshakes and sessions that hold an index. */
  get indicesInUse(): number {
    return this.#indices.size;
  }

  counters(): ReadonlyMap<HandshakeCounter, number> {
    return this.#counters;
  }

  // Starting a handshake

  /** The data path would like a session: obeys the 5 s rule, so it may be called as often as there is a reason. */
  want(slot: number, now: Millis): HandshakeAction[] {
    const contact = this.#known.get(slot)?.contact;
    if (contact && (isOpen(contact) || now - contact.lastSentAt < this.#timing.rekeyTimeout)) return [];
    return this.#initiate(slot, now, now);
  }

  /**
   * Somebody who knows better wants an initiation now, whatever was sent before. One that is younger than `reuseWithin`
   * is repeated byte for byte (for a path that it did not go over yet), an older one is replaced and cannot be answered
   * any more. A new one leaves 25 ms after the one before, at the earliest. Empty when the slot is free or the peer's key degenerate.
   */
  initiate(slot: number, now: Millis, reuseWithin: Millis = RESEND_WITHIN): HandshakeAction[] {
    const contact = this.#known.get(slot)?.contact;
    const inFlight = contact?.inFlight;
    if (!inFlight || now - inFlight.sentAt >= reuseWithin) return this.#initiate(slot, now, now);
    contact!.inFlight = { ...inFlight, resent: true };
    return [{ kind: "send-initiation", slot, message: inFlight.sent.message.slice(), repeated: true }];
  }

  /** Whether an initiation of ours waits for its answer. */
  isInFlight(slot: number): boolean {
    const contact = this.#known.get(slot)?.contact;
    return contact !== undefined && isOpen(contact);
  }

  #initiate(slot: number, now: Millis, startedAt: Millis): HandshakeAction[] {
    const peer = this.#peers.at(slot);
    const contact = peer && this.#contact(this.#know(peer), now);
    if (!contact) return [];
    this.#dropInFlight(slot, contact);
    if (now < contact.initiateFrom) {
      contact.delayedFrom = startedAt;
      this.#deadlines.set(slot, contact.initiateFrom);
      return [{ kind: "initiation-delayed", slot: slot }];
    }
    const localIndex = this.#indices.allocate(slot);
    const sent = createInitiation(this.local, contact.remote, {
      ephemeral: this.#ephemeral(),
      localIndex,
      timestamp: this.#timestamps.next(),
    });
    if (!sent) {
      this.#indices.free(localIndex);
      return [];
    }
    contact.cookies.stamp(sent.message, now);
    contact.inFlight = { sent, sentAt: now, startedAt, resent: false };
    contact.initiateFrom = now + INITIATION_GAP;
    contact.lastSentAt = now;
    contact.lastActiveAt = now;
    const repeatAt = now + this.#timing.rekeyTimeout + this.#random() * this.#timing.jitter;
    this.#deadlines.set(slot, Math.min(repeatAt, startedAt + this.#timing.rekeyAttemptTime));
    this.#count("handshake-initiations-sent");
    return [{ kind: "send-initiation", slot, message: sent.message.slice(), repeated: false }];
  }

  // Time

  /** When `tick` wants to be called next. */
  nextDeadline(): Millis | undefined {
    return this.#deadlines.next();
  }

  /** Repeats what was not answered for 5 s, gives up what was not for 90 s, forgets peers after 9 minutes of nothing. */
  tick(now: Millis): HandshakeAction[] {
    const actions: HandshakeAction[] = [];
    for (let id = this.#deadlines.takeDue(now); id !== undefined; id = this.#deadlines.takeDue(now)) {
      if (id === SWEEP_ID) {
        this.#sweep(now);
        continue;
      }
      const contact = this.#known.get(id)?.contact;
      if (!contact) continue;
      const { inFlight, delayedFrom } = contact;
      if (delayedFrom !== undefined) {
        actions.push(...this.#initiate(id, now, delayedFrom));
      } else if (inFlight && now - inFlight.startedAt >= this.#timing.rekeyAttemptTime) {
        this.#dropInFlight(id, contact);
        this.#count("handshake-given-up");
        actions.push({ kind: "gave-up", slot: id });
      } else if (inFlight) {
        actions.push(...this.#initiate(id, now, inFlight.startedAt));
      }
    }
    return actions;
  }

  #sweep(now: Millis): void {
    for (const known of this.#inContact) {
      const contact = known.contact!;
      if (!isOpen(contact) && now - contact.lastActiveAt >= ZERO_KEYS_TIME) this.#endContact(known);
    }
    if (this.#inContact.size > 0) this.#deadlines.set(SWEEP_ID, now + SWEEP_INTERVAL);
  }

  // Facts from the data path

  /**
   * The first packet came on a responder's session. An initiation of ours that is still unanswered is dropped: its answer
   * would give a second session, and the two sides would go on with different ones.
   */
  noteConfirmed(slot: number): void {
    this.cancel(slot);
    this.#count("handshake-completed");
  }

  /** A session is gone, its index may be drawn again. */
  noteSessionEnded(localIndex: number): void {
    this.#indices.free(localIndex);
  }

  /** The data worker died with all sessions: their indices may be drawn again. Returns the slots that had one. */
  noteSessionsLost(): ReadonlySet<number> {
    return this.#indices.freeAll((index, slot) => this.#known.get(slot)?.contact?.inFlight?.sent.localIndex === index);
  }

  // Messages

  /**
   * Takes a message of type 1, 2 or 3. `busy`: more of them wait than are good; for a second from then on mac2 is asked
   * for. Anything wrong is counted and dropped.
   */
  receive(datagram: Uint8Array, source: HandshakeSource, now: Millis, busy: boolean): HandshakeAction[] {
    if (busy) this.#underLoadUntil = now + UNDER_LOAD_HOLD;
    switch (messageType(datagram)) {
      case MessageType.initiation:
        return this.#admit(datagram, source, now) ?? this.#receiveInitiation(datagram, source, now);
      case MessageType.response:
        return this.#admit(datagram, source, now) ?? this.#receiveResponse(datagram, source, now);
      case MessageType.cookieReply:
        return this.#receiveCookieReply(datagram, now);
      default:
        return this.#drop("drop-handshake-malformed");
    }
  }

  /** mac1, and under load mac2 and the rate: undefined when the message may go on, else what to do instead. */
  #admit(message: Uint8Array, source: HandshakeSource, now: Millis): HandshakeAction[] | undefined {
    if (!this.#checker.isMac1Valid(message)) return this.#drop("drop-handshake-mac1");
    if (now >= this.#underLoadUntil) return undefined;
    const address = sourceBytes(source);
    if (!this.#checker.isMac2Valid(message, address, now)) {
      this.#count("cookie-replies-sent");
      const reply = this.#checker.createReply(message, address, now);
      return [{ kind: "send-reply", slot: undefined, message: reply, to: source }];
    }
    const limited = source.kind === "udp" ? rateLimitKey(source.endpoint.address) : `relay ${source.slot}`;
    return this.#limiter.allow(limited, now) ? undefined : this.#drop("drop-handshake-rate-limit");
  }

  #receiveInitiation(message: Uint8Array, source: HandshakeSource, now: Millis): HandshakeAction[] {
    const claim = readInitiation(this.local, message);
    if (!claim) return this.#drop("drop-handshake-authentication");
    const refuse = (reason: HandshakeCounter): [] => {
      claim.transcript.wipe();
      return this.#drop(reason);
    };
    const key = PublicKey.fromBytes(claim.staticBytes);
    const peer = this.#peers.get(key);
    if (!peer) return refuse(key === this.local.publicKey ? "drop-handshake-own-key" : "drop-handshake-unknown-peer");
    if (source.kind === "relay" && source.slot !== peer.slot) return refuse("drop-handshake-relay-mismatch");
    const contact = this.#known.get(peer.slot)?.contact;
    if (contact && now - contact.lastAcceptedAt < HANDSHAKE_INITIATION_INTERVAL) return refuse("drop-handshake-flood");
    return this.#answer(peer, claim, source, now);
  }

  #answer(peer: HandshakePeer, claim: InitiationClaim, source: HandshakeSource, now: Millis): HandshakeAction[] {
    // A contact made for this message is given up again unless the message proves to be the peer's: naming a key is free.
    const known = this.#know(peer);
    const isNew = known.contact === undefined;
    const contact = this.#contact(known, now);
    const received = contact && acceptInitiation(claim, contact.remote);
    const isFresh = received && (!known.lastTimestamp || isLaterTai64n(received.timestamp, known.lastTimestamp));
    if (!contact || !received || !isFresh) {
      claim.transcript.wipe();
      received?.transcript.wipe();
      if (isNew) this.#endContact(known);
      return this.#drop(received ? "drop-handshake-replay" : "drop-handshake-authentication");
    }
    known.lastTimestamp = received.timestamp.slice();
    contact.lastAcceptedAt = now;
    const localIndex = this.#indices.allocate(peer.slot);
    const answer = createResponse(contact.remote, received, {
      ephemeral: this.#ephemeral(),
      localIndex,
      presharedKey: peer.presharedKey,
    });
    if (!answer) {
      this.#indices.free(localIndex);
      return this.#drop("drop-handshake-authentication");
    }
    contact.cookies.stamp(answer.message, now);
    contact.lastSentAt = now;
    contact.lastActiveAt = now;
    this.#count("handshake-initiations-accepted");
    const { slot } = peer;
    return [
      { kind: "initiation-accepted", slot, source },
      { kind: "session", slot, keys: answer.keys, createdAt: now, source },
      { kind: "send-reply", slot, message: answer.message, to: source },
    ];
  }

  #receiveResponse(message: Uint8Array, source: HandshakeSource, now: Millis): HandshakeAction[] {
    const index = readU32(message, RESPONSE.receiver);
    const slot = this.#indices.get(index);
    const known = slot === undefined ? undefined : this.#known.get(slot);
    const inFlight = known?.contact?.inFlight;
    if (!known?.contact || inFlight?.sent.localIndex !== index) return this.#drop("drop-handshake-no-state");
    const { peer, contact } = known;
    if (source.kind === "relay" && source.slot !== peer.slot) return this.#drop("drop-handshake-relay-mismatch");
    const keys = consumeResponse(this.local, inFlight.sent, message, peer.presharedKey);
    if (!keys) return this.#drop("drop-handshake-authentication");
    // The index goes on living as the session's.
    contact.inFlight = undefined;
    contact.lastActiveAt = now;
    // A busy remote may have taken the initiation only just now.
    contact.initiateFrom = Math.max(contact.initiateFrom, now + HANDSHAKE_INITIATION_INTERVAL);
    this.#deadlines.cancel(peer.slot);
    this.#count("handshake-completed");
    // First the news, so that a path chosen upon it is the one that the waiting packets take.
    return [
      { kind: "completed", slot: peer.slot, source, rtt: inFlight.resent ? undefined : now - inFlight.sentAt },
      { kind: "session", slot: peer.slot, keys, createdAt: inFlight.sentAt, source },
    ];
  }

  #receiveCookieReply(message: Uint8Array, now: Millis): HandshakeAction[] {
    const slot = this.#indices.get(readU32(message, COOKIE_REPLY.receiver));
    const contact = slot === undefined ? undefined : this.#known.get(slot)?.contact;
    if (!contact?.cookies.consumeReply(contact.remote, message, now)) return this.#drop("drop-cookie-reply");
    this.#count("cookie-replies-taken");
    return [];
  }

  // Ends

  /** Wipes everything; the object is of no use afterwards. */
  close(): void {
    for (const known of [...this.#inContact]) this.#endContact(known);
    this.#known.clear();
    this.#deadlines.cancel(SWEEP_ID);
    this.#checker.wipe();
  }

  #know(peer: HandshakePeer): Acquaintance {
    const known = this.#known.get(peer.slot) ?? { peer, contact: undefined, lastTimestamp: undefined };
    this.#known.set(peer.slot, known);
    return known;
  }

  #contact(known: Acquaintance, now: Millis): Contact | undefined {
    if (known.contact) return known.contact;
    const remote = RemoteIdentity.create(this.local, PublicKey.toBytes(known.peer.key));
    if (!remote) {
      this.#known.delete(known.peer.slot);
      return undefined;
    }
    known.contact = {
      remote,
      cookies: new CookieJar(),
      inFlight: undefined,
      delayedFrom: undefined,
      initiateFrom: Number.NEGATIVE_INFINITY,
      lastSentAt: Number.NEGATIVE_INFINITY,
      lastAcceptedAt: Number.NEGATIVE_INFINITY,
      lastActiveAt: now,
    };
    if (this.#inContact.size === 0) this.#deadlines.set(SWEEP_ID, now + SWEEP_INTERVAL);
    this.#inContact.add(known);
    return known.contact;
  }

  #endContact(known: Acquaintance): void {
    const { contact, peer } = known;
    if (!contact) return;
    this.#dropInFlight(peer.slot, contact);
    contact.cookies.wipe();
    contact.remote.wipe();
    known.contact = undefined;
    this.#inContact.delete(known);
    if (!known.lastTimestamp) this.#known.delete(peer.slot);
    if (this.#inContact.size === 0) this.#deadlines.cancel(SWEEP_ID);
  }

  #dropInFlight(slot: number, contact: Contact): void {
    const { inFlight } = contact;
    if (contact.delayedFrom !== undefined) this.#deadlines.cancel(slot);
    contact.delayedFrom = undefined;
    if (!inFlight) return;
    inFlight.sent.transcript.wipe();
    this.#indices.free(inFlight.sent.localIndex);
    contact.inFlight = undefined;
    this.#deadlines.cancel(slot);
  }

  #drop(reason: HandshakeCounter): [] {
    this.#count(reason);
    return [];
  }

  #count(name: HandshakeCounter): void {
    this.#counters.set(name, this.#counters.get(name)! + 1);
  }
}

function isOpen(contact: Contact): boolean {
  return contact.inFlight !== undefined || contact.delayedFrom !== undefined;
}
