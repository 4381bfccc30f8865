import { createHash, randomBytes } from "node:crypto";
import type { Clock, Millis } from "#base/time.ts";

/** How long a link printed by `perch ui` opens the page; it does so once. */
export const TOKEN_LIFE: Millis = 5 * 60_000;
/** A session ends this long after it began, whatever it does. */
export const SESSION_LIFE: Millis = 12 * 3_600_000;
/** A session without a request under way ends after this. */
export const SESSION_IDLE: Millis = 30 * 60_000;
/** Links that were not opened yet; the oldest goes first. */
export const TOKENS_MAX = 16;
/** Browsers with the page open; the one unused for longest goes first. */
export const SESSIONS_MAX = 16;
/** Tabs of a browser; the key that was given out first goes first. */
export const PAGE_KEYS_MAX = 32;

/** Bytes of a token, a cookie and a page key; 256 bits cannot be guessed at any rate of requests. */
const SECRET_BYTES = 32;

/** What a browser gets for a token. Both are needed for every call. */
export interface UiPass {
  /** Kept by the browser where no script reads it. Browsers send it to every port of the address. */
  readonly cookie: string;
  /** Kept by the page for its own origin, port included: a cookie that another port saw opens nothing alone. */
  readonly pageKey: string;
}

/** A browser that may use the page's API. */
export interface UiSession {
  /** Aborts when the session ends; what it has under way ends with it. */
  readonly ended: AbortSignal;
  /** Counts a request in; the returned function counts it out again and is idempotent. */
  begin(): () => void;
}

interface Session {
  /** Oldest first. */
  readonly pageKeyHashes: Set<string>;
  readonly controller: AbortController;
  endsAt: Millis;
  usedAt: Millis;
  underWay: number;
}

/**
 * Who may use the web page: one-time tokens and the sessions they open, all in memory and only as hashes. A lookup by hash
 * takes a time that tells nothing of the secret.
 */
export class UiSessions {
  readonly #clock: Clock;
  /** Hash of a token, and when it expires. */
  readonly #tokens = new Map<string, Millis>();
  /** By hash of the cookie. */
  readonly #sessions = new Map<string, Session>();

  constructor(clock: Clock) {
    this.#clock = clock;
  }

  /** A token that opens one session within TOKEN_LIFE. */
  issueToken(): string {
    this.#expire();
    for (const oldest of this.#tokens.keys()) {
      if (this.#tokens.size < TOKENS_MAX) break;
      this.#tokens.delete(oldest);
    }
    const token = secret();
    this.#tokens.set(hashOf(token), this.#clock.now() + TOKEN_LIFE);
    return token;
  }

  /**
   * Opens a session; undefined: the token was never given out, was used, or has expired. A browser keeps one cookie for all its
   * tabs: one that has a session already gets a further page key in it, and its other tabs stay.
   */
  exchange(token: string, cookie: string | undefined): UiPass | undefined {
    this.#expire();
    if (!this.#tokens.delete(hashOf(token))) return undefined;
    const pageKey = secret();
    const now = this.#clock.now();
    const known = cookie === undefined ? undefined : this.#sessions.get(hashOf(cookie));
    if (cookie !== undefined && known) {
      const [oldest] = known.pageKeyHashes;
      if (known.pageKeyHashes.size >= PAGE_KEYS_MAX) known.pageKeyHashes.delete(oldest!);
      known.pageKeyHashes.add(hashOf(pageKey));
      known.endsAt = now + SESSION_LIFE;
      known.usedAt = now;
      return { cookie, pageKey };
    }
    while (this.#sessions.size >= SESSIONS_MAX) this.#endUnused();
    const fresh = secret();
    this.#sessions.set(hashOf(fresh), {
      pageKeyHashes: new Set([hashOf(pageKey)]),
      controller: new AbortController(),
      endsAt: now + SESSION_LIFE,
      usedAt: now,
      underWay: 0,
    });
    return { cookie: fresh, pageKey };
  }

  /** The session of a pass; undefined when either half is wrong or the session has ended. */
  find(pass: UiPass): UiSession | undefined {
    this.#expire();
    const session = this.#sessions.get(hashOf(pass.cookie));
    if (!session?.pageKeyHashes.has(hashOf(pass.pageKey))) return undefined;
    session.usedAt = this.#clock.now();
    return { ended: session.controller.signal, begin: () => this.#begin(session) };
  }

  /** When the next token or session expires; undefined: there is none, and nobody can use the page. */
  get nextExpiry(): Millis | undefined {
    this.#expire();
    let next = Number.POSITIVE_INFINITY;
    for (const at of this.#tokens.values()) next = Math.min(next, at);
    for (const session of this.#sessions.values()) next = Math.min(next, expiryOf(session));
    return next === Number.POSITIVE_INFINITY ? undefined : next;
  }

  /** Ends everything. */
  clear(): void {
    this.#tokens.clear();
    for (const hash of [...this.#sessions.keys()]) this.#end(hash);
  }

  #begin(session: Session): () => void {
    session.underWay++;
    let over = false;
    return () => {
      if (over) return;
      over = true;
      session.underWay--;
      session.usedAt = this.#clock.now();
    };
  }

  #expire(): void {
    const now = this.#clock.now();
    for (const [hash, at] of this.#tokens) if (at <= now) this.#tokens.delete(hash);
    for (const [hash, session] of this.#sessions) if (expiryOf(session) <= now) this.#end(hash);
  }

  #endUnused(): void {
    const [oldest] = [...this.#sessions].sort(
      ([, a], [, b]) => Math.sign(a.underWay) - Math.sign(b.underWay) || a.usedAt - b.usedAt,
    );
    if (oldest) this.#end(oldest[0]);
  }

  #end(hash: string): void {
    const session = this.#sessions.get(hash);
    this.#sessions.delete(hash);
    session?.controller.abort();
  }
}

function expiryOf(session: Session): Millis {
  return session.underWay > 0 ? session.endsAt : Math.min(session.endsAt, session.usedAt + SESSION_IDLE);
}

function secret(): string {
  return randomBytes(SECRET_BYTES).toString("base64url");
}

function hashOf(text: string): string {
  return createHash("sha256").update(text).digest("base64url");
}
