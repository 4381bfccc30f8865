import { execFile } from "node:child_process";
import { promisify } from "node:util";
import type { PrivateKey } from "#base/keys.ts";
import type { Logger } from "#base/log.ts";
import type { Clock, Millis } from "#base/time.ts";
import { closeUdpPair, openUdpPair } from "#net/udp-linux.ts";
import { closeTun, openTun } from "#tun/linux.ts";
import type { WireGuardDevice } from "../device.ts";
import { createExternalDevice } from "./create-external-device.ts";
import type { DeviceRecord } from "./device-mark.ts";
import { ExternalDeviceError } from "./external-error.ts";
import { needProgram } from "./find-program.ts";
import { needFreeInterfaceName } from "./interface-names.ts";
import { NftRules, probeNft } from "./nft-rules.ts";
import type { Backend } from "./parts.ts";
import { createLocalEnds } from "./ports/create-local-ends.ts";
import { PortThread } from "./ports/port-thread.ts";
import { RawPort } from "./ports/raw-port.ts";
import { ThreadedEnds } from "./threaded-ends.ts";
import { startWireguardGo } from "./wireguard-go-backend.ts";

const run = promisify(execFile);

const VERSION_PATIENCE: Millis = 5_000;

export type ExternalKind = "wireguard-go";

export interface OpenExternalDeps {
  readonly clock: Clock;
  readonly log: Logger;
  /** Told what to take away should we be killed, before it is made. */
  readonly record: DeviceRecord;
}

export interface OpenExternalOptions {
  readonly kind: ExternalKind;
  /** At most 15 bytes; no interface may have it. */
  readonly interfaceName: string;
  readonly privateKey: PrivateKey;
  /** 0 takes a free one. */
  readonly listenPort: number;
  /** Inner MTU, bytes. The interface gets it from whoever gives it its addresses. */
  readonly mtu: number;
}

/**
 * A device of somebody else's program, of the parts that this machine has. The interface is down and has no address: that is the
 * caller's, again after each `worker-restarted`. Throws ExternalDeviceError, NetError, TunError and what the record throws;
 * nothing is left then.
 */
export async function openExternalDevice(
  deps: OpenExternalDeps,
  options: OpenExternalOptions,
): Promise<WireGuardDevice> {
  const { clock, log } = deps;
  const { interfaceName, privateKey, listenPort, mtu } = options;
  const program = await readVersion(options.kind);
  await using undo = new AsyncDisposableStack();
  const backend = undo.use(await startBackend(deps, options));
  const thread = undo.use(await PortThread.start({ clock, log }));
  const sharedPort = undo.use(await RawPort.open(thread, { port: 0 }));
  const rules = undo.use(await NftRules.open(interfaceName));
  const ends = createLocalEnds({ clock, log, thread }, { devicePort: 0 });
  const localEnds = new ThreadedEnds(ends, thread);
  // The parts are the device's from here on, also when it cannot be made.
  undo.move();
  return await createExternalDevice(
    { clock, log },
    { backend, localEnds, sharedPort, rules },
    { privateKey, listenPort, mtu, program },
  );
}

/** Such as `wireguard-go 0.0.20230223`; undefined where the program does not say. */
async function readVersion(kind: ExternalKind): Promise<string | undefined> {
  try {
    const { stdout } = await run(needProgram(kind, kind), ["--version"], { timeout: VERSION_PATIENCE });
    const [, name, version] = /^(\S+) v?([\w.+-]{1,40})$/m.exec(stdout) ?? [];
    return name && `${name} ${version}`;
  } catch (error) {
    if (error instanceof ExternalDeviceError) throw error;
    return undefined;
  }
}

function startBackend(deps: OpenExternalDeps, { interfaceName }: OpenExternalOptions): Promise<Backend> {
  return startWireguardGo({ interfaceName }, deps);
}

/**
 * Whether this machine has what such a device needs: the program, the interface name, TUN, the UDP port, raw sockets, and
 * nftables for access rules. Makes some of them and takes them away again. Throws as `openExternalDevice`.
 */
export async function probeExternalDevice(
  deps: Omit<OpenExternalDeps, "record">,
  { kind, interfaceName, listenPort }: Pick<OpenExternalOptions, "kind" | "interfaceName" | "listenPort">,
): Promise<void> {
  needProgram(kind, kind);
  needFreeInterfaceName(interfaceName);
  closeUdpPair(openUdpPair({ port: listenPort }));
  closeTun(openTun({ name: interfaceName }));
  await using thread = await PortThread.start(deps);
  await using _sharedPort = await RawPort.open(thread, { port: 0 });
  await probeNft(interfaceName);
}
