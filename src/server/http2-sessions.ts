import type { ServerHttp2Session } from "node:http2";
import type { Clock, Millis, Timer } from "#base/time.ts";

export interface Http2SessionsOptions {
  readonly pingEveryMs: Millis;
  readonly idleMs: Millis;
}

/** The connection under a session, as far as its session matters to it. */
export interface SessionOwner {
  /** A complete request arrived; called for each. */
  noteRequest(): void;
  /** The session is dead; end the connection without a word. */
  cut(): void;
}

interface Session {
  readonly owner: SessionOwner;
  openStreams: number;
  idleSince: Millis;
  pingPending: boolean;
}

/**
 * Looks after HTTP/2 connections with one timer for all of them: pings each every `pingEveryMs`, cuts those that have not
 * answered by the next ping (a NAT forgot them, a laptop sleeps), and closes those without a call for `idleMs`. A
 * connection with a call is never closed for its age: a sync stream lives for months.
 */
export class Http2Sessions {
  readonly #clock: Clock;
  readonly #options: Http2SessionsOptions;
  readonly #sessions = new Map<ServerHttp2Session, Session>();
  #timer: Timer | undefined;
  #dead = 0;

  constructor(deps: { readonly clock: Clock }, options: Http2SessionsOptions) {
    this.#clock = deps.clock;
    this.#options = options;
  }

  get size(): number {
    return this.#sessions.size;
  }

  /** Sessions cut since the start because they did not answer. */
  get dead(): number {
    return this.#dead;
  }

  /** Takes a new session; it leaves by itself when it closes. */
  add(session: ServerHttp2Session, owner: SessionOwner): void {
    const state: Session = { owner, openStreams: 0, idleSince: this.#clock.now(), pingPending: false };
    this.#sessions.set(session, state);
    session.on("stream", (stream) => {
      owner.noteRequest();
      state.openStreams++;
      stream.once("close", () => {
        state.openStreams--;
        state.idleSince = this.#clock.now();
      });
    });
    session.on("error", () => {});
    session.once("close", () => this.#sessions.delete(session));
    this.#timer ??= this.#arm();
  }

  /** Sends GOAWAY on every session; returns the owners of those that still have calls. */
  closeAll(): Set<SessionOwner> {
    this.#timer?.cancel();
    const busy = new Set<SessionOwner>();
    for (const [session, { owner, openStreams }] of this.#sessions) {
      if (openStreams > 0) busy.add(owner);
      session.close();
    }
    return busy;
  }

  #arm(): Timer {
    return this.#clock.after(this.#options.pingEveryMs, () => {
      for (const [session, state] of this.#sessions) this.#look(session, state);
      this.#timer = this.#sessions.size > 0 ? this.#arm() : undefined;
    });
  }

  #look(session: ServerHttp2Session, state: Session): void {
    if (session.destroyed) return;
    if (state.pingPending) {
      this.#dead++;
      state.owner.cut();
    } else if (state.openStreams === 0 && this.#clock.now() - state.idleSince >= this.#options.idleMs) {
      session.close();
    } else if (!session.closed) {
      state.pingPending = session.ping(() => {
        state.pingPending = false;
      });
    }
  }
}
