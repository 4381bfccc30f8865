import assert from "node:assert/strict";
import { setImmediate as turn } from "node:timers/promises";
import { parseEndpoint, parsePrefix } from "#base/ip.ts";
import { PrivateKey, type PublicKey } from "#base/keys.ts";
import { silentLogger } from "#base/log.ts";
import { ManualClock } from "#base/time.ts";
import type { DeviceEvents, DevicePath, DevicePeerConfig } from "../../device.ts";
import { HandshakeManager } from "../../handshake-manager.ts";
import { recordDeviceEvents } from "../../testing/record-device-events.ts";
import { ExternalDevice } from "../external-device.ts";
import { ScriptedBackend, type ScriptedControl, ScriptedEnds, ScriptedPort, ScriptedRules } from "./scripted-parts.ts";

export const DIRECT = { kind: "udp", endpoint: parseEndpoint("192.0.2.2:51820") } as const satisfies DevicePath;
export const ELSEWHERE = { kind: "udp", endpoint: parseEndpoint("198.51.100.7:4000") } as const satisfies DevicePath;
export const HERE = parseEndpoint("192.0.2.1:51820");
export const RELAY = { kind: "relay" } as const satisfies DevicePath;
export const NONE = { kind: "none" } as const satisfies DevicePath;

/** A datagram of the outer form of a message of WireGuard. */
export function message(type: 1 | 2 | 3 | 4, bytes = [0, 148, 92, 64, 128][type]!): Uint8Array {
  const datagram = new Uint8Array(bytes);
  datagram[0] = type;
  datagram[8] = serial++ & 255;
  return datagram;
}
let serial = 1;

/** An external device of scripted parts that knows one peer, whose end of the protocol is real as far as it initiates. */
export function setUp({ checkPort = () => {} }: { checkPort?: (port: number) => void } = {}) {
  const clock = new ManualClock(100_000);
  const backend = new ScriptedBackend();
  const ends = new ScriptedEnds();
  const port = new ScriptedPort();
  const rules = new ScriptedRules();
  const privateKey = PrivateKey.generate();
  const device = new ExternalDevice(
    { clock, log: silentLogger, checkPort },
    { backend, localEnds: ends, sharedPort: port, rules },
    { privateKey, listenPort: 51820, mtu: 1420 },
  );
  const remoteKey = PrivateKey.generate();
  const peer = remoteKey.publicKey;
  const us = { slot: 1, key: device.publicKey, presharedKey: undefined };
  // What the other end says is the protocol; this device only looks at initiations.
  const remote = new HandshakeManager(
    { peers: { get: (key: PublicKey) => (key === us.key ? us : undefined), at: () => us }, wall: () => clock.wall() },
    remoteKey,
  );
  const events = recordDeviceEvents(device);
  const allowedIps = [parsePrefix("100.64.0.2/32")];
  const set = (mode: "asleep" | "awake", more: Partial<DevicePeerConfig> = {}): void =>
    device.setPeer(peer, { mode, allowedIps, persistentKeepalive: mode === "awake" ? 25 : 0, ...more });
  const world = {
    clock,
    backend,
    ends,
    port,
    rules,
    device,
    peer,
    events,
    set,
    get control(): ScriptedControl {
      return backend.control;
    },
    local: () => ends.opened.get(peer)!,
    takeEvents: () => events.splice(0).map(({ name }) => name),
    takeRelayed: () =>
      events
        .splice(0)
        .flatMap(({ name, payload }) =>
          name === "relay-out" ? [(payload as DeviceEvents["relay-out"]).datagram] : [],
        ),
    remoteInitiation: (): Uint8Array => {
      const action = remote.initiate(1, clock.now(), 0)[0]!;
      assert.ok(action.kind === "send-initiation");
      return action.message;
    },
    /** The device sends to the peer's local end. */
    out: (datagram: Uint8Array) => {
      ends.events.emit("datagram", { key: peer, datagram });
      return datagram;
    },
    /** Time passes in small steps, so that what the device answers comes in between. */
    pass: async (ms: number) => {
      const end = clock.now() + ms;
      await turn();
      while (clock.now() < end) {
        clock.advance(Math.min(5, end - clock.now()));
        await turn();
      }
    },
    /** An awake peer with a session over a path. */
    connect: async (path: DevicePath) => {
      set("asleep");
      set("awake");
      device.setPath(peer, path);
      await turn();
      backend.control.note(peer, { lastHandshake: clock.wall(), rxBytes: 92, txBytes: 148 });
      await world.pass(1_100);
      assert.ok(world.takeEvents().includes("established"));
      backend.control.take();
    },
  };
  return world;
}
