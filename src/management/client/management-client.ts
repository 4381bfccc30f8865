import { create } from "@bufbuild/protobuf";
import { type Client, createClient } from "@connectrpc/connect";
import { Backoff } from "#base/backoff.ts";
import { Emitter } from "#base/emitter.ts";
import { messageOf } from "#base/errors.ts";
import { type PrivateKey, PublicKey } from "#base/keys.ts";
import type { Logger } from "#base/log.ts";
import type { Clock, Millis } from "#base/time.ts";
import {
  EmptySchema,
  LoginRequestSchema,
  type LoginResponse,
  LoginResponseSchema,
  ManagementService,
  type PeerSystemMeta,
  type PerchHeldMap,
  SyncMetaRequestSchema,
  type SyncRequest,
  SyncRequestSchema,
  type SyncResponse,
  SyncResponseSchema,
} from "#gen/management_pb.ts";
import { ManagementError } from "../errors.ts";
import { EnvelopeError, openMessage, sealMessage } from "../protocol/envelope.ts";
import { parseSetupKey } from "../protocol/setup-key.ts";
import { toManagementError } from "./translate-error.ts";
import { createTransport, type ManagementTransport, type TransportOptions } from "./transport.ts";

/** Time for one answer, by call (protocol/management.md, section 1.5). `Sync` has no limit. */
const TIMEOUT = { getServerKey: 5_000, login: 10_000, syncMeta: 10_000, logout: 15_000, isHealthy: 5_000 } as const;

/**
 * Pauses between attempts to open the Sync stream. Factor, ceiling and full jitter are the document's (section 4.6); the start
 * is 500 ms instead of 800, so that the first try after a restart of the server always comes within a second.
 */
const SYNC_BACKOFF = { start: 500, factor: 1.7, ceiling: 10_000, jitter: 1 } as const;

/** A stream that lived this long was a success: the next failure starts with the shortest pause again. */
const SYNC_PROVEN: Millis = 10_000;

export interface ManagementDeps {
  readonly clock: Clock;
  readonly log: Logger;
}

export interface ManagementClientOptions extends TransportOptions {
  /** The WireGuard identity key; sealing with it is what authenticates the peer. */
  readonly key: PrivateKey;
  /** A line of authorized_keys to register for this peer; none by default. */
  readonly sshPublicKey?: string | undefined;
}

export interface LoginOptions {
  /** Registers an unknown peer; ignored by the server for a known one. */
  readonly setupKey?: string | undefined;
  readonly meta: PeerSystemMeta;
  readonly signal?: AbortSignal | undefined;
}

export interface ManagementState {
  /** True from the first message of a Sync stream to its end. */
  readonly connected: boolean;
  /** Why the last attempt ended; absent when it was in order. */
  readonly error?: ManagementError;
}

export interface ManagementEvents {
  state: ManagementState;
}

/**
 * An agent's line to its management server: one HTTP/2 connection, dialled when needed. Any server that speaks the protocol will
 * do. The server's key is read anew before every call, because a stock server has a new one after each restart.
 */
export class ManagementClient {
  readonly events = new Emitter<ManagementEvents>();
  readonly #deps: ManagementDeps;
  readonly #options: ManagementClientOptions;
  readonly #connection: ManagementTransport;
  readonly #client: Client<typeof ManagementService>;
  readonly #closing = new AbortController();
  readonly #running = new Set<Promise<unknown>>();
  #state: ManagementState = { connected: false };
  /** Ends the pause before the next attempt. */
  #skipPause: () => void = () => {};

  /** Throws ManagementError `url-malformed`. */
  constructor(deps: ManagementDeps, options: ManagementClientOptions) {
    this.#deps = deps;
    this.#options = options;
    this.#connection = createTransport(options);
    this.#client = createClient(ManagementService, this.#connection.transport);
  }

  /** The origin that is dialled. */
  get url(): string {
    return this.#connection.url;
  }

  get state(): ManagementState {
    return this.#state;
  }

