import { Backoff } from "#base/backoff.ts";
import { messageOf, type PerchError } from "#base/errors.ts";
import { PresharedKey, type PrivateKey, type PublicKey } from "#base/keys.ts";
import type { Logger } from "#base/log.ts";
import type { Clock, Millis, Timer } from "#base/time.ts";
import type { LoginResponse } from "#gen/management_pb.ts";
import { ManagementClient } from "#management/client/management-client.ts";
import type { CaptureOptions, PacketCapture } from "#wireguard/capture.ts";
import type { AgentControl, AgentSettings, AgentState, AgentStatus, ChangedPeers, PeerStatus } from "./control.ts";
import { type DoctorDeps, examine, examinePair } from "./doctor.ts";
import { AgentError } from "./errors.ts";
import type { AgentExamination, PairExamination } from "./examination.ts";
import { loadIdentity } from "./identity.ts";
import { WakeMeter } from "./metrics/wake-meter.ts";
import { PinStore } from "./pin-store.ts";
import { probeDevice } from "./routing/device-linux.ts";
import { openSession, type Session } from "./session.ts";
import { buildStatus, findPeerStatus, peerStatuses } from "./status.ts";
import { readSystemMeta } from "./system-meta.ts";
import { timestampFile } from "./timestamp-file.ts";

export interface AgentDeps {
  readonly clock: Clock;
  readonly log: Logger;
  /** Directory with the agent's identity and settings, mode 0700. */
  readonly stateDir: string;
}

/** Listeners of `onChange` hear of changes at most this often, in milliseconds. */
const CHANGE_INTERVAL = 100;
/** Failures after which only a login with a good setup key helps. */
const NEEDS_LOGIN: ReadonlySet<string> = new Set([
  "needs-login",
  "permission-denied",
  "login-expired",
  "setup-key-invalid",
]);
/** Beyond so many peers in one change it is cheaper to look at all. */
const CHANGED_PEERS_MAX = 4096;
/** Pauses before the tunnel is built again after its device was lost or management sent us away. */
const REBUILD_BACKOFF = { start: 1000, factor: 1.7, ceiling: 60_000, jitter: 0.3 } as const;

/**
 * The agent of one machine: identity, settings and the one session that is up.
 *
 *   down --up--> starting --first map--> up --down--> stopping --> down
 *                   |                     |
 *                   '-> down (error)      '-> needs-login (management forgot us), starting (device lost)
 */
export function createAgent(deps: AgentDeps): AgentControl & AsyncDisposable {
  return new Agent(deps);
}

class Agent implements AgentControl, AsyncDisposable {
  readonly #deps: AgentDeps;
  readonly #listeners = new Set<(peers: ChangedPeers) => void>();
  /** Not told to the listeners yet. */
  #changedPeers: Set<PublicKey> | "all" = new Set();
  readonly #pins: PinStore;
  readonly #wakes = new WakeMeter();
  #state: AgentState = "down";
  #reason: string | undefined;
  #settings: AgentSettings | undefined;
  #session: Session | undefined;
  #key: PrivateKey | undefined;
  /** Set while the user wants the tunnel; aborted by `down`. */
  #wanted: AbortController | undefined;
  #starting: Promise<void> | undefined;
  /** The end of the last session while it is under way. */
  #closing: Promise<void> | undefined;
  #changeTimer: Timer | undefined;
  #toldAt: Millis = Number.NEGATIVE_INFINITY;

  constructor(deps: AgentDeps) {
    this.#deps = deps;
    this.#pins = new PinStore(deps.stateDir);
  }

