import { setImmediate as nextTurn } from "node:timers/promises";
import { messageOf, type PerchError } from "#base/errors.ts";
import type { PresharedKey, PrivateKey, PublicKey } from "#base/keys.ts";
import type { Logger } from "#base/log.ts";
import type { Clock, Millis, Timer } from "#base/time.ts";
import type { LoginResponse } from "#gen/management_pb.ts";
import type { ManagementClient } from "#management/client/management-client.ts";
import { trimHeap } from "#net/heap.ts";
import { RelayClient } from "#relay/client/relay-client.ts";
import { SignalClient } from "#signal/client/signal-client.ts";
import type { WireGuardDevice } from "#wireguard/device.ts";
import type { TimestampMark } from "#wireguard/timestamp-mark.ts";
import type { AgentSettings, TimelineEntry } from "./control.ts";
import { chooseHostResolver } from "./dns/choose-resolver-linux.ts";
import { NameService } from "./dns/name-service.ts";
import { ResolverRecordStore } from "./dns/resolver-record.ts";
import { Engine, interfaceAddresses } from "./engine/engine.ts";
import { parseInfrastructure } from "./engine/infrastructure.ts";
import { parseOwnConfig } from "./engine/network-map.ts";
import { AgentError } from "./errors.ts";
import { Rehearsal } from "./rehearsal.ts";
import { createDevice } from "./routing/device-linux.ts";
import { TunnelInterface } from "./routing/interface-linux.ts";
import { retryTogether, ServiceRecorder } from "./service-recorder.ts";
import { readSystemMeta } from "./system-meta.ts";

/** Time for the first network map, or the next part of it, after everything else is up, in milliseconds. */
const FIRST_MAP_TIMEOUT = 20_000;
/** This long after the first map, what reading it took is free again and can go back to the system. */
const TRIM_AFTER: Millis = 10_000;

export interface SessionOptions {
  readonly settings: AgentSettings;
  readonly presharedKey: PresharedKey | undefined;
  readonly key: PrivateKey;
  readonly timestampMark: TimestampMark;
  /** Closed with the session. */
  readonly management: ManagementClient;
  readonly login: LoginResponse;
  readonly pinned: ReadonlySet<PublicKey>;
  /** Something that status shows changed: of one peer, of all, or of none but of the rest. */
  readonly changed: (peers: PublicKey | "all" | "none") => void;
  /** Every entry of a peer's story. */
  readonly noted: (peer: PublicKey, entry: TimelineEntry) => void;
}

/** Why a session ended by itself. */
export interface SessionEnd {
  /** Management does not know us any more. */
  readonly needsLogin: boolean;
  readonly reason: string;
}

/** One life of the tunnel: device, interface, the three clients and the engine, built leaves first. */
export interface Session {
  readonly management: ManagementClient;
  readonly signal: SignalClient;
  readonly relay: RelayClient;
  readonly device: WireGuardDevice;
  readonly engine: Engine;
  readonly names: NameService;
  readonly signalUri: string;
  /** What status shows of the servers. */
  readonly services: {
    readonly management: ServiceRecorder;
    readonly signal: ServiceRecorder;
    readonly relay: ServiceRecorder;
  };
  /** Resolves when the session cannot go on; never rejects. */
  readonly ended: Promise<SessionEnd>;
  /** Opens the stream of network maps; resolves when the first is applied. */
  start(signal: AbortSignal): Promise<void>;
  /** Idempotent; takes everything down in reverse order. */
  close(): Promise<void>;
}

