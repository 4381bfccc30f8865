import { setImmediate as nextTurn } from "node:timers/promises";
import { create, type MessageInitShape } from "@bufbuild/protobuf";
import { Code, ConnectError, type HandlerContext, type ServiceImpl } from "@connectrpc/connect";
import { messageOf, PerchError } from "#base/errors.ts";
import { parseIp } from "#base/ip.ts";
import { PublicKey } from "#base/keys.ts";
import type { Logger } from "#base/log.ts";
import {
  ActivityPartSchema,
  type Daemon,
  DeregisterResponseSchema,
  DownResponseSchema,
  ErrorDetailSchema,
  OpenUiResponseSchema,
  type Peer,
  PeerState as PeerStateWire,
  SetLazyResponseSchema,
  SetLogLevelResponseSchema,
  type SettingValues as SettingValuesWire,
  type StatusHead,
  type StatusPart,
  StatusPartSchema,
  type StatusRequest,
  type UpEvent,
  UpEventSchema,
  type UpRequest,
  type WakeRecordSchema,
} from "#gen/daemon_pb.ts";
import type { AgentControl, AgentStatus, PeerState, PeerStatus } from "../control.ts";
import type { AgentLifecycle, UpOrder } from "./agent-lifecycle.ts";
import { captureParts, parseCaptureBounds } from "./capture-stream.ts";
import { DaemonError } from "./daemon-error.ts";
import { type DaemonLog, parseLogLevel } from "./daemon-log.ts";
import { encodeAgentExamination, encodePairExamination } from "./doctor-message.ts";
import { findPeer, matchesFilter, type PeerFilter } from "./peer-filter.ts";
import type { SettingValues } from "./settings.ts";
import type { StatusFeed } from "./status-feed.ts";
import { encodeHead, encodePeer } from "./status-message.ts";
import type { WakeRecord } from "./ui-activity.ts";
import type { UiServer } from "./ui-server.ts";

/** Peers per part of a status stream; encoding one part must not hold up the event loop. */
export const PEERS_PER_PART = 128;

export interface DaemonServiceDeps {
  readonly agent: AgentControl;
  readonly lifecycle: AgentLifecycle;
  readonly feed: StatusFeed;
  readonly ui: UiServer;
  readonly log: DaemonLog;
  readonly version: string;
  /** Wall clock ms. */
  readonly startedAt: number;
  readonly wall: () => number;
  /** Aborts when the daemon ends: streams end with it. */
  readonly closing: AbortSignal;
}

const STATES: Readonly<Record<number, PeerState>> = {
  [PeerStateWire.IDLE]: "idle",
  [PeerStateWire.CONNECTING]: "connecting",
  [PeerStateWire.CONNECTED]: "connected",
};

