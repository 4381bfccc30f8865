/**
 * Runs in a host of the lab and hosts many agents in one process: `ends-process.ts ORDER`, an `EndsOrder` as JSON. Engine,
 * connections, ICE, handshakes, signal and relay client are the product's, each with sockets of its own; under them lies a plane
 * that answers each TCP SYN. Says what `EndsMessage` has, and reports when it is asked for by any message.
 */
import { randomBytes } from "node:crypto";
import { create } from "@bufbuild/protobuf";
import { Engine, type EngineDeps } from "#agent/engine/engine.ts";
import { parseInfrastructure } from "#agent/engine/infrastructure.ts";
import { Emitter } from "#base/emitter.ts";
import { formatPrefix, parsePrefix } from "#base/ip.ts";
import { silentLogger } from "#base/log.ts";
import { systemClock } from "#base/time.ts";
import { PROTOCOL_VERSION } from "#base/version.ts";
import {
  NetworkMapSchema,
  PeerConfigSchema,
  PeerSystemMetaSchema,
  RemotePeerConfigSchema,
  SyncResponseSchema,
} from "#gen/management_pb.ts";
import { ManagementClient } from "#management/client/management-client.ts";
import { RelayClient } from "#relay/client/relay-client.ts";
import { SignalClient } from "#signal/client/signal-client.ts";
import { EmbeddedDevice } from "#wireguard/embedded-device.ts";
import { foldChecksum, onesSum, PROTOCOL, write16, write32 } from "../lab/packet.ts";
import { labNow } from "../lab/traffic.ts";
import { EndPlane } from "./end-plane.ts";
import { type EndsMessage, type EndsOrder, endKey } from "./many-ends.ts";

/** Ends that connect to the servers at the same moment. */
const STARTING = 40;
const IP_BYTES = 20;
const TCP_BYTES = 20;
const SYN = 0x02;
const ACK = 0x10;

const order = JSON.parse(process.argv[2]!) as EndsOrder;
const clock = systemClock;
/** When each signal message came in, of all ends. */
const messages: number[] = [];
const engines: Engine[] = [];

const keys = Array.from(order.ends, (_, index) => endKey(index));
await using management = new ManagementClient({ clock, log: silentLogger }, { url: order.url, key: keys[0]! });
const { netbirdConfig } = await management.login({
  meta: create(PeerSystemMetaSchema, { hostname: "end", goOS: "linux", netbirdVersion: PROTOCOL_VERSION }),
});
const infrastructure = parseInfrastructure(netbirdConfig!);
for (let at = 0; at < keys.length; at += STARTING) {
  await Promise.all(keys.slice(at, at + STARTING).map((_, index) => start(at + index)));
}
say({ kind: "ready" });
process.on("message", () => {
  const peers = engines.flatMap(({ connections }) => [...connections.peers]);
  say({ kind: "report", messages, connected: peers.filter(({ status }) => status === "connected").length });
});
process.on("disconnect", () => process.exit(0));

function say(message: EndsMessage): void {
  process.send?.(message);
}

/** Resolves when signal and relay know the end. */
async function start(index: number): Promise<void> {
  const key = keys[index]!;
  const plane = await EndPlane.open(answerSyn);
  const device = new EmbeddedDevice(
    { clock, log: silentLogger, plane },
    { privateKey: key, mtu: 1420, peerCapacity: 4 },
  );
  const signal = new SignalClient({ clock, log: silentLogger }, { ...infrastructure.signal!, key });
  const relay = new RelayClient({ clock, log: silentLogger }, { key: key.publicKey });
  const address = parsePrefix(`${order.ends[index]!}/${order.bits}`);
  const deps: Partial<EngineDeps> = {
    ...{ clock, log: silentLogger, device, signal, relay },
    management: { reconnect() {} },
    changed: () => {},
    // Read once for all: a look at the machine's own takes longer than everything else here.
    interfaces: () => order.interfaces,
  };
  const tunnel = { events: new Emitter(), apply: async () => [] };
  const engine = new Engine({ ...deps, tunnel } as unknown as EngineDeps, {
    ownKey: key.publicKey,
    own: { address, address6: undefined, fqdn: `end-${index}`, lazy: true },
    presharedKey: undefined,
    lazy: true,
    inactivityThreshold: 15 * 60_000,
    pinned: new Set(),
    forceRelay: false,
  });
  engines.push(engine);
  signal.events.on("message", () => messages.push(labNow()));
  const home = Promise.withResolvers<void>();
  const registered = Promise.withResolvers<void>();
  relay.events.on("home", ({ connected }) => connected && home.resolve());
  signal.events.on("state", ({ connected }) => connected && registered.resolve());
  engine.applyInfrastructure(infrastructure);
  signal.start();
  const { agent } = order;
  engine.update(
    create(SyncResponseSchema, {
      NetworkMap: create(NetworkMapSchema, {
        Serial: 1n,
        peerConfig: create(PeerConfigSchema, { address: formatPrefix(address), LazyConnectionEnabled: true }),
        remotePeers: [
          create(RemotePeerConfigSchema, {
            wgPubKey: agent.key,
            allowedIps: [`${agent.address}/32`],
            fqdn: "agent.perch.test",
            agentVersion: PROTOCOL_VERSION,
          }),
        ],
      }),
    }),
  );
  await Promise.all([home.promise, registered.promise]);
}

/** The SYN-ACK to a SYN over IPv4 without options; nothing to anything else. */
function answerSyn(packet: Buffer): Uint8Array | undefined {
  const tcp = (packet[0]! & 0x0f) * 4;
  if (packet[0]! >> 4 !== 4 || packet[9] !== PROTOCOL.tcp || packet.length < tcp + TCP_BYTES) return undefined;
  if ((packet[tcp + 13]! & (SYN | ACK)) !== SYN) return undefined;
  const answer = Buffer.alloc(IP_BYTES + TCP_BYTES);
  answer[0] = 0x45;
  write16(answer, 2, answer.length);
  answer[8] = 64;
  answer[9] = PROTOCOL.tcp;
  packet.copy(answer, 12, 16, 20);
  packet.copy(answer, 16, 12, 16);
  write16(answer, 10, foldChecksum(onesSum(answer, 0, IP_BYTES)));
  packet.copy(answer, IP_BYTES, tcp + 2, tcp + 4);
  packet.copy(answer, IP_BYTES + 2, tcp, tcp + 2);
  randomBytes(4).copy(answer, IP_BYTES + 4);
  write32(answer, IP_BYTES + 8, (packet.readUInt32BE(tcp + 4) + 1) >>> 0);
  answer[IP_BYTES + 12] = (TCP_BYTES / 4) << 4;
  answer[IP_BYTES + 13] = SYN | ACK;
  write16(answer, IP_BYTES + 14, 0xffff);
  const pseudoHeader = onesSum(answer, 12, IP_BYTES, PROTOCOL.tcp + TCP_BYTES);
  write16(answer, IP_BYTES + 16, foldChecksum(onesSum(answer, IP_BYTES, answer.length, pseudoHeader)));
  return answer;
}
