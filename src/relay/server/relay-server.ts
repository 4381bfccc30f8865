import type { IncomingMessage } from "node:http";
import type { Duplex } from "node:stream";
import { type WebSocket, WebSocketServer } from "ws";
import type { Logger } from "#base/log.ts";
import { type RelayTokenVerdict, verifyRelayToken } from "#base/relay-token.ts";
import type { Clock, Millis, Timer } from "#base/time.ts";
import { QueueBudget } from "../protocol/flow-queue.ts";
import {
  AUTH_MAX_BYTES,
  CLOSE_MESSAGE,
  encodeAuthResponse,
  parseRelayMessage,
  RELAY_HEADER_BYTES,
  RELAY_MESSAGE_MAX_BYTES,
  RELAY_PATH,
  RELAY_VERSION,
  RelayType,
  TRANSPORT_HEADER_BYTES,
} from "../protocol/messages.ts";
import { HEALTH_PROBE_ID, PEER_ID_BYTES, PeerId } from "../protocol/peer-id.ts";
import { readFrames } from "./frame-reader.ts";
import { PresenceIndex } from "./presence.ts";
import { RelayLink } from "./relay-link.ts";

/** A peer counts as active when it sent a Transport within this time. */
const ACTIVE_MS: Millis = 30_000;

export interface RelayServerDeps {
  readonly clock: Clock;
  readonly log: Logger;
}

export interface RelayServerOptions {
  /** Sent to agents exactly as given; other agents compare it byte for byte. */
  readonly instanceUrl: string;
  /** `relayTokenKey(secret)`. */
  readonly tokenKey: Uint8Array;
  /** From the upgrade to a valid Auth. Default 10 s. */
  readonly authTimeoutMs?: Millis;
  /** Bytes of data waiting for one agent; the oldest of the longest flow is dropped above it. Default 1280 KiB. */
  readonly queueMaxBytes?: number;
  /** Data that waited longer is dropped. Default 1 s. */
  readonly queueMaxAgeMs?: Millis;
  /** Bytes waiting for all agents together; each queue may hold as much as is still free of it. Default 64 MiB. */
  readonly queuesMaxBytes?: number;
  /** An agent that takes nothing for so long is dropped. Default 10 s. */
  readonly stallMs?: Millis;
  /** Pause between health checks. Default 25 s, the most stock agents allow. */
  readonly healthIntervalMs?: Millis;
  /** An agent silent for longer at a health check is dropped. Default 45 s. */
  readonly healthWindowMs?: Millis;
  /** Others learn of an abrupt loss after this time, unless the agent is back. Default 2.5 s. */
  readonly offlineGraceMs?: Millis;
  /** Connections without Auth, altogether and per source address. Defaults 4096 and 256. */
  readonly pendingMax?: number;
  readonly pendingMaxPerAddress?: number;
  /** Whether X-Real-Ip and X-Real-Port of this direct peer are believed. Default: of nobody. */
  readonly isTrustedProxy?: (address: string) => boolean;
}

export interface RelayServerCounters {
  readonly peers: number;
  /** Peers that sent a Transport within 30 s. */
  readonly peersActive: number;
  readonly pending: number;
  readonly authenticated: number;
  /** Connections that ended without a valid Auth. */
  readonly refused: number;
  /** Connections that took the place of another with the same ID. */
  readonly reconnections: number;
  /** Whole Transport messages. */
  readonly messagesReceived: number;
  readonly bytesReceived: number;
  readonly messagesForwarded: number;
  readonly bytesForwarded: number;
  /** Transports for IDs that are not connected. */
  readonly unknownDestination: number;
  /** Transports dropped in the queues of slow agents. */
  readonly dropped: number;
  /** Those of them that fell to the limit of all queues together. */
  readonly droppedForAll: number;
  /** Those of them that told a sender to slow down; see QueueControl. */
  readonly droppedEarly: number;
  /** Bytes waiting for agents now. */
  readonly queuedBytes: number;
  /** Unknown or broken messages of authenticated agents. */
  readonly ignored: number;
}

