import { create, toBinary } from "@bufbuild/protobuf";
import { Code, ConnectError, type ConnectRouter } from "@connectrpc/connect";
import { PublicKey } from "#base/keys.ts";
import type { Logger } from "#base/log.ts";
import type { Clock } from "#base/time.ts";
import {
  type LoginRequest,
  type LoginResponse,
  LoginResponseSchema,
  type NetbirdConfig,
  type PeerSystemMeta,
  type PerchHeldMap,
  SyncResponseSchema,
} from "#gen/management_pb.ts";
import { EXTRA_DNS_LABELS_MAX, isDnsLabel } from "../protocol/dns-label.ts";
import { noSessionDeadline } from "../protocol/no-session-deadline.ts";
import { NO_SETUP_KEY } from "../protocol/setup-key.ts";
import { supportsIpv6Overlay } from "../protocol/version.ts";
import { AccountState } from "./account-state.ts";
import { EPHEMERAL_LIFETIME, EphemeralPeers } from "./ephemeral.ts";
import { Infrastructure, type InfrastructureOptions } from "./infrastructure.ts";
import { KeyedQueue } from "./keyed-queue.ts";
import { LoginLimit } from "./login-limit.ts";
import { MapEncoder, removalNotice } from "./map-encoder.ts";
import { mergeMeta, metaProblem, normalizeMeta, SSH_KEY_MAX_BYTES } from "./meta.ts";
import type { Peer, PeerInfo, SetupKeyInfo } from "./model.ts";
import { PresenceBook } from "./presence.ts";
import { registerRoutes } from "./routes.ts";
import * as keys from "./setup-keys.ts";
import type { ManagementStore } from "./store.ts";
import { StoreError } from "./store-error.ts";
import { type SyncSource, SyncStream, TurnQueue } from "./sync-stream.ts";

export interface ManagementServerDeps {
  readonly clock: Clock;
  readonly log: Logger;
  /** Stays open when the server is closed; it belongs to who opened it. */
  readonly store: ManagementStore;
}

export interface ManagementServerOptions extends InfrastructureOptions {
  /** Domain of peer names, without a dot at the end, where the account has none of its own. */
  readonly domain: string;
}

/** Starts serving what the store holds. */
export async function createManagementServer(
  deps: ManagementServerDeps,
  options: ManagementServerOptions,
): Promise<ManagementServer> {
  const account = await deps.store.loadAccount();
  const presence = new PresenceBook(deps);
  await presence.load();
  return new ManagementServer(deps, options, new AccountState(account, options.domain), presence);
}

/**
 * The management service: lets peers in, keeps each one's map up to date, and answers an administrator. Work on one peer is done
 * in the order in which it came; what is answered has been stored. Source: protocol/management.md, section 5.
 */
export class ManagementServer {
  readonly #deps: ManagementServerDeps;
  readonly #state: AccountState;
  readonly #presence: PresenceBook;
  readonly #encoder: MapEncoder;
  readonly #infrastructure: Infrastructure;
  readonly #streams = new Map<PublicKey, SyncStream>();
  readonly #queue = new KeyedQueue<PublicKey>();
  readonly #turns = new TurnQueue();
  readonly #logins: LoginLimit;
  readonly #ephemeral: EphemeralPeers;
  #closed = false;

  /** Use createManagementServer. */
  constructor(
    deps: ManagementServerDeps,
    options: ManagementServerOptions,
    state: AccountState,
    presence: PresenceBook,
  ) {
    this.#deps = deps;
    this.#state = state;
    this.#presence = presence;
    this.#encoder = new MapEncoder(state);
    this.#infrastructure = new Infrastructure(deps.clock, deps.store.relaySecret, options);
    this.#logins = new LoginLimit(deps.clock);
    this.#ephemeral = new EphemeralPeers(deps.clock, (gone) => void this.#forgetEphemeral(gone));
    for (const peer of state.peers.values()) if (peer.ephemeral) this.#ephemeral.left(peer.key);
  }

  /** Key that agents seal for. */
  get publicKey(): PublicKey {
    return this.#deps.store.serverKey.publicKey;
  }

  /** Domain of the peers' names. */
  get domain(): string {
    return this.#state.domain;
  }

  /** Peers with an open Sync stream. */
  get connectedPeers(): number {
    return this.#streams.size;
  }