  async up(settings: AgentSettings, signal: AbortSignal): Promise<void> {
    if (this.#wanted)
      throw new AgentError("already-up", "the tunnel is up already; `perch down` first to change settings");
    const wanted = new AbortController();
    this.#wanted = wanted;
    this.#settings = settings;
    try {
      this.#starting = this.#start(settings, AbortSignal.any([signal, wanted.signal]));
      await this.#starting;
      // Used up: were this machine deleted from the network, it must not register itself again.
      this.#settings = { ...this.#settings, setupKey: undefined };
    } catch (error) {
      if (this.#wanted === wanted) this.#wanted = undefined;
      const needsLogin = NEEDS_LOGIN.has((error as PerchError).code);
      this.#become(needsLogin ? "needs-login" : "down", messageOf(error));
      throw error;
    } finally {
      this.#starting = undefined;
    }
  }

  async login(settings: AgentSettings, signal: AbortSignal): Promise<void> {
    if (this.#wanted) throw new AgentError("already-up", "the tunnel is up already: this machine is logged in");
    this.#settings = settings;
    const management = this.#managementClient(settings);
    try {
      await this.#login(management, settings, signal);
      this.#become("down");
    } finally {
      await management.close();
    }
  }

  async down(): Promise<void> {
    const wanted = this.#wanted;
    this.#wanted = undefined;
    wanted?.abort(new AgentError("aborted", "`perch down` was asked for"));
    await this.#starting?.catch(() => {});
    if (this.#session || this.#closing) this.#become("stopping");
    await this.#closeSession();
    this.#become("down");
  }

  async deregister(settings: AgentSettings): Promise<void> {
    const session = this.#session;
    const client = session?.management ?? this.#managementClient(settings);
    try {
      await client.logout();
    } finally {
      if (!session) await client.close();
    }
    await this.down();
    this.#become("needs-login", "deregistered");
  }

  status(): AgentStatus {
    return buildStatus({
      state: this.#state,
      reason: this.#reason,
      settings: this.#settings,
      session: this.#session,
      publicKey: this.#key?.publicKey,
      isPinned: (key) => this.#pins.has(key),
      wakeTotals: this.#wakes.totals,
    });
  }

  peers(): Iterable<PeerStatus> {
    return this.#session ? peerStatuses(this.#session, (key) => this.#pins.has(key)) : [];
  }

  peerStatus(key: PublicKey): PeerStatus | undefined {
    return this.#session && findPeerStatus(this.#session, key, (each) => this.#pins.has(each));
  }

  onChange(listener: (peers: ChangedPeers) => void): () => void {
    this.#listeners.add(listener);
    return () => void this.#listeners.delete(listener);
  }

  wakePeer(key: PublicKey): void {
    this.#running().engine.connections.wake(key, "perch peers wake");
  }

  sleepPeer(key: PublicKey): void {
    this.#running().engine.connections.sleep(key, "perch peers sleep");
  }

  pinPeer(key: PublicKey, pinned: boolean): void {
    this.#running().engine.connections.pin(key, pinned);
    this.#pins.set(key, pinned);
  }

  setLazy(value: boolean | undefined): void {
    if (this.#settings) {
      this.#settings = {
        ...this.#settings,
        lazy: value === undefined ? undefined : { enabled: value, source: "setting" },
      };
    }
    this.#session?.engine.setLazy(value);
    this.#changed();
  }

  isWorking(): boolean {
    return this.#session?.device.isWorking?.() ?? true;
  }

  capture(options: CaptureOptions): PacketCapture {
    const { device } = this.#running();
    if (!device.startCapture)
      throw new AgentError(
        "unsupported-device",
        `the packets of ${device.kind} do not pass the agent: see them with tcpdump -i ${device.interfaceName}`,
      );
    return device.startCapture(options);
  }

  examine(signal: AbortSignal): Promise<AgentExamination> {
    return examine(this.#doctor(), signal);
  }

  examinePair(key: PublicKey): Promise<PairExamination> {
    return examinePair(this.#doctor(), key);
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.down();
    this.#changeTimer?.cancel();
    this.#listeners.clear();
  }

  #doctor(): DoctorDeps {
    return {
      clock: this.#deps.clock,
      settings: this.#settings,
      session: this.#session,
      status: () => this.status(),
    };
  }

  /** Login, device, servers, first map; undoes what it did when it fails. */
  async #start(settings: AgentSettings, signal: AbortSignal): Promise<void> {
    this.#become("starting", "logging in");
    this.#key = loadIdentity(this.#deps.stateDir);
    const presharedKey = settings.presharedKey === undefined ? undefined : PresharedKey.parse(settings.presharedKey);
    const management = this.#managementClient(settings);
    let session: Session;
    try {
      const login = await this.#login(management, settings, signal, () => probeDevice(this.#deps, settings));
      this.#become("starting", "creating the interface");
      session = await openSession(this.#deps, {
        settings,
        presharedKey,
        key: this.#key,
        timestampMark: timestampFile(this.#deps.stateDir, this.#deps.log),
        management,
        login,
        pinned: this.#pins.all(),
        changed: (peers) => this.#changed(peers),
        noted: (peer, entry) => this.#wakes.note(peer, entry),
      });
    } catch (error) {
      await management.close();
      throw error;
    }
    this.#session = session;
    try {
      signal.throwIfAborted();
      this.#become("starting", "waiting for the network map");
      await session.start(signal);
      this.#become("up");
      void session.ended.then((end) => this.#sessionEnded(session, end.needsLogin, end.reason));
    } catch (error) {
      await this.#closeSession();
      throw error;
    }
  }

  /**
   * A known peer logs in by its key; an unknown one registers with the setup key (management document, section 4.2), unless
   * `probe` rejects.
   */
  async #login(
    management: ManagementClient,
    settings: AgentSettings,
    signal: AbortSignal,
    probe?: () => Promise<void>,
  ): Promise<LoginResponse> {
    const meta = readSystemMeta({ hostname: settings.hostname, ownInterface: settings.interfaceName });
    try {
      return await management.login({ meta, signal });
    } catch (error) {
      if ((error as PerchError).code !== "permission-denied") throw error;
      if (settings.setupKey === undefined) {
        throw new AgentError(
          "needs-login",
          `${settings.managementUrl} does not know this machine yet: give a setup key with --setup-key or --setup-key-file`,
          { cause: error },
        );
      }
      await probe?.();
      await management.login({ setupKey: settings.setupKey, meta, signal });
      return await management.login({ meta, signal });
    }
  }

  #managementClient(settings: AgentSettings): ManagementClient {
    this.#key ??= loadIdentity(this.#deps.stateDir);
    const { clock, log } = this.#deps;
    return new ManagementClient(
      { clock, log: log.with({ part: "management" }) },
      { url: settings.managementUrl, key: this.#key },
    );
  }

  /** The tunnel ended by itself: rebuilt as long as it is wanted, unless the user has to log in first. */
  async #sessionEnded(session: Session, needsLogin: boolean, reason: string): Promise<void> {
    if (this.#session !== session) return;
    const wanted = this.#wanted;
    this.#deps.log.warn("the tunnel ended", { reason, needsLogin });
    await this.#closeSession();
    if (!wanted || wanted.signal.aborted) return;
    if (needsLogin) this.#giveUp(wanted, reason);
    else await this.#rebuild(wanted, reason);
  }

  async #rebuild(wanted: AbortController, reason: string): Promise<void> {
    const { clock, log } = this.#deps;
    const pauses = new Backoff(REBUILD_BACKOFF);
    this.#become("starting", reason);
    for (;;) {
      await new Promise<void>((resolve) => clock.after(pauses.next(), resolve));
      const settings = this.#settings;
      if (wanted.signal.aborted || !settings) return;
      try {
        this.#starting = this.#start(settings, wanted.signal);
        await this.#starting;
        return;
      } catch (error) {
        if (wanted.signal.aborted) return;
        log.warn("the tunnel could not be built again", { err: messageOf(error) });
        if (NEEDS_LOGIN.has((error as PerchError).code)) return this.#giveUp(wanted, messageOf(error));
        this.#become("starting", messageOf(error));
      } finally {
        this.#starting = undefined;
      }
    }
  }

  /** Only a login can help; nothing is tried until the next `up`. */
  #giveUp(wanted: AbortController, reason: string): void {
    if (this.#wanted === wanted) this.#wanted = undefined;
    this.#become("needs-login", reason);
  }

  /** Resolves when the session that was there, or is just ending, has taken everything down. */
  async #closeSession(): Promise<void> {
    const session = this.#session;
    this.#session = undefined;
    if (session) {
      const closing = session.close().finally(() => {
        if (this.#closing === closing) this.#closing = undefined;
      });
      this.#closing = closing;
    }
    await this.#closing;
    this.#changed();
  }

  #running(): Session {
    if (!this.#session) throw new AgentError("peer-unknown", "the tunnel is not up: `perch up` first");
    return this.#session;
  }

  #become(state: AgentState, reason?: string): void {
    this.#state = state;
    this.#reason = reason;
    this.#changed();
  }

  /** `peers`: one of them, all, or none when the change is about the rest of the status. */
  #changed(peers: PublicKey | "all" | "none" = "all"): void {
    if (this.#listeners.size === 0) return;
    if (peers === "all" || (this.#changedPeers !== "all" && this.#changedPeers.size >= CHANGED_PEERS_MAX))
      this.#changedPeers = "all";
    else if (peers !== "none" && this.#changedPeers !== "all") this.#changedPeers.add(peers);
    if (this.#changeTimer) return;
    const { clock } = this.#deps;
    // The first change after a quiet time is told at once: a wake is over before a tenth of a second is.
    this.#changeTimer = clock.after(Math.max(0, this.#toldAt + CHANGE_INTERVAL - clock.now()), () => {
      this.#changeTimer = undefined;
      this.#toldAt = clock.now();
      const changed = this.#changedPeers;
      this.#changedPeers = new Set();
      for (const listener of [...this.#listeners]) listener(changed);
    });
  }
}