/** The daemon's API over one agent. Every failure is a ConnectError with ErrorDetail. */
export function createDaemonService(deps: DaemonServiceDeps): ServiceImpl<typeof Daemon> {
  const { agent, lifecycle, feed, ui, log } = deps;

  const head = (status: AgentStatus): StatusHead =>
    encodeHead(
      status,
      {
        version: deps.version,
        pid: process.pid,
        startedAt: deps.startedAt,
        settings: lifecycle.settings,
        logLevel: log.level,
        failure: lifecycle.failure,
      },
      deps.wall(),
    );

  const runningPeers = (): readonly PeerStatus[] => {
    const status = agent.status();
    if (status.state !== "up") throw new DaemonError("agent-down", "the agent is not up; start it with: perch up");
    return status.peers;
  };

  const actOnPeer = (wanted: string, act: (key: PublicKey) => void): Peer => {
    const { key } = findPeer(runningPeers(), wanted);
    act(key);
    return encodePeer(findPeer(agent.status().peers, key), false);
  };

  return {
    up: (request, context) =>
      withErrors(
        log.logger,
        runOrder(
          request,
          context,
          (...order) => lifecycle.up(...order),
          () => head(agent.status()),
        ),
      ),
    login: (request, context) =>
      withErrors(
        log.logger,
        runOrder(
          request,
          context,
          (...order) => lifecycle.login(...order),
          () => head(agent.status()),
        ),
      ),
    down: () => guard(log.logger, async () => create(DownResponseSchema, { already: await lifecycle.down() })),
    deregister: () =>
      guard(log.logger, async () => {
        await lifecycle.deregister();
        return create(DeregisterResponseSchema);
      }),

    getStatus: (request) =>
      withErrors(
        log.logger,
        (async function* () {
          const filter = parseFilter(request);
          yield* inParts(request.withPeers ? agent.peers() : [], filter, [], request.withTimeline, {
            epoch: feed.epoch,
            revision: 0n,
            reset: true,
            head: head(agent.status()),
          });
        })(),
      ),

    watchStatus: (request, context) =>
      withErrors(
        log.logger,
        (async function* () {
          const filter = parseFilter(request.filter);
          const signal = AbortSignal.any([context.signal, deps.closing]);
          const leave = feed.watch();
          try {
            let { epoch, revision } = request;
            do {
              const change = await feed.since(epoch, revision);
              const removed: PublicKey[] = [...change.removed];
              if (!change.reset) {
                for (const peer of change.peers) if (!matchesFilter(peer, filter)) removed.push(peer.key);
              }
              const first = {
                epoch: feed.epoch,
                revision: change.revision,
                reset: change.reset,
                head: head(change.status),
              };
              yield* inParts(
                request.filter?.withPeers ? change.peers : [],
                filter,
                removed,
                request.filter?.withTimeline ?? false,
                first,
              );
              ({ epoch, revision } = first);
            } while (await feed.changed(signal));
          } finally {
            leave();
          }
        })(),
      ),

    explainPeer: (request) =>
      guard(log.logger, async () => encodePeer(findPeer(agent.status().peers, request.peer), true)),
    wakePeer: (request) => guard(log.logger, async () => actOnPeer(request.peer, (key) => agent.wakePeer(key))),
    sleepPeer: (request) => guard(log.logger, async () => actOnPeer(request.peer, (key) => agent.sleepPeer(key))),
    pinPeer: (request) =>
      guard(log.logger, async () => actOnPeer(request.peer, (key) => agent.pinPeer(key, request.pinned))),

    diagnose: (request, context) =>
      guard(log.logger, async () => {
        if (request.peer === "") {
          const examination = await agent.examine(context.signal);
          return encodeAgentExamination(examination, head(agent.status()));
        }
        const { key } = findPeer(runningPeers(), request.peer);
        return encodePairExamination(await agent.examinePair(key), head(agent.status()));
      }),

    capture: (request, context) =>
      withErrors(
        log.logger,
        captureParts(
          () => {
            const peers = runningPeers();
            const key = request.peer === "" ? undefined : findPeer(peers, request.peer).key;
            return agent.capture({ ...parseCaptureBounds(request), key });
          },
          AbortSignal.any([context.signal, deps.closing]),
        ),
      ),

    setLazy: (request) =>
      guard(log.logger, async () => {
        const lazy = lifecycle.setLazy(request.enabled);
        feed.noteChange();
        const { thresholdMs } = agent.status().lazy;
        return create(SetLazyResponseSchema, { lazy: { ...lazy, thresholdMs } });
      }),
    setLogLevel: (request) =>
      guard(log.logger, async () => {
        const level = parseLogLevel(request.level, "log level");
        const before = log.level;
        log.level = level;
        log.logger.info("log level changed", { before, level });
        feed.noteChange();
        return create(SetLogLevelResponseSchema, { before });
      }),

    openUi: (request) => guard(log.logger, async () => create(OpenUiResponseSchema, await ui.open(request.port))),
    watchActivity: (_request, context) =>
      withErrors(
        log.logger,
        (async function* () {
          const signal = AbortSignal.any([context.signal, deps.closing]);
          let position = 0;
          do {
            const change = ui.activity.since(position);
            const wakes = change.wakes.map(encodeWake);
            yield create(ActivityPartSchema, { reset: position === 0, samples: [...change.samples], wakes });
            ({ position } = change);
          } while (await ui.activity.changed(position, signal));
        })(),
      ),
  };
}

function encodeWake({ took, ...wake }: WakeRecord): MessageInitShape<typeof WakeRecordSchema> {
  return { ...wake, ...(took === undefined ? {} : { tookMs: took }) };
}

type Order = (order: UpOrder, signal: AbortSignal, progress: (line: string) => void) => Promise<boolean>;

/** Turns a call that reports progress into the stream of its lines and its result. */
async function* runOrder(
  request: UpRequest,
  context: HandlerContext,
  order: Order,
  head: () => StatusHead,
): AsyncGenerator<UpEvent> {
  const lines: string[] = [];
  let wake = Promise.withResolvers<void>();
  let ended = false;
  const values: UpOrder = {
    flags: parseValues(request.flags),
    environment: parseValues(request.environment),
    ...(request.setupKey === "" ? {} : { setupKey: request.setupKey }),
  };
  const running = order(values, context.signal, (line) => {
    lines.push(line);
    wake.resolve();
  }).finally(() => {
    ended = true;
    wake.resolve();
  });
  // Awaited below; a rejection before that moment is not an unhandled one.
  running.catch(() => {});
  while (!ended || lines.length > 0) {
    const line = lines.shift();
    if (line !== undefined) yield create(UpEventSchema, { event: { case: "progress", value: line } });
    else {
      await wake.promise;
      wake = Promise.withResolvers<void>();
    }
  }
  const already = await running;
  yield create(UpEventSchema, { event: { case: "result", value: { already, head: head() } } });
}