/** Builds a session up to the point where only the network map is missing; undoes everything when a part fails. */
export async function openSession(
  deps: { readonly clock: Clock; readonly log: Logger; readonly stateDir: string },
  options: SessionOptions,
): Promise<Session> {
  const { clock, log } = deps;
  const { settings, key, management, login } = options;
  if (!login.peerConfig)
    throw new AgentError("map-invalid", `${settings.managementUrl} sent no address for this machine`);
  const own = parseOwnConfig(login.peerConfig);
  const infrastructure = login.netbirdConfig && parseInfrastructure(login.netbirdConfig);
  if (!infrastructure?.signal) throw new AgentError("map-invalid", `${settings.managementUrl} named no signal server`);

  await using undo = new AsyncDisposableStack();
  const device = undo.use(
    await createDevice(
      { clock, log: log.with({ part: "device" }), stateDir: deps.stateDir },
      {
        device: settings.device,
        interfaceName: settings.interfaceName,
        privateKey: key,
        listenPort: settings.wireguardPort,
        mtu: settings.mtu,
        timestampMark: options.timestampMark,
      },
    ),
  );
  const tunnel = new TunnelInterface(device.interfaceName, device.kind === "embedded" ? undefined : device.mtu);
  for (const problem of await tunnel.apply(interfaceAddresses(own), []))
    log.warn("interface only in part", { problem });
  const signal = new SignalClient({ clock, log: log.with({ part: "signal" }) }, { ...infrastructure.signal, key });
  undo.defer(() => signal.close());
  const relay = new RelayClient({ clock, log: log.with({ part: "relay" }) }, { key: key.publicKey });
  undo.defer(() => relay.close());
  const names = undo.use(
    new NameService(
      {
        clock,
        log: log.with({ part: "dns" }),
        wake: (peer, name, act) => engine.connections.wakeByName(peer, name, act),
        changed: () => options.changed("none"),
        chooseHost: (changed) =>
          chooseHostResolver({
            clock,
            log: log.with({ part: "dns" }),
            store: new ResolverRecordStore(deps.stateDir),
            changed,
          }),
      },
      {
        ownKey: key.publicKey,
        interfaceName: device.interfaceName,
        enabled: settings.dns?.enabled,
        wakes: settings.dnsWake ?? true,
      },
      own,
    ),
  );
  const engine = new Engine(
    {
      clock,
      log: log.with({ part: "engine" }),
      device,
      tunnel,
      management,
      signal,
      relay,
      names,
      noted: options.noted,
      changed: (peer) => options.changed(peer?.key ?? "all"),
    },
    {
      ownKey: key.publicKey,
      own,
      presharedKey: options.presharedKey,
      lazy: settings.lazy?.enabled,
      inactivityThreshold: settings.inactivityThreshold,
      pinned: options.pinned,
      forceRelay: settings.forceRelay,
    },
  );
  undo.defer(() => engine.close());
  const recorder = (): ServiceRecorder => new ServiceRecorder(clock, () => options.changed("none"));
  const services = { management: recorder(), signal: recorder(), relay: recorder() };
  management.events.on("state", (state) => services.management.note(state));
  signal.events.on("state", (state) => services.signal.note(state));
  relay.events.on("home", (state) => services.relay.note(state));
  retryTogether([
    { recorder: services.management, retry: () => management.retryNow() },
    { recorder: services.signal, retry: () => signal.noteNetworkChange() },
    { recorder: services.relay, retry: () => relay.noteNetworkChange() },
  ]);
  engine.applyInfrastructure(infrastructure);
  signal.start();

  const { promise: ended, resolve: end } = Promise.withResolvers<SessionEnd>();
  device.events.on("gone", ({ reason }) => end({ needsLogin: false, reason: `the interface is gone: ${reason}` }));
  device.events.on("worker-restarted", () => {
    if (device.kind !== "embedded") engine.renewInterface();
    options.changed("none");
  });
  const stop = new AbortController();
  let syncing: Promise<void> | undefined;
  let rehearsal: Rehearsal | undefined;
  let trimming: Timer | undefined;
  const owned = undo.move();

  return {
    management,
    signal,
    relay,
    device,
    engine,
    names,
    services,
    signalUri: infrastructure.signal.uri,
    ended,
    async start(abort) {
      const first = Promise.withResolvers<void>();
      let timeout: Timer | undefined;
      const armTimeout = (): void => {
        timeout?.cancel();
        timeout = clock.after(FIRST_MAP_TIMEOUT, () =>
          first.reject(
            new AgentError(
              "map-invalid",
              `no network map from ${settings.managementUrl} within ${FIRST_MAP_TIMEOUT / 1000} s`,
            ),
          ),
        );
      };
      armTimeout();
      const meta = () => readSystemMeta({ hostname: settings.hostname, ownInterface: device.interfaceName });
      syncing = management
        .sync(
          meta,
          async (update) => {
            try {
              engine.update(update);
            } catch (error) {
              log.error("network map not applied", { err: messageOf(error) });
            }
            if (engine.ready) first.resolve();
            else armTimeout();
            // Parts of a large map lie here in a row: between two of them everybody else gets a turn.
            if (update.perch?.more) await nextTurn();
          },
          stop.signal,
          () => engine.held,
        )
        .catch((error: unknown) => {
          first.reject(error);
          const code = (error as PerchError).code;
          end({ needsLogin: code === "permission-denied" || code === "login-expired", reason: messageOf(error) });
        });
      const onAbort = (): void => first.reject(abort.reason);
      abort.addEventListener("abort", onAbort, { once: true });
      try {
        await first.promise;
      } finally {
        timeout?.cancel();
        abort.removeEventListener("abort", onAbort);
      }
      rehearsal = new Rehearsal(clock);
      trimming = clock.after(TRIM_AFTER, trimHeap);
    },
    async close() {
      stop.abort();
      rehearsal?.close();
      trimming?.cancel();
      await syncing;
      await engine.connections.farewell();
      await owned.disposeAsync();
      await management.close();
    },
  };
}
