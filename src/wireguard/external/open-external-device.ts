import { release } from "node:os";
import { messageOf } from "#base/errors.ts";
import type { PrivateKey } from "#base/keys.ts";
import { type Logger, silentLogger } from "#base/log.ts";
import type { Clock, Millis } from "#base/time.ts";
import { closeUdpPair, openUdpPair } from "#net/udp-linux.ts";
import type { WireGuardDevice } from "../device.ts";
import { type BackendChoice, chooseBackend } from "./choose-backend.ts";
import { createExternalDevice } from "./create-external-device.ts";
import type { DeviceRecord } from "./device-mark.ts";
import { ExternalDeviceError } from "./external-error.ts";
import { FilterRecord } from "./filter-record.ts";
import { NftRules, probeNft } from "./nft-rules.ts";
import type { Backend } from "./parts.ts";
import { createLocalEnds } from "./ports/create-local-ends.ts";
import { PortThread } from "./ports/port-thread.ts";
import { RawPort } from "./ports/raw-port.ts";
import { runProgram } from "./run-program.ts";
import { ThreadedEnds } from "./threaded-ends.ts";

const VERSION_PATIENCE: Millis = 5_000;

export interface OpenExternalDeps {
  readonly clock: Clock;
  readonly log: Logger;
  /** Told what to take away should we be killed, before it is made. */
  readonly record: DeviceRecord;
}

export interface OpenExternalOptions {
  readonly choice: BackendChoice;
  /** At most 15 bytes; no interface may have it. */
  readonly interfaceName: string;
  readonly privateKey: PrivateKey;
  /** 0 takes a free one. */
  readonly listenPort: number;
  /** Inner MTU, bytes. The interface gets it from whoever gives it its addresses. */
  readonly mtu: number;
  /** Nothing comes in before the first `setFilter`. Throws where access rules cannot be had. */
  readonly closed?: boolean;
  /** Peers that have a local socket each, at most; more share one. Default and bounds as of `createLocalEnds`. */
  readonly localSocketsMax?: number | undefined;
}

/**
 * A device that somebody else implements, of the parts that this machine has. The interface is down and has no address: that is
 * the caller's, again after each `worker-restarted`. Undefined: `auto` found no kernel that can. Throws ExternalDeviceError,
 * NetError, TunError and what the record throws; nothing is left then.
 */
export function openExternalDevice(
  deps: OpenExternalDeps,
  options: OpenExternalOptions & { readonly choice: Exclude<BackendChoice, "auto"> },
): Promise<WireGuardDevice>;
export function openExternalDevice(
  deps: OpenExternalDeps,
  options: OpenExternalOptions,
): Promise<WireGuardDevice | undefined>;
export async function openExternalDevice(
  deps: OpenExternalDeps,
  options: OpenExternalOptions,
): Promise<WireGuardDevice | undefined> {
  const { clock, log } = deps;
  const { choice, interfaceName, privateKey, listenPort, mtu, closed = false, localSocketsMax } = options;
  await using undo = new AsyncDisposableStack();
  const record = new FilterRecord(deps.record);
  const backend = await startBackend({ ...deps, record }, choice, interfaceName);
  if (!backend) return undefined;
  undo.use(backend);
  const thread = undo.use(await PortThread.start({ clock, log }));
  const sharedPort = undo.use(await RawPort.open(thread, { port: 0 }));
  const rules = undo.use(await NftRules.open(interfaceName));
  record.watch(rules);
  if (closed) await closeInterface(rules);
  const ends = createLocalEnds({ clock, log, thread }, { devicePort: 0, threshold: localSocketsMax });
  const program = await describeProgram(backend);
  // The parts are the device's from here on, also when it cannot be made.
  undo.move();
  return await createExternalDevice(
    { clock, log },
    { backend, localEnds: new ThreadedEnds(ends, thread), sharedPort, rules },
    { privateKey, listenPort, mtu, program },
  );
}

async function closeInterface(rules: NftRules): Promise<void> {
  let failure: string | undefined;
  using stack = new DisposableStack();
  stack.defer(
    rules.events.on("failed", ({ reason }) => {
      failure = reason;
    }),
  );
  rules.set({ inbound: [], otherwise: "drop" });
  await rules.settled();
  if (failure !== undefined) throw new ExternalDeviceError("control-failed", failure);
}

async function startBackend(
  deps: OpenExternalDeps,
  choice: BackendChoice,
  interfaceName: string,
): Promise<Backend | undefined> {
  const backend = await chooseBackend(choice, { interfaceName }, deps);
  if (choice !== "auto" || !backend) return backend;
  try {
    await probeNft(interfaceName);
    return backend;
  } catch (error) {
    deps.log.info("the kernel's WireGuard is not used", { reason: messageOf(error) });
    await backend.close();
    return undefined;
  }
}

/** Such as `wireguard-go 0.0.20230223` or `linux 6.12.0`; undefined where the program does not say. */
async function describeProgram({ kind }: Backend): Promise<string | undefined> {
  if (kind === "kernel") return `linux ${release()}`;
  try {
    const call = { program: kind, debianPackage: kind, args: ["--version"], patience: VERSION_PATIENCE };
    const { output } = await runProgram(call);
    const [, name, version] = /^(\S+) v?([\w.+-]{1,40})$/m.exec(output.toString()) ?? [];
    return name && `${name} ${version}`;
  } catch {
    return undefined;
  }
}

/**
 * Whether this machine has what such a device needs: what implements it, the interface name, the UDP port, raw sockets, and
 * nftables for access rules. Makes them and takes them away again. False: `auto` found no kernel that can. Throws as
 * `openExternalDevice`.
 */
export async function probeExternalDevice(
  deps: OpenExternalDeps,
  { choice, interfaceName, listenPort }: Pick<OpenExternalOptions, "choice" | "interfaceName" | "listenPort">,
): Promise<boolean> {
  // Why `auto` takes another device is said when it is opened.
  const backend = await startBackend({ ...deps, log: silentLogger }, choice, interfaceName);
  if (!backend) return false;
  await using _backend = backend;
  closeUdpPair(openUdpPair({ port: listenPort }));
  await using thread = await PortThread.start(deps);
  await using _sharedPort = await RawPort.open(thread, { port: 0 });
  await probeNft(interfaceName);
  return true;
}