  /** Registers ManagementService; what is not there is answered UNIMPLEMENTED. */
  routes(router: ConnectRouter): void {
    registerRoutes(router, this, this.#deps);
  }

  /** Login, from the opened request of the owner of `key`. Throws ConnectError with the codes of section 1.7. */
  async login(key: PublicKey, request: LoginRequest): Promise<LoginResponse> {
    this.#admit();
    const { meta } = request;
    if (!meta) throw new ConnectError("the request has no meta", Code.FailedPrecondition);
    this.#checkMeta(meta);
    const sshPublicKey = request.peerKeys?.sshPubKey ?? new Uint8Array(0);
    if (sshPublicKey.length > SSH_KEY_MAX_BYTES) {
      const problem = `SSH key of ${sshPublicKey.length} bytes, the limit is ${SSH_KEY_MAX_BYTES}`;
      throw new ConnectError(problem, Code.InvalidArgument);
    }
    if (!this.#logins.admits(key)) throw new ConnectError("too many logins of this peer", Code.ResourceExhausted);
    return this.#queue.run(key, async () => {
      const known = this.#state.peers.get(key);
      const peer = known
        ? await this.#greet(known, meta, sshPublicKey)
        : await this.#register(key, request, meta, sshPublicKey);
      return create(LoginResponseSchema, {
        netbirdConfig: this.#infrastructure.forLogin(),
        peerConfig: this.#encoder.peerConfig(peer),
        sessionExpiresAt: noSessionDeadline(),
      });
    });
  }