/** Yields the peers that the filter lets through in parts, letting the event loop turn between two and after many others. */
async function* inParts(
  peers: Iterable<PeerStatus>,
  filter: PeerFilter,
  removed: readonly PublicKey[],
  withTimeline: boolean,
  first: Pick<StatusPart, "epoch" | "revision" | "reset"> & { readonly head: StatusHead },
): AsyncGenerator<StatusPart> {
  let begins = true;
  let slice: Peer[] = [];
  const part = (more: boolean): StatusPart => {
    const made = create(StatusPartSchema, {
      epoch: first.epoch,
      revision: first.revision,
      reset: begins && first.reset,
      ...(begins ? { head: first.head, removed: removed.map((key) => PublicKey.toBytes(key)) } : {}),
      peers: slice,
      more,
    });
    begins = false;
    slice = [];
    return made;
  };
  let seen = 0;
  for (const peer of peers) {
    if (slice.length === PEERS_PER_PART) yield part(true);
    if (++seen % PEERS_PER_PART === 0) await nextTurn();
    if (matchesFilter(peer, filter)) slice.push(encodePeer(peer, withTimeline));
  }
  yield part(false);
}

/** Throws DaemonError `value-invalid`. */
function parseFilter(request: StatusRequest | undefined): PeerFilter {
  const states = (request?.states ?? []).map((state) => {
    const known = STATES[state];
    if (!known) throw new DaemonError("value-invalid", `unknown peer state ${state}`);
    return known;
  });
  const addresses = (request?.addresses ?? []).map((address) => {
    try {
      return parseIp(address);
    } catch (cause) {
      throw new DaemonError("value-invalid", messageOf(cause), { cause });
    }
  });
  return {
    states: new Set(states),
    names: (request?.names ?? []).map((name) => name.toLowerCase()),
    addresses: new Set(addresses),
  };
}

/** Limits are checked by the lifecycle, which knows how each value was given. */
function parseValues(values: SettingValuesWire | undefined): SettingValues {
  if (!values) return {};
  return {
    managementUrl: values.managementUrl,
    hostname: values.hostname,
    interfaceName: values.interfaceName,
    wireguardPort: values.wireguardPort,
    mtu: values.mtu,
    device: values.device as SettingValues["device"],
    presharedKey: values.presharedKey,
    lazy: values.lazy,
    inactivityThreshold: values.inactivityThresholdMs,
    forceRelay: values.forceRelay,
    dns: values.dns,
    dnsWake: values.dnsWake,
    metrics: values.metrics,
  };
}

/** Which status a code has for clients that do not read ErrorDetail; the rest is `unknown`. */
const STATUS_OF: Readonly<Record<string, Code>> = {
  "value-invalid": Code.InvalidArgument,
  "setting-missing": Code.FailedPrecondition,
  "needs-login": Code.Unauthenticated,
  "setup-key-invalid": Code.Unauthenticated,
  "permission-denied": Code.Unauthenticated,
  "login-expired": Code.Unauthenticated,
  "peer-unknown": Code.NotFound,
  "peer-ambiguous": Code.FailedPrecondition,
  "agent-down": Code.FailedPrecondition,
  superseded: Code.Aborted,
};

function toConnectError(log: Logger, error: unknown): ConnectError {
  if (error instanceof ConnectError) return error;
  if (error instanceof PerchError) {
    const status = STATUS_OF[error.code] ?? (error.retryable ? Code.Unavailable : Code.Unknown);
    const detail = { desc: ErrorDetailSchema, value: { code: error.code, retryable: error.retryable } };
    return new ConnectError(error.message, status, undefined, [detail]);
  }
  log.error("a call failed in an unexpected way", { err: error instanceof Error ? error.stack : String(error) });
  const detail = { desc: ErrorDetailSchema, value: { code: "internal", retryable: false } };
  return new ConnectError(messageOf(error), Code.Internal, undefined, [detail]);
}

async function guard<Result>(log: Logger, call: () => Promise<Result>): Promise<Result> {
  try {
    return await call();
  } catch (error) {
    throw toConnectError(log, error);
  }
}

async function* withErrors<Item>(log: Logger, items: AsyncIterable<Item>): AsyncGenerator<Item> {
  try {
    yield* items;
  } catch (error) {
    throw toConnectError(log, error);
  }
}
