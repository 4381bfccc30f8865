import { createInterface } from "node:readline";
import type { Worker } from "node:worker_threads";
import { type IpAddress, parsePrefix } from "#base/ip.ts";
import { PrivateKey, type PublicKey } from "#base/keys.ts";
import { silentLogger } from "#base/log.ts";
import { systemClock } from "#base/time.ts";
import { createEmbeddedDevice } from "#wireguard/create-embedded-device.ts";
import type { DevicePath, WireGuardDevice } from "#wireguard/device.ts";
import { openExternalDevice } from "#wireguard/external/open-external-device.ts";

/**
 * One device in a process of its own, steered by lines of JSON on stdin: `[id, method, ...arguments]` calls the device, answers
 * and events go out as lines of JSON. Byte arrays travel as {"hex": "..."}, maps as objects. Methods that the device does not
 * have are below.
 */
export interface DeviceProcessOptions {
  readonly kind: "embedded" | "kernel" | "wireguard-go";
  readonly interfaceName: string;
  /** Base64. */
  readonly privateKey: string;
}

interface Agent {
  readonly address: string;
  readonly path: DevicePath;
}

/** How often an agent repeats an initiation that nobody answers. */
const INITIATE_AGAIN_MS = 500;
const MANY_PREFIX = "100.64";

const revive = (_key: string, value: unknown): unknown =>
  typeof value === "object" && value !== null && "hex" in value
    ? new Uint8Array(Buffer.from(String(value.hex), "hex"))
    : value;
function replace(this: Record<string, unknown>, key: string, value: unknown): unknown {
  // As it was: a Buffer has its own idea of JSON, which comes first.
  const raw = this[key];
  if (raw instanceof Uint8Array) return { hex: Buffer.from(raw).toString("hex") };
  return raw instanceof Map ? Object.fromEntries(raw) : value;
}
const say = (message: unknown): void => void process.stdout.write(`${JSON.stringify(message, replace)}\n`);

let worker: Worker | undefined;
process.on("worker", (latest) => {
  worker = latest;
});

async function open(options: DeviceProcessOptions): Promise<WireGuardDevice> {
  const { kind, interfaceName } = options;
  const common = { interfaceName, privateKey: PrivateKey.parse(options.privateKey), listenPort: 0, mtu: 1420 };
  const deps = { clock: systemClock, log: silentLogger };
  if (kind === "embedded") return createEmbeddedDevice(deps, common);
  return openExternalDevice({ ...deps, record: { write() {}, remove() {} } }, { choice: kind, ...common });
}

const device = await open(JSON.parse(process.argv[2]!) as DeviceProcessOptions);
for (const name of [
  "wake",
  "established",
  "path-hint",
  "silent",
  "relay-out",
  "path-error",
  "handshake-failed",
  "worker-restarted",
  "gone",
] as const) {
  device.events.on(name, (payload) => say({ event: name, payload }));
}

/** What an agent does for the one peer of the pair when it is woken; undefined: nothing. */
let agent: Agent | undefined;
const established = new Set<PublicKey>();
device.events.on("established", ({ key, source }) => {
  established.add(key);
  if (agent && source.kind === "udp") device.setPath(key, source);
});
device.events.on("wake", ({ key, cause }) => {
  if (agent) wake(key, cause.kind === "packet" || cause.kind === "activity");
});

function setPeer(key: PublicKey, mode: "asleep" | "awake", address: string): void {
  const persistentKeepalive = mode === "awake" ? 25 : 0;
  device.setPeer(key, { mode, allowedIps: [parsePrefix(address)], persistentKeepalive });
}

function wake(key: PublicKey, initiates: boolean): void {
  const { address, path } = agent!;
  established.delete(key);
  setPeer(key, "awake", address);
  if (initiates) initiate(key, agent!);
  device.setPath(key, path);
}

/** Until it is answered, or another agent has the peer. */
function initiate(key: PublicKey, by: Agent): void {
  if (agent !== by || established.has(key) || !device.initiate(key, [by.path])) return;
  setTimeout(() => initiate(key, by), INITIATE_AGAIN_MS);
}

const methods: Record<string, (...args: never[]) => unknown> = {
  /** An agent of one peer with that address, which takes that path whenever it wakes, or the one that a handshake came by directly. */
  agent: (address: string | null, path: DevicePath) => {
    agent = address === null ? undefined : { address, path };
    return null;
  },
  peer: (key: PublicKey, mode: "asleep" | "awake", address: string) => setPeer(key, mode, address),
  wakeUp: (key: PublicKey, initiates: boolean) => wake(key, initiates),
  /** So many sleeping peers in one turn, 100.64.0.1 and further; the key of the last. */
  addMany: (count: number) => {
    let last: PublicKey | undefined;
    for (let index = 1; index <= count; index++) {
      last = PrivateKey.generate().publicKey;
      const address = `${MANY_PREFIX}.${index >> 8}.${index & 255}` as IpAddress;
      device.setPeer(last, { mode: "asleep", allowedIps: [{ address, bits: 32 }] });
    }
    return last;
  },
  /** The thread of an embedded device ends when something brings it back from the kernel. */
  killWorker: () => {
    void worker?.terminate();
    device.declineWake(device.publicKey);
  },
  now: () => performance.now(),
};

say({
  event: "started",
  payload: { name: device.interfaceName, port: device.listenPort, key: device.publicKey, features: device.features },
});
for await (const line of createInterface({ input: process.stdin })) {
  const [id, method, ...args] = JSON.parse(line, revive) as [number, string, ...never[]];
  const call = methods[method] ?? (Reflect.get(device, method) as (...args: unknown[]) => unknown);
  const result = await call.apply(device, args);
  if (id > 0) say({ id, result: result ?? null });
  if (method === "close") break;
}
process.exit(0);