  /**
   * Opens the one Sync stream of a peer; an older one ends. `held`: the agent reads maps in parts and has this one. Throws
   * ConnectError PERMISSION_DENIED for an unknown peer.
   */
  async openStream(key: PublicKey, meta: PeerSystemMeta | undefined, held?: PerchHeldMap): Promise<SyncStream> {
    this.#admit();
    this.#checkMeta(meta);
    return this.#queue.run(key, async () => {
      const peer = this.#state.peers.get(key);
      if (!peer) throw notRegistered(Code.PermissionDenied);
      await this.#storeMeta(peer, meta);
      this.#admit();
      const stream = new SyncStream(this.#deps.clock, this.#infrastructure.relayTokenTtl * 0.75, {
        ...this.#mapsFor(key, held),
        credentials: () => {
          const netbirdConfig = this.#infrastructure.forRefresh();
          return netbirdConfig && toBinary(SyncResponseSchema, create(SyncResponseSchema, { netbirdConfig }));
        },
        turn: () => this.#turns.turn(),
      });
      const older = this.#streams.get(key);
      // From here on changes reach the new stream, whose first map is made later: none is lost between.
      this.#streams.set(key, stream);
      older?.end();
      this.#ephemeral.cancel(key);
      this.#presence.seen(key);
      this.#deps.log.debug("peer connected", { peer: peer.dnsLabel, replaced: older !== undefined });
      return stream;
    });
  }

  /** The reader of a stream went away. Does nothing when a newer stream took its place. */
  closeStream(key: PublicKey, stream: SyncStream): void {
    stream.end();
    if (this.#streams.get(key) !== stream) return;
    this.#streams.delete(key);
    const peer = this.#state.peers.get(key);
    if (!peer) return;
    this.#presence.seen(key);
    if (peer.ephemeral) this.#ephemeral.left(key);
    this.#deps.log.debug("peer disconnected", { peer: peer.dnsLabel });
  }

  /** SyncMeta. Throws ConnectError NOT_FOUND for an unknown peer. */
  async syncMeta(key: PublicKey, meta: PeerSystemMeta | undefined): Promise<void> {
    this.#admit();
    if (!meta) throw new ConnectError("the request has no meta", Code.FailedPrecondition);
    this.#checkMeta(meta);
    await this.#queue.run(key, async () => {
      const peer = this.#state.peers.get(key);
      if (!peer) throw notRegistered(Code.NotFound);
      await this.#storeMeta(peer, meta);
      this.#notifyOthers(this.#current(key));
    });
  }

  /** Logout on the peer's own request. Throws ConnectError NOT_FOUND for an unknown peer. */
  async logout(key: PublicKey): Promise<void> {
    this.#admit();
    if (!(await this.deletePeer(key))) throw notRegistered(Code.NotFound);
  }

  /** All peers, in order of registration. */
  listPeers(): readonly PeerInfo[] {
    return [...this.#state.peers.values()].map((peer) => {
      const { seenAt, loginAt } = this.#presence.get(peer.key);
      const connected = this.#streams.has(peer.key);
      return { ...peer, connected, lastSeenAt: connected ? this.#deps.clock.wall() : seenAt, lastLoginAt: loginAt };
    });
  }

  /** Forgets a peer, tells it and the others (section 5.8). False: there is none with this key. */
  async deletePeer(key: PublicKey): Promise<boolean> {
    return this.#queue.run(key, async () => {
      const peer = this.#state.peers.get(key);
      if (!peer) return false;
      this.#dropPeer(peer, await this.#deps.store.deletePeers([key], true));
      this.#deps.log.info("peer deleted", { peer: peer.dnsLabel });
      return true;
    });
  }

  /** Whether the network asks its peers to connect lazily. */
  get lazy(): boolean {
    return this.#state.lazy;
  }

  /** Switches lazy connections for the network and tells every peer. */
  async setLazy(lazy: boolean): Promise<void> {
    this.#state.setLazy(lazy, await this.#deps.store.setLazy(lazy));
    for (const stream of this.#streams.values()) stream.update();
  }

  /** Makes a setup key; see createSetupKey in setup-keys.ts. */
  createSetupKey(options: keys.NewSetupKey): Promise<{ readonly key: string; readonly info: SetupKeyInfo }> {
    return keys.createSetupKey(this.#deps.store, options);
  }

  listSetupKeys(): Promise<readonly SetupKeyInfo[]> {
    return keys.listSetupKeys(this.#deps.store);
  }

  /** By id, or by the first characters of the id or the key. */
  revokeSetupKey(idOrPrefix: string): Promise<SetupKeyInfo> {
    return keys.revokeSetupKey(this.#deps.store, idOrPrefix);
  }

  createAdminToken(options: keys.NewAdminToken = {}): Promise<{ readonly id: string; readonly token: string }> {
    return keys.createAdminToken(this.#deps.store, options);
  }

  /** How many admin tokens are valid; none before the first start. */
  countAdminTokens(): Promise<number> {
    return keys.countAdminTokens(this.#deps.store);
  }

  verifyAdminToken(token: string): Promise<boolean> {
    return keys.verifyAdminToken(this.#deps.store, token);
  }

  /** Ends every stream in order, refuses what comes after, and resolves when everything is stored. Idempotent. */
  async close(): Promise<void> {
    this.#closed = true;
    this.#ephemeral.close();
    for (const stream of this.#streams.values()) stream.end();
    await this.#queue.idle();
    for (const key of this.#streams.keys()) this.#presence.seen(key);
    this.#streams.clear();
    await this.#presence.close();
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.close();
  }

  /** A known peer came back: keeps what it says of itself and decides about IPv6 anew. */
  async #greet(peer: Peer, incoming: PeerSystemMeta, sshPublicKey: Uint8Array): Promise<Peer> {
    this.#presence.seen(peer.key, true);
    const meta = mergeMeta(peer.meta, incoming);
    const ipv6Usable = supportsIpv6Overlay(meta);
    const visible = ipv6Usable !== peer.ipv6Usable || !Buffer.from(sshPublicKey).equals(Buffer.from(peer.sshPublicKey));
    if (meta === peer.meta && !visible) return peer;
    const changed: Peer = { ...peer, meta, ipv6Usable, sshPublicKey };
    await this.#storePeer(peer, changed, visible);
    return changed;
  }

  async #register(
    key: PublicKey,
    request: LoginRequest,
    incoming: PeerSystemMeta,
    sshPublicKey: Uint8Array,
  ): Promise<Peer> {
    const { jwtToken, setupKey, dnsLabels } = request;
    // A stock agent with a token sends the zero key beside it: the token counts, and we have nobody who could check it.
    if (jwtToken !== "") throw new ConnectError("this server has no user login: use a setup key", Code.InvalidArgument);
    if (setupKey === "" || setupKey === NO_SETUP_KEY) throw notRegistered(Code.PermissionDenied);
    const extraLabels = [...new Set(dnsLabels.map((label) => label.toLowerCase()))];
    if (extraLabels.length > EXTRA_DNS_LABELS_MAX || !extraLabels.every(isDnsLabel)) {
      const problem = `extra DNS labels are up to ${EXTRA_DNS_LABELS_MAX} labels of letters, digits and hyphens`;
      throw new ConnectError(problem, Code.InvalidArgument);
    }
    const meta = normalizeMeta(incoming);
    const ipv6Usable = supportsIpv6Overlay(meta);
    try {
      const { peer, serial } = await this.#deps.store.registerPeer({
        key,
        setupKey,
        meta,
        ipv6Usable,
        sshPublicKey,
        extraLabels,
      });
      this.#state.put(peer, serial);
      this.#presence.seen(key, true);
      if (peer.ephemeral) this.#ephemeral.left(key);
      this.#notifyOthers(peer);
      this.#deps.log.info("peer registered", { peer: peer.dnsLabel, address: peer.address });
      return peer;
    } catch (error) {
      throw registrationError(error);
    }
  }

  /** What Sync and SyncMeta bring; the decision about IPv6 stays that of the last Login. */
  async #storeMeta(peer: Peer, incoming: PeerSystemMeta | undefined): Promise<void> {
    const meta = mergeMeta(peer.meta, incoming);
    if (meta !== peer.meta) await this.#storePeer(peer, { ...peer, meta }, false);
  }

  /** `visible`: maps show more than another version, so the serial rises. */
  async #storePeer(before: Peer, after: Peer, visible: boolean): Promise<void> {
    const { meta, ipv6Usable, sshPublicKey } = after;
    const serial = await this.#deps.store.updatePeer(after.key, { meta, ipv6Usable, sshPublicKey }, visible);
    const forwarderPort = this.#state.forwarderPort;
    this.#state.put(after, serial);
    if (this.#state.forwarderPort !== forwarderPort) {
      for (const [key, stream] of this.#streams) if (key !== after.key) stream.update();
    } else if (
      visible ||
      after.meta.netbirdVersion !== before.meta.netbirdVersion ||
      after.meta.hostname !== before.meta.hostname
    ) {
      this.#notifyOthers(after);
    }
  }

  #dropPeer(peer: Peer, serial: number): void {
    const forwarderPort = this.#state.forwarderPort;
    this.#state.remove(peer.key, serial);
    this.#ephemeral.cancel(peer.key);
    this.#presence.forget(peer.key);
    const stream = this.#streams.get(peer.key);
    this.#streams.delete(peer.key);
    stream?.end(toBinary(SyncResponseSchema, removalNotice(serial, this.#state.forwarderPort)));
    if (this.#state.forwarderPort === forwarderPort) this.#notifyOthers(peer);
    else for (const other of this.#streams.values()) other.update();
  }

  /** Their maps go out with the same serial (section 5.2). */
  async #forgetEphemeral(candidates: readonly PublicKey[]): Promise<void> {
    const wall = this.#deps.clock.wall();
    for (const key of candidates) {
      await this.#queue
        .run(key, async () => {
          const peer = this.#state.peers.get(key);
          const away = wall - this.#presence.get(key).seenAt;
          // Ten seconds of mercy for a clock that was moved.
          if (!peer || this.#closed || this.#streams.has(key)) return;
          if (away < EPHEMERAL_LIFETIME - 10_000) return this.#ephemeral.left(key);
          this.#dropPeer(peer, await this.#deps.store.deletePeers([key], false));
          this.#deps.log.info("ephemeral peer forgotten", { peer: peer.dnsLabel });
        })
        .catch((err: unknown) => {
          this.#deps.log.error("ephemeral peer not forgotten", { peer: PublicKey.short(key), err });
          this.#ephemeral.left(key);
        });
    }
  }

  /** Makes the maps of one stream. A stream in parts remembers what it has told, and nothing else. */
  #mapsFor(key: PublicKey, held: PerchHeldMap | undefined): Pick<SyncSource, "first" | "map"> {
    const encoder = this.#encoder;
    const current = (): Peer => this.#current(key);
    const config = (): NetbirdConfig => this.#infrastructure.forSync();
    if (!held) {
      return {
        first: () => [encoder.encode(current(), config())].values(),
        map: () => [encoder.encode(current())].values(),
      };
    }
    let told = held;
    const parts = function* (first?: NetbirdConfig): Generator<Uint8Array, void> {
      told = yield* encoder.encodeParts(current, told, first);
    };
    return { first: () => parts(config()), map: () => parts() };
  }

  /** Going online or offline is no reason to call this: maps do not show it. */
  #notifyOthers(peer: Peer): void {
    for (const [key, stream] of this.#streams) {
      const other = this.#state.peers.get(key);
      if (other && key !== peer.key && this.#state.areConnected(other, peer)) stream.update();
    }
  }

  #current(key: PublicKey): Peer {
    const peer = this.#state.peers.get(key);
    if (!peer) throw notRegistered(Code.PermissionDenied);
    return peer;
  }

  #admit(): void {
    if (this.#closed) throw new ConnectError("the server is shutting down", Code.Unavailable);
  }

  #checkMeta(meta: PeerSystemMeta | undefined): void {
    const problem = metaProblem(meta);
    if (problem) throw new ConnectError(problem, Code.InvalidArgument);
  }
}

/** PERMISSION_DENIED makes an agent register or ask for a login; any other code makes it retry (section 1.7). */
function notRegistered(code: Code): ConnectError {
  return new ConnectError("this peer is not registered", code);
}

function registrationError(error: unknown): unknown {
  if (!(error instanceof StoreError)) return error;
  switch (error.code) {
    case "setup-key-refused":
      // Stock says NOT_FOUND, which costs a stock agent two minutes of retries; this makes it tell its user at once.
      return new ConnectError(error.message, Code.PermissionDenied);
    case "extra-labels-refused":
    case "peer-exists":
      return new ConnectError(error.message, Code.FailedPrecondition);
    case "network-full":
      return new ConnectError(error.message, Code.ResourceExhausted);
    default:
      return error;
  }
}
