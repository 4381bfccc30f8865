import type { PublicKey } from "#base/keys.ts";
import type { Clock, Millis } from "#base/time.ts";
import type { PeerConnection } from "../peer/peer-connection.ts";
import { FAILURES_TO_KEEP, FailedWakes, PROOF_BUDGET } from "./lazy/failed-wakes.ts";
import { IdleClock } from "./lazy/idle-clock.ts";

export interface WakeJudgeDeps {
  readonly clock: Clock;
  readonly find: (key: PublicKey) => PeerConnection | undefined;
  /** Whether the peer may be lazy has to be decided anew. */
  readonly decide: (key: PublicKey) => void;
}

/**
 * Watches each wake until a handshake proves it, and keeps the peers whose wakes fail (failed-wakes.ts). A wake of a peer
 * that was not there, or while signal was away, says nothing about the pair: it counts for nothing.
 */
export class WakeJudge {
  readonly #deps: WakeJudgeDeps;
  readonly #failed = new FailedWakes<PublicKey>();
  /** The end of a wake's budget, or of the term a peer is kept for. */
  readonly #deadlines: IdleClock<PublicKey>;

  constructor(deps: WakeJudgeDeps) {
    this.#deps = deps;
    this.#deadlines = new IdleClock(deps.clock, (key, now) => this.#due(key, now));
  }

  /** Why the peer is kept connected; undefined when it is not, at least not for its failed wakes. */
  whyKept(key: PublicKey): string | undefined {
    const until = this.#failed.keptUntil(key);
    if (until === undefined) return undefined;
    const { clock } = this.#deps;
    const end = new Date(clock.wall() + until - clock.now());
    const time = `${String(end.getHours()).padStart(2, "0")}:${String(end.getMinutes()).padStart(2, "0")}`;
    return `its last ${FAILURES_TO_KEEP} wakes failed, kept connected until ${time}`;
  }

  /** Peers kept connected for their failed wakes. */
  get kept(): number {
    return this.#failed.kept;
  }

  noteAwake(key: PublicKey): void {
    if (this.#failed.keptUntil(key) === undefined) this.#deadlines.watch(key, this.#deps.clock.now() + PROOF_BUDGET);
  }

  /** A handshake proved the peer. */
  noteProven(key: PublicKey): void {
    this.#failed.noteProven(key);
    if (this.#failed.keptUntil(key) === undefined) this.#deadlines.unwatch(key);
  }

  noteAsleep(key: PublicKey): void {
    if (this.#failed.keptUntil(key) === undefined) this.#deadlines.unwatch(key);
  }

  forget(key: PublicKey): void {
    this.#failed.forget(key);
    this.#deadlines.unwatch(key);
  }

  close(): void {
    this.#deadlines.close();
  }

  #due(key: PublicKey, now: Millis): Millis | undefined {
    const connection = this.#deps.find(key);
    if (!connection) return undefined;
    if (this.#failed.keptUntil(key) !== undefined) return this.#endTerm(key, connection, now);
    if (connection.status !== "connecting" || !connection.isRemoteThere) return undefined;
    const until = this.#failed.noteFailed(key, now);
    connection.note("wake-failed", `no handshake within ${PROOF_BUDGET / 1000} s although the peer is there`);
    if (until === undefined) return undefined;
    connection.note("kept", this.whyKept(key) ?? "");
    this.#deps.decide(key);
    return until;
  }

  #endTerm(key: PublicKey, connection: PeerConnection, now: Millis): Millis | undefined {
    const until = this.#failed.endTerm(key, connection.status === "connected", now);
    if (until === undefined) connection.note("lazy-again", "it is connected");
    else connection.note("kept", this.whyKept(key) ?? "");
    this.#deps.decide(key);
    return until;
  }
}