  /**
   * Greets the server; with a setup key an unknown peer is registered, and is known when this resolves. Tries once. Throws
   * ManagementError, and SetupKeyError before anything is sent when the key is no UUID.
   */
  async login(options: LoginOptions): Promise<LoginResponse> {
    const setupKey = options.setupKey === undefined ? "" : parseSetupKey(options.setupKey);
    const own = this.#options.key;
    const text = new TextEncoder();
    const request = create(LoginRequestSchema, {
      setupKey,
      meta: options.meta,
      peerKeys: {
        sshPubKey: text.encode(this.#options.sshPublicKey ?? ""),
        // The base64 text inside a bytes field, as the protocol has it.
        wgPubKey: text.encode(own.publicKey),
      },
    });
    return this.#call(
      { call: "Login", setupKey: options.setupKey || undefined },
      options.signal,
      async (server, signal) => {
        const sealed = sealMessage(LoginRequestSchema, request, server, own);
        const answer = await this.#client.login(sealed, { signal, timeoutMs: TIMEOUT.login });
        return openMessage(LoginResponseSchema, answer, server, own);
      },
    );
  }

  /**
   * Keeps a Sync stream open until `signal` is aborted, then resolves. Every message goes to `onUpdate`, one at a time and in
   * order; the next is read when it has returned (or its promise settled). What it throws is logged and changes nothing.
   * `meta` is asked for at each opening, and so is `held` where it is given: what the caller has of its map. A Perch server then
   * sends parts (`SyncResponse.perch`) in place of maps; any other server ignores it. Rejects only when the server does not let
   * this peer in any more, with `permission-denied` or `login-expired`: log in again first.
   */
  async sync(
    meta: () => PeerSystemMeta,
    onUpdate: (update: SyncResponse) => void | Promise<void>,
    signal: AbortSignal,
    held?: () => PerchHeldMap,
  ): Promise<void> {
    const stop = AbortSignal.any([signal, this.#closing.signal]);
    const request = (): SyncRequest => create(SyncRequestSchema, { meta: meta(), ...(held && { perch: held() }) });
    await this.#own(this.#syncUntil(request, onUpdate, stop));
  }

  /** Tells the server what changed about this machine; its answer is bare. Throws ManagementError. */
  async syncMeta(meta: PeerSystemMeta, signal?: AbortSignal): Promise<void> {
    const request = create(SyncMetaRequestSchema, { meta });
    await this.#call({ call: "SyncMeta" }, signal, (server, stop) =>
      this.#client.syncMeta(sealMessage(SyncMetaRequestSchema, request, server, this.#options.key), {
        signal: stop,
        timeoutMs: TIMEOUT.syncMeta,
      }),
    );
  }

  /** Removes this peer from the network. Throws ManagementError. */
  async logout(signal?: AbortSignal): Promise<void> {
    await this.#call({ call: "Logout" }, signal, (server, stop) =>
      this.#client.logout(sealMessage(EmptySchema, create(EmptySchema), server, this.#options.key), {
        signal: stop,
        timeoutMs: TIMEOUT.logout,
      }),
    );
  }

  /** Whether the server says that it is well; false for every failure. */
  async isHealthy(signal?: AbortSignal): Promise<boolean> {
    const stop = signal ? AbortSignal.any([signal, this.#closing.signal]) : this.#closing.signal;
    if (stop.aborted) return false;
    return this.#own(
      this.#client.isHealthy({}, { signal: stop, timeoutMs: TIMEOUT.isHealthy }).then(
        () => true,
        () => false,
      ),
    );
  }

  /** The machine's network changed: drops the connection, which may lead nowhere now, and tries again at once. */
  reconnect(): void {
    this.#connection.abort();
    this.#skipPause();
  }

  /** Ends the pause before the next attempt to open the Sync stream, if there is one now. */
  retryNow(): void {
    this.#skipPause();
  }

  /** Ends every call and the Sync stream, and resolves when they have ended. Idempotent. */
  async close(): Promise<void> {
    this.#closing.abort(new ManagementError("call-aborted", "the management client was closed"));
    this.#connection.abort();
    await Promise.allSettled([...this.#running]);
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.close();
  }

  async #syncUntil(
    request: () => SyncRequest,
    onUpdate: (update: SyncResponse) => void | Promise<void>,
    stop: AbortSignal,
  ): Promise<void> {
    const { clock, log } = this.#deps;
    const backoff = new Backoff(SYNC_BACKOFF);
    while (!stop.aborted) {
      const opened = clock.now();
      const failure = await this.#syncOnce(request, onUpdate, stop);
      if (stop.aborted) break;
      if (this.#state.connected && clock.now() - opened >= SYNC_PROVEN) backoff.reset();
      this.#setState(failure ? { connected: false, error: failure } : { connected: false });
      if (failure?.code === "permission-denied" || failure?.code === "login-expired") throw failure;
      const delay = backoff.next();
      log.info("sync stream ended", { url: this.url, err: failure?.message, retryInMs: Math.round(delay) });
      await this.#pause(delay, stop);
    }
    this.#setState({ connected: false });
  }

  /** One stream from opening to end; returns why it ended, undefined when the server closed it in order. */
  async #syncOnce(
    request: () => SyncRequest,
    onUpdate: (update: SyncResponse) => void | Promise<void>,
    stop: AbortSignal,
  ): Promise<ManagementError | undefined> {
    const own = this.#options.key;
    try {
      const server = await this.#serverKey(stop);
      const stream = this.#client.sync(sealMessage(SyncRequestSchema, request(), server, own), { signal: stop });
      for await (const envelope of stream) {
        const update = openMessage(SyncResponseSchema, envelope, server, own);
        this.#setState({ connected: true });
        try {
          await onUpdate(update);
        } catch (error) {
          this.#deps.log.error("update not applied", { err: messageOf(error) });
        }
        if (stop.aborted) return undefined;
      }
      return undefined;
    } catch (reason) {
      return toManagementError(reason, { url: this.url, call: "Sync" });
    }
  }

  /** Reads the server's key, then runs the call; translates what either throws. */
  async #call<T>(
    context: { readonly call: string; readonly setupKey?: string | undefined },
    signal: AbortSignal | undefined,
    run: (server: PublicKey, signal: AbortSignal) => Promise<T>,
  ): Promise<T> {
    const stop = signal ? AbortSignal.any([signal, this.#closing.signal]) : this.#closing.signal;
    const work = async (): Promise<T> => {
      try {
        stop.throwIfAborted();
        return await run(await this.#serverKey(stop), stop);
      } catch (reason) {
        if (stop.aborted) {
          throw new ManagementError("call-aborted", `${context.call} at ${this.url} was given up`, {
            cause: stop.reason,
            retryable: true,
          });
        }
        throw toManagementError(reason, { url: this.url, ...context });
      }
    };
    return this.#own(work());
  }

  async #serverKey(signal: AbortSignal): Promise<PublicKey> {
    let text: string;
    try {
      text = (await this.#client.getServerKey({}, { signal, timeoutMs: TIMEOUT.getServerKey })).key;
    } catch (reason) {
      const error = toManagementError(reason, { url: this.url, call: "GetServerKey" });
      // This call is the probe of the connection: if it gets no answer, nothing on the connection will. A dial that hangs
      // would otherwise be waited for by every later attempt.
      if (error.code === "unreachable" && !signal.aborted) this.#connection.abort();
      throw error;
    }
    try {
      return PublicKey.parse(text);
    } catch (cause) {
      throw new EnvelopeError("sender-malformed", "the server's key is not base64 of 32 bytes", { cause });
    }
  }

  #pause(delay: Millis, stop: AbortSignal): Promise<void> {
    return new Promise((resolve) => {
      const end = (): void => {
        timer.cancel();
        stop.removeEventListener("abort", end);
        this.#skipPause = () => {};
        resolve();
      };
      const timer = this.#deps.clock.after(delay, end);
      stop.addEventListener("abort", end, { once: true });
      this.#skipPause = end;
    });
  }

  #setState(state: ManagementState): void {
    const before = this.#state;
    const { error } = before;
    if (
      before.connected === state.connected &&
      error?.code === state.error?.code &&
      error?.message === state.error?.message
    )
      return;
    this.#state = state;
    this.events.emit("state", state);
  }

  #own<T>(work: Promise<T>): Promise<T> {
    this.#running.add(work);
    const done = (): void => void this.#running.delete(work);
    work.then(done, done);
    return work;
  }
}
