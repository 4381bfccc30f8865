/**
 * Local ends, a raw port and plain UDP sockets as a process of its own, so that a test can put them into the network namespace of
 * a device. Requests come and answers and events go over the IPC channel. Started by external-ports-lab.ts only.
 */
import { createSocket, type RemoteInfo } from "node:dgram";
import { once } from "node:events";
import { formatEndpoint, isV6, parseEndpoint } from "#base/ip.ts";
import { PublicKey } from "#base/keys.ts";
import { silentLogger } from "#base/log.ts";
import { systemClock } from "#base/time.ts";
import type { LocalEnds, SharedPort } from "#wireguard/external/parts.ts";
import { LoopbackAddresses } from "#wireguard/external/ports/loopback-addresses.ts";
import { LoopbackMac1 } from "#wireguard/external/ports/loopback-mac1.ts";
import { LoopbackSockets } from "#wireguard/external/ports/loopback-sockets.ts";
import { PortThread } from "#wireguard/external/ports/port-thread.ts";
import { RawPort } from "#wireguard/external/ports/raw-port.ts";
import { serveRequests } from "./lab-child.ts";

export type EndsKind = LocalEnds["name"];

export type PortsRequest =
  | { readonly op: "ends"; readonly kind: EndsKind; readonly devicePort: number }
  | { readonly op: "open"; readonly key: string }
  | { readonly op: "deliver"; readonly key: string; readonly datagram: string }
  | { readonly op: "raw"; readonly port: number }
  | { readonly op: "setPort"; readonly port: number }
  | { readonly op: "send"; readonly datagram: string; readonly to: string; readonly from?: string }
  | { readonly op: "udp"; readonly port: number; readonly datagram: string; readonly to: string }
  | { readonly op: "counters" }
  | { readonly op: "close" };

/** Datagrams in base64, endpoints as text. `port`: the local one of a plain socket. */
export interface PortsEvent {
  readonly kind: "event";
  readonly name: "datagram" | "moved" | "stun" | "handshake" | "udp";
  readonly key?: string;
  readonly datagram?: string;
  readonly endpoint?: string;
  readonly from?: string;
  readonly to?: string;
}

const stack = new AsyncDisposableStack();
const udpSockets = new Map<string, ReturnType<typeof createSocket>>();
let thread: PortThread | undefined;
let ends: LocalEnds | undefined;
let raw: SharedPort | undefined;

const text = (bytes: Uint8Array): string => Buffer.from(bytes).toString("base64");
const bytes = (encoded: string): Uint8Array => Buffer.from(encoded, "base64");

async function theThread(): Promise<PortThread> {
  thread ??= stack.use(await PortThread.start({ log: silentLogger, clock: systemClock }));
  return thread;
}

async function makeEnds(kind: EndsKind, devicePort: number): Promise<LocalEnds> {
  if (kind === "loopback-sockets") return new LoopbackSockets({ devicePort });
  if (kind === "loopback-mac1") return new LoopbackMac1({ clock: systemClock }, { devicePort });
  return LoopbackAddresses.open(await theThread(), { devicePort });
}

/** A plain socket at `port`, made when it is first used. */
async function plainSocket(port: number, v6: boolean): Promise<ReturnType<typeof createSocket>> {
  const name = `${port} ${v6}`;
  const known = udpSockets.get(name);
  if (known) return known;
  const socket = createSocket({ type: v6 ? "udp6" : "udp4", ipv6Only: v6 });
  stack.defer(() => void socket.close());
  socket.on("message", (datagram: Buffer, { address, port: remote }: RemoteInfo) =>
    tell({ kind: "event", name: "udp", datagram: text(datagram), from: `${v6 ? `[${address}]` : address}:${remote}` }),
  );
  socket.bind(port);
  await once(socket, "listening");
  udpSockets.set(name, socket);
  return socket;
}

async function perform(request: PortsRequest): Promise<unknown> {
  switch (request.op) {
    case "ends": {
      ends = stack.use(await makeEnds(request.kind, request.devicePort));
      ends.events.on("datagram", ({ key, datagram }) =>
        tell({ kind: "event", name: "datagram", key, datagram: text(datagram) }),
      );
      ends.events.on("moved", ({ key, endpoint }) =>
        tell({ kind: "event", name: "moved", key, endpoint: formatEndpoint(endpoint) }),
      );
      return;
    }
    case "open":
      return formatEndpoint(ends!.open(PublicKey.parse(request.key)));
    case "deliver":
      return ends!.deliver(PublicKey.parse(request.key), bytes(request.datagram));
    case "raw":
      raw = stack.use(await RawPort.open(await theThread(), { port: request.port }));
      for (const name of ["stun", "handshake"] as const)
        raw.events.on(name, ({ datagram, from, to }) =>
          tell({
            kind: "event",
            name,
            datagram: text(datagram),
            from: formatEndpoint(from),
            to: formatEndpoint(to),
          }),
        );
      return;
    case "setPort":
      return raw!.setPort(request.port);
    case "send":
      return raw!.send(
        bytes(request.datagram),
        parseEndpoint(request.to),
        request.from === undefined ? undefined : parseEndpoint(request.from),
      );
    case "udp": {
      const to = parseEndpoint(request.to);
      const socket = await plainSocket(request.port, isV6(to.address));
      return new Promise<void>((resolve, reject) =>
        socket.send(bytes(request.datagram), to.port, to.address, (error) => (error ? reject(error) : resolve())),
      );
    }
    case "counters":
      return Object.fromEntries([
        ...(thread?.counters() ?? []),
        ...(ends?.counters?.() ?? []),
        ...(raw?.counters?.() ?? []),
      ]);
    case "close":
      return stack.disposeAsync();
  }
}

const tell = serveRequests<PortsRequest, PortsEvent>(perform);