/**
 * A relay: forwards opaque payloads between peer IDs (relay.md, sections 6 and 15.2).
 *
 *   upgrade ── 10 s, Auth ──> AuthResponse queued ──> in the map ──> others told ──> messages handled in order
 *                 └── anything else: dropped without a word
 *
 * Reading never waits: each destination has a bounded queue, and what its agent does not take in time is dropped there, and
 * now and then one message before that, so that senders slow down (QueueControl). What arrives in one turn of the event loop
 * leaves in one write per destination, or in one for each large read. It owns no port: a server that shares one hands it
 * upgrades.
 */
export class RelayServer {
  readonly #clock: Clock;
  readonly #log: Logger;
  readonly #options: Required<RelayServerOptions>;
  readonly #authResponse: Buffer;
  readonly #budget: QueueBudget;
  readonly #wss: WebSocketServer;
  readonly #links = new Map<PeerId, RelayLink>();
  readonly #presence = new PresenceIndex();
  /** Peers lost a moment ago whose absence is not told yet. */
  readonly #graces = new Map<PeerId, Timer>();
  readonly #pending = new Map<WebSocket, Timer>();
  readonly #pendingByAddress = new Map<string, number>();
  readonly #counters = {
    authenticated: 0,
    refused: 0,
    reconnections: 0,
    messagesReceived: 0,
    bytesReceived: 0,
    messagesForwarded: 0,
    bytesForwarded: 0,
    unknownDestination: 0,
    ignored: 0,
  };
  /** Of links that are gone. */
  #droppedBefore = 0;
  #droppedEarlyBefore = 0;
  #flushes: (() => void)[] = [];
  #closed = false;

  /** Throws RelayMessageError `relay-url-length` for an instance URL that does not fit. */
  constructor(deps: RelayServerDeps, options: RelayServerOptions) {
    this.#clock = deps.clock;
    this.#log = deps.log;
    this.#options = {
      instanceUrl: options.instanceUrl,
      tokenKey: options.tokenKey,
      authTimeoutMs: options.authTimeoutMs ?? 10_000,
      queueMaxBytes: options.queueMaxBytes ?? 1280 * 1024,
      queueMaxAgeMs: options.queueMaxAgeMs ?? 1000,
      queuesMaxBytes: options.queuesMaxBytes ?? 64 * 1024 * 1024,
      stallMs: options.stallMs ?? 10_000,
      healthIntervalMs: options.healthIntervalMs ?? 25_000,
      healthWindowMs: options.healthWindowMs ?? 45_000,
      offlineGraceMs: options.offlineGraceMs ?? 2_500,
      pendingMax: options.pendingMax ?? 4096,
      pendingMaxPerAddress: options.pendingMaxPerAddress ?? 256,
      isTrustedProxy: options.isTrustedProxy ?? (() => false),
    };
    this.#budget = new QueueBudget(this.#options.queuesMaxBytes);
    this.#authResponse = encodeAuthResponse(options.instanceUrl);
    this.#wss = new WebSocketServer({
      noServer: true,
      clientTracking: false,
      perMessageDeflate: false,
      maxPayload: RELAY_MESSAGE_MAX_BYTES,
      // Stock agents ask for no subprotocol; whatever another asks for, none is selected.
      handleProtocols: () => false,
    });
  }

  /** Takes a WebSocket upgrade of `/relay`, whatever its Origin; false when it is for somebody else, untouched then. */
  handleUpgrade(request: IncomingMessage, socket: Duplex, head: Buffer): boolean {
    if ((request.url ?? "").split("?", 1)[0] !== RELAY_PATH) return false;
    const address = this.#addressOf(request);
    if (
      this.#closed ||
      this.#pending.size >= this.#options.pendingMax ||
      (this.#pendingByAddress.get(address.host) ?? 0) >= this.#options.pendingMaxPerAddress
    ) {
      this.#counters.refused++;
      socket.destroy();
      return true;
    }
    this.#wss.handleUpgrade(request, socket, head, (ws) => this.#accept(ws, socket, address));
    return true;
  }

  counters(): RelayServerCounters {
    const now = this.#clock.now();
    let peersActive = 0;
    let dropped = this.#droppedBefore;
    let droppedEarly = this.#droppedEarlyBefore;
    for (const link of this.#links.values()) {
      if (now - link.lastTransportAt <= ACTIVE_MS) peersActive++;
      dropped += link.dropped;
      droppedEarly += link.droppedEarly;
    }
    const { bytes: queuedBytes, dropped: droppedForAll } = this.#budget;
    const pending = this.#pending.size;
    return {
      peers: this.#links.size,
      peersActive,
      pending,
      dropped,
      droppedForAll,
      droppedEarly,
      queuedBytes,
      ...this.#counters,
    };
  }

  isConnected(peer: PeerId): boolean {
    return this.#links.has(peer);
  }

  /** Says Close to every agent and drops all connections, within 3 s. Idempotent. */
  async close(): Promise<void> {
    if (this.#closed) return;
    this.#closed = true;
    for (const timer of this.#graces.values()) timer.cancel();
    this.#graces.clear();
    for (const [ws, timer] of this.#pending) {
      timer.cancel();
      ws.terminate();
    }
    const links = [...this.#links.values()];
    this.#links.clear();
    let late: Timer | undefined;
    const deadline = new Promise<void>((resolve) => {
      late = this.#clock.after(3_000, resolve);
    });
    await Promise.race([Promise.all(links.map((link) => link.finish(CLOSE_MESSAGE))), deadline]);
    late?.cancel();
    for (const link of links) link.cut();
  }

  [Symbol.asyncDispose](): Promise<void> {
    return this.close();
  }

  /** A connection without Auth: bounded in time, number and bytes. */
  #accept(ws: WebSocket, socket: Duplex, address: RemoteAddress): void {
    let link: RelayLink | undefined;
    const timer = this.#clock.after(this.#options.authTimeoutMs, () => ws.terminate());
    this.#pending.set(ws, timer);
    this.#pendingByAddress.set(address.host, (this.#pendingByAddress.get(address.host) ?? 0) + 1);
    const settle = (): void => {
      if (!this.#pending.delete(ws)) return;
      timer.cancel();
      const left = (this.#pendingByAddress.get(address.host) ?? 1) - 1;
      if (left > 0) this.#pendingByAddress.set(address.host, left);
      else this.#pendingByAddress.delete(address.host);
    };
    ws.on("error", (err) => this.#log.debug("relay connection broken", { remote: address.text, err }));
    ws.on("close", () => {
      if (this.#pending.has(ws)) this.#counters.refused++;
      settle();
      if (link) this.#remove(link);
    });
    const receive = (data: Buffer): void => {
      // Frames that are still in the buffer of a connection which was dropped.
      if (ws.readyState !== ws.OPEN) return;
      if (link) return this.#receive(link, data);
      const id = this.#authenticate(data, address);
      if (id === undefined) return ws.terminate();
      settle();
      link = this.#add(id, ws, socket, address);
    };
    ws.on("message", (data, isBinary) => {
      if (Buffer.isBuffer(data) && isBinary) receive(data);
      else ws.terminate();
    });
    readFrames(socket, receive, RELAY_MESSAGE_MAX_BYTES);
  }

  /** The peer ID of a valid Auth. */
  #authenticate(data: Buffer, address: RemoteAddress): PeerId | undefined {
    const message = data.length <= AUTH_MAX_BYTES ? parseRelayMessage(data) : undefined;
    if (message?.kind !== "auth") {
      this.#log.debug("relay connection refused", { remote: address.text, reason: "no Auth" });
      return undefined;
    }
    const verdict: RelayTokenVerdict = verifyRelayToken(
      this.#options.tokenKey,
      message.token,
      Math.floor(this.#clock.wall() / 1000),
    );
    if (verdict.kind === "valid") return message.peer;
    const level = message.peer === HEALTH_PROBE_ID ? "debug" : "info";
    this.#log[level]("relay connection refused", {
      remote: address.text,
      peer: PeerId.format(message.peer),
      reason: verdict.kind,
    });
    return undefined;
  }

  #add(id: PeerId, ws: WebSocket, socket: Duplex, address: RemoteAddress): RelayLink {
    const link = new RelayLink({ clock: this.#clock, schedule: this.#schedule, budget: this.#budget }, this.#options, {
      id,
      ws,
      socket,
      remoteAddress: address.text,
    });
    // First in the queue, so that no frame of another peer overtakes it.
    link.sendOwn(this.#authResponse);
    const previous = this.#links.get(id);
    this.#links.set(id, link);
    this.#counters.authenticated++;
    this.#graces.get(id)?.cancel();
    this.#graces.delete(id);
    if (previous) {
      this.#counters.reconnections++;
      this.#log.info("relay connection replaced", {
        peer: PeerId.format(id),
        from: previous.remoteAddress,
        to: address.text,
      });
      this.#forget(previous);
      // After the AuthResponse has left, so that an agent which moves sees its new connection before it loses the old one.
      this.#schedule(() => previous.cut());
    }
    this.#presence.noteOnline(id);
    return link;
  }

  /** One message of an authenticated agent. The buffer is ours. */
  #receive(link: RelayLink, data: Buffer): void {
    link.noteSeen();
    if (data.length < RELAY_HEADER_BYTES || data[0] !== RELAY_VERSION) return link.cut();
    if (data[1] === RelayType.transport) return this.#forward(link, data);
    const message = parseRelayMessage(data);
    if (message.kind === "health-check") return;
    if (message.kind === "close") {
      link.saidClose = true;
      this.#remove(link);
    } else if (message.kind === "peer-list" && message.type === RelayType.subscribe) {
      this.#presence.subscribe(link, message.peers);
      for (const peer of message.peers) if (this.#links.has(peer)) link.notePresence(peer, true);
    } else if (message.kind === "peer-list" && message.type === RelayType.unsubscribe) {
      this.#presence.unsubscribe(link, message.peers);
    } else {
      this.#counters.ignored++;
    }
  }

  #forward(source: RelayLink, data: Buffer): void {
    if (data.length < TRANSPORT_HEADER_BYTES) {
      this.#counters.ignored++;
      return;
    }
    source.lastTransportAt = this.#clock.now();
    this.#counters.messagesReceived++;
    this.#counters.bytesReceived += data.length;
    const destination = this.#links.get(data.toString("latin1", RELAY_HEADER_BYTES, TRANSPORT_HEADER_BYTES) as PeerId);
    if (!destination) {
      this.#counters.unknownDestination++;
      return;
    }
    source.idBytes.copy(data, RELAY_HEADER_BYTES, 0, PEER_ID_BYTES);
    this.#counters.messagesForwarded++;
    this.#counters.bytesForwarded += data.length;
    destination.forward(data, source);
  }

  /** A connection ended. */
  #remove(link: RelayLink): void {
    link.cut();
    this.#presence.remove(link);
    if (this.#links.get(link.id) !== link) return;
    this.#links.delete(link.id);
    this.#forget(link);
    if (this.#closed) return;
    if (link.saidClose) {
      this.#presence.noteOffline(link.id);
    } else {
      const grace = this.#clock.after(this.#options.offlineGraceMs, () => {
        this.#graces.delete(link.id);
        this.#presence.noteOffline(link.id);
      });
      this.#graces.set(link.id, grace);
    }
  }

  /** Ends the subscriptions of a link and keeps its counts. */
  #forget(link: RelayLink): void {
    this.#presence.remove(link);
    this.#droppedBefore += link.dropped;
    this.#droppedEarlyBefore += link.droppedEarly;
  }

  /** Collects the flushes of all links for the end of this turn of the event loop: one immediate for all. */
  readonly #schedule = (flush: () => void): void => {
    if (this.#flushes.push(flush) === 1) setImmediate(this.#runFlushes);
  };

  readonly #runFlushes = (): void => {
    // A flush may ask for another one (presence first, then the write), which runs in the same pass.
    for (const flush of this.#flushes) flush();
    this.#flushes = [];
  };

  #addressOf(request: IncomingMessage): RemoteAddress {
    const { remoteAddress = "", remotePort = 0 } = request.socket;
    const realIp = request.headers["x-real-ip"];
    const realPort = request.headers["x-real-port"];
    if (typeof realIp === "string" && typeof realPort === "string" && this.#options.isTrustedProxy(remoteAddress))
      return { host: realIp, text: `${realIp} port ${realPort}` };
    return { host: remoteAddress, text: `${remoteAddress} port ${remotePort}` };
  }
}

interface RemoteAddress {
  readonly host: string;
  /** For logs. */
  readonly text: string;
}

/** A relay for a server that routes upgrades by path. */
export function createRelayServer(deps: RelayServerDeps, options: RelayServerOptions): RelayServer {
  return new RelayServer(deps, options);
}
