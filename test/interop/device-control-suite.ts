import assert from "node:assert/strict";
import { execFileSync } from "node:child_process";
import { randomBytes } from "node:crypto";
import { createSocket, type Socket } from "node:dgram";
import { once } from "node:events";
import { describe, it } from "node:test";
import { type Endpoint, type IpAddress, parseEndpoint, parseIp, parsePrefix } from "#base/ip.ts";
import { PresharedKey, PrivateKey, PublicKey } from "#base/keys.ts";
import type { Backend, DeviceControl, PeerChange } from "#wireguard/external/parts.ts";
import { startWireguardGo } from "#wireguard/external/wireguard-go-backend.ts";
import { runIp } from "../../lab/namespace.ts";
import { packetCounterArguments, packetCounterRules, packetsIn } from "../../lab/packet-counter.ts";
import { waitUntil } from "../../lab/wait-until.ts";
import { enterOwnNetwork } from "./own-network.ts";
import { dumpOf } from "./wg-dump.ts";
import { missingForLab } from "./wireguard-lab.ts";

const MANY = 10_000;
const INITIATION_BYTES = 148;
const PSK = PresharedKey.parse(Buffer.alloc(32, 7).toString("base64"));

export interface ControlUnderTest {
  /** Its interfaces; absent: of wireguard-go. */
  readonly start?: (options: { readonly interfaceName: string }) => Promise<Backend>;
  readonly create: (interfaceName: string) => DeviceControl;
}

let devices = 0;

function someKey(): PublicKey {
  return PublicKey.fromBytes(randomBytes(32));
}

/** A WireGuard interface under test, `up`, and what changes it. */
class Device implements AsyncDisposable {
  readonly name: string;
  readonly control: DeviceControl;
  readonly privateKey = PrivateKey.generate();
  readonly #backend: Backend;
  port = 0;

  private constructor(backend: Backend, control: DeviceControl) {
    this.name = backend.interfaceName;
    this.#backend = backend;
    this.control = control;
  }

  /** `address`: of the tunnel, with prefix length. */
  static async start({ start = startWireguardGo, create }: ControlUnderTest, address?: string): Promise<Device> {
    const backend = await start({ interfaceName: `pc${process.pid % 1_000_000}n${devices++}` });
    const device = new Device(backend, create(backend.interfaceName));
    execFileSync("nft", [packetCounterRules(device.name)]);
    await runIp(["link", "set", device.name, "addrgenmode", "none", "up"]);
    if (address) await runIp(["addr", "add", address, "dev", device.name]);
    await device.control.change({ privateKey: device.privateKey, listenPort: 0 }, []);
    device.port = (await device.control.read()).listenPort;
    return device;
  }

  get key(): PublicKey {
    return this.privateKey.publicKey;
  }

  get endpoint(): Endpoint {
    return { address: parseIp("127.0.0.1"), port: this.port };
  }

  change(...peers: readonly PeerChange[]): Promise<void> {
    return this.control.change({}, peers);
  }

  async reading(key: PublicKey) {
    return (await this.control.read()).peers.get(key);
  }

  /** Packets that the device gave to IP. */
  get delivered(): number {
    return packetsIn(execFileSync("nft", packetCounterArguments(this.name)).toString());
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.control[Symbol.asyncDispose]();
    await this.#backend.close();
  }
}

/** A UDP socket on loopback. */
class Sink implements Disposable {
  readonly datagrams: Buffer[] = [];
  readonly #socket: Socket;

  private constructor(socket: Socket) {
    this.#socket = socket;
  }

  /** `take` is given each datagram. */
  static async open(address = "127.0.0.1", take?: (datagram: Buffer, from: Endpoint) => void): Promise<Sink> {
    const socket = createSocket(address.includes(":") ? "udp6" : "udp4");
    const sink = new Sink(socket);
    socket.on("message", (datagram, from) => {
      sink.datagrams.push(datagram);
      take?.(datagram, { address: from.address as IpAddress, port: from.port });
    });
    socket.bind(0, address);
    await once(socket, "listening");
    return sink;
  }

  get endpoint(): Endpoint {
    const { address, port } = this.#socket.address();
    return { address: parseIp(address), port };
  }

  async send(count: number, to: IpAddress, port = 9): Promise<void> {
    for (let sent = 0; sent < count; sent++)
      await new Promise<void>((resolve) => this.#socket.send(`packet ${sent}`, port, to, () => resolve()));
  }

  pass(datagram: Buffer, to: Endpoint): void {
    this.#socket.send(datagram, to.port, to.address);
  }

  [Symbol.dispose](): void {
    this.#socket.close();
  }
}

/**
 * What a device above relies on in a DeviceControl, on real interfaces; what the interface then has is asked of
 * the program `wg`. Needs the rights of root.
 */
export function describeDeviceControl(title: string, control: ControlUnderTest): void {
  const skip = missingForLab() ?? false;
  if (!skip) enterOwnNetwork();

  describe(title, { skip, timeout: 60_000 }, () => {
    it("configures 10,000 peers in one call, and reads them in one", async (t) => {
      await using device = await Device.start(control);
      const peers = Array.from({ length: MANY }, (_, n) => ({
        key: someKey(),
        endpoint: parseEndpoint(`127.1.${n >> 8}.${n & 255}:4000`),
        allowedIps: [parsePrefix(`10.1.${n >> 8}.${n & 255}/32`), parsePrefix(`fd00::${(n + 1).toString(16)}/128`)],
        presharedKey: n % 2 ? PSK : null,
        // Each makes a handshake, for which an emulated machine takes its time.
        keepalive: n % 50 ? 0 : 25,
      }));
      const began = performance.now();
      await device.change(...peers);
      const configured = performance.now();
      const { peers: read } = await device.control.read();
      t.diagnostic(
        `${MANY} peers: ${Math.round(configured - began)} ms to configure, ${Math.round(performance.now() - configured)} ms to read`,
      );
      assert.deepEqual(new Set(read.keys()), new Set(peers.map(({ key }) => key)));
      const dump = dumpOf(device.name);
      for (const [n, { key, endpoint, keepalive }] of peers.entries()) {
        assert.deepEqual(read.get(key)?.endpoint, endpoint);
        const told = dump.get(key)!;
        assert.equal(told.presharedKey, n % 2 ? PSK.toBase64() : undefined);
        assert.equal(told.keepalive, keepalive);
        assert.deepEqual(told.allowedIps, [`10.1.${n >> 8}.${n & 255}/32`, `fd00::${(n + 1).toString(16)}/128`]);
      }
      const updates = peers.map(({ key }) => ({ key, updateOnly: true, endpoint: parseEndpoint("127.0.0.1:9") }));
      const before = performance.now();
      await device.change(...updates);
      t.diagnostic(`${MANY} endpoints: ${Math.round(performance.now() - before)} ms`);
      for (const { endpoint } of (await device.control.read()).peers.values())
        assert.deepEqual(endpoint, parseEndpoint("127.0.0.1:9"));
    });

    it("changes of a peer what was named, and nothing else", async () => {
      await using device = await Device.start(control);
      const [key, other] = [someKey(), someKey()];
      const full = {
        endpoint: parseEndpoint("127.0.0.1:1"),
        allowedIps: [parsePrefix("10.0.0.1/32"), parsePrefix("fd00::/64")],
        presharedKey: PSK,
        keepalive: 0,
      };
      await device.change({ key, ...full }, { key: other, ...full, allowedIps: [parsePrefix("10.0.0.2/32")] });
      const now = {
        presharedKey: PSK.toBase64() as string | undefined,
        endpoint: "127.0.0.1:1",
        allowedIps: ["10.0.0.1/32", "fd00::/64"],
        keepalive: 0,
      };
      const beside = { ...now, allowedIps: ["10.0.0.2/32"] };
      const check = async (change: Partial<PeerChange>, becomes: Partial<typeof now>): Promise<void> => {
        await device.change({ key, ...change } as PeerChange);
        const dump = dumpOf(device.name);
        assert.deepEqual(dump.get(key), Object.assign(now, becomes), JSON.stringify(change));
        assert.deepEqual(dump.get(other), beside);
      };
      await check({}, {});
      await check({ endpoint: parseEndpoint("[2001:db8::1]:2") }, { endpoint: "[2001:db8::1]:2" });
      await check({ updateOnly: true, endpoint: parseEndpoint("127.9.8.7:3") }, { endpoint: "127.9.8.7:3" });
      await check({ presharedKey: null }, { presharedKey: undefined });
      await check({ presharedKey: PSK }, { presharedKey: PSK.toBase64() });
      await check({ allowedIps: [parsePrefix("10.3.0.0/16")] }, { allowedIps: ["10.3.0.0/16"] });
      await check(
        { updateOnly: true, allowedIps: [], presharedKey: null },
        { allowedIps: [], presharedKey: undefined },
      );
      await check({ keepalive: 25 }, { keepalive: 25 });
      await check({ keepalive: 0, presharedKey: PSK }, { keepalive: 0, presharedKey: PSK.toBase64() });
    });

    it("gives a prefix to the last peer that asked for it", async () => {
      await using device = await Device.start(control);
      const [one, other] = [someKey(), someKey()];
      const allowedIps = [parsePrefix("10.0.0.1/32")];
      await device.change({ key: one, allowedIps }, { key: other, allowedIps });
      assert.deepEqual(
        [...dumpOf(device.name).entries()].map(([key, peer]) => [key, peer.allowedIps]).sort(),
        [[one, []] as const, [other, ["10.0.0.1/32"]] as const].sort(),
      );
      await device.change({ key: other, remove: true }, { key: one, allowedIps });
      assert.deepEqual(dumpOf(device.name).get(one)?.allowedIps, ["10.0.0.1/32"]);
    });

    it("removes peers, makes none by an update, and takes one away that comes anew in the same call", async () => {
      await using device = await Device.start(control);
      const [one, two, three] = [someKey(), someKey(), someKey()];
      await device.change({ key: one, presharedKey: PSK }, { key: two });
      await device.change(
        { key: three, updateOnly: true, endpoint: parseEndpoint("127.0.0.1:1") },
        { key: two, remove: true },
      );
      assert.deepEqual([...dumpOf(device.name).keys()], [one]);
      await device.change({ key: two, remove: true }, { key: three, remove: true });
      await device.change({ key: one, remove: true }, { key: one, allowedIps: [parsePrefix("10.0.0.1/32")] });
      assert.equal(dumpOf(device.name).get(one)?.presharedKey, undefined);
      await device.change({ key: one, remove: true }, { key: one, updateOnly: true, keepalive: 5 });
      assert.equal(dumpOf(device.name).size, 0);
    });

    it("applies calls in the order in which they were made", async () => {
      await using device = await Device.start(control);
      const key = someKey();
      const calls: Promise<void>[] = [];
      for (let port = 1; port <= 20; port++)
        calls.push(device.change({ key, endpoint: { address: parseIp("127.0.0.1"), port } }));
      assert.equal((await device.reading(key))?.endpoint?.port, 20);
      await Promise.all(calls);
    });

    it("keeps sessions and counters of all others, also of peers that a replacement keeps", async () => {
      await using ours = await Device.start(control, "10.9.0.1/32");
      await using theirs = await Device.start(control);
      await runIp(["route", "add", "10.9.0.2/32", "dev", ours.name]);
      await ours.change({
        key: theirs.key,
        endpoint: theirs.endpoint,
        allowedIps: [parsePrefix("10.9.0.2/32")],
        keepalive: 0,
      });
      await theirs.change({ key: ours.key, allowedIps: [parsePrefix("10.9.0.1/32")] });
      using sink = await Sink.open("10.9.0.1");
      await sink.send(3, parseIp("10.9.0.2"));
      await waitUntil(() => theirs.delivered === 3, "three packets", 4000);
      const before = (await ours.reading(theirs.key))!;
      assert.ok(before.txBytes >= INITIATION_BYTES + 3 * 64, `${before.txBytes}`);
      assert.equal(before.rxBytes, 92);
      assert.ok(Math.abs(before.lastHandshake - Date.now()) < 5000);
      const [stranger, another] = [someKey(), someKey()];
      await ours.change(
        { key: stranger, allowedIps: [parsePrefix("10.8.0.0/16")], presharedKey: PSK },
        { key: another },
      );
      await ours.change({ key: another, remove: true }, { key: stranger, endpoint: parseEndpoint("127.0.0.1:1") });
      await ours.change({ key: theirs.key, updateOnly: true, endpoint: theirs.endpoint, presharedKey: null });
      await ours.control.change({ replacePeers: true }, [{ key: theirs.key }, { key: another }]);
      assert.deepEqual(new Set((await ours.control.read()).peers.keys()), new Set([theirs.key, another]));
      assert.deepEqual(await ours.reading(theirs.key), before);
      await sink.send(2, parseIp("10.9.0.2"));
      await waitUntil(() => theirs.delivered === 5, "two more packets", 4000);
      const after = (await ours.reading(theirs.key))!;
      assert.equal(after.lastHandshake, before.lastHandshake, "in the same session");
      assert.equal(after.rxBytes, before.rxBytes);
    });

    it("loses no packet that waits for a session, whatever is changed meanwhile", async () => {
      await using ours = await Device.start(control, "10.9.0.1/32");
      await using theirs = await Device.start(control);
      await runIp(["route", "add", "10.9.0.2/31", "dev", ours.name]);
      const waiting: Buffer[] = [];
      let isOpen = false;
      const forward = (datagram: Buffer, from: Endpoint): void =>
        proxy.pass(datagram, from.port === ours.port ? theirs.endpoint : ours.endpoint);
      using proxy: Sink = await Sink.open("127.0.0.1", (datagram, from) =>
        isOpen ? forward(datagram, from) : void waiting.push(datagram),
      );
      const peer = {
        key: theirs.key,
        endpoint: proxy.endpoint,
        allowedIps: [parsePrefix("10.9.0.2/32")],
        keepalive: 0,
      };
      await ours.change(peer);
      await theirs.change({ key: ours.key, allowedIps: [parsePrefix("10.9.0.1/32")] });
      using sink = await Sink.open("10.9.0.1");
      await sink.send(4, parseIp("10.9.0.2"));
      await waitUntil(() => waiting.length > 0, "an initiation", 4000);
      assert.deepEqual(
        waiting.map(({ length }) => length),
        [INITIATION_BYTES],
      );
      await ours.change(
        { key: someKey(), allowedIps: [parsePrefix("10.9.0.3/32")] },
        { ...peer, endpoint: parseEndpoint("127.0.0.1:9"), allowedIps: [parsePrefix("10.9.0.2/31")] },
      );
      await ours.change({ key: theirs.key, updateOnly: true, endpoint: proxy.endpoint });
      await ours.change({ key: someKey() }, { key: theirs.key, keepalive: 25 });
      await ours.control.change({ replacePeers: true }, [peer]);
      isOpen = true;
      for (const datagram of waiting) proxy.pass(datagram, theirs.endpoint);
      await waitUntil(() => theirs.delivered >= 4, "the packets that waited", 8000);
      assert.equal(theirs.delivered, 4);
    });

    for (const [family, address] of [
      ["IPv4", "127.0.0.1"],
      ["IPv6", "::1"],
    ] as const) {
      it(`has the device begin a handshake when a keepalive is turned on, over ${family}`, async () => {
        await using device = await Device.start(control);
        using sink = await Sink.open(address);
        const key = someKey();
        await device.change({ key, endpoint: sink.endpoint, keepalive: 0 });
        assert.deepEqual(await device.reading(key), {
          endpoint: sink.endpoint,
          rxBytes: 0,
          txBytes: 0,
          lastHandshake: 0,
        });
        await device.change({ key, updateOnly: true, keepalive: 25 });
        await waitUntil(() => sink.datagrams.length > 0, "an initiation", 4000);
        assert.equal(sink.datagrams[0]!.length, INITIATION_BYTES);
        assert.equal((await device.reading(key))?.txBytes, INITIATION_BYTES);
      });
    }

    it("names what was refused and applies everything else", async () => {
      await using device = await Device.start(control);
      await using other = await Device.start(control);
      const peers: PeerChange[] = Array.from({ length: 300 }, () => ({ key: someKey(), allowedIps: [] }));
      const [bad, worse] = [someKey(), someKey()];
      peers.splice(70, 0, { key: bad, allowedIps: [], keepalive: 70_000 });
      peers.splice(290, 0, { key: worse, keepalive: -1 });
      await assert.rejects(device.change(...peers), (error: Error & { code?: string }) => {
        assert.equal(error.code, "control-failed");
        for (const key of [bad, worse]) assert.ok(error.message.includes(PublicKey.short(key)), error.message);
        return true;
      });
      const present = (await device.control.read()).peers;
      for (const { key } of peers) if (key !== bad && key !== worse) assert.ok(present.has(key));
      await assert.rejects(device.control.change({ listenPort: other.port }, []), {
        code: "control-failed",
        message: new RegExp(`listen port ${other.port}`),
      });
      await device.change({ key: someKey() });
    });

    it("gives up a call of which all is refused", async () => {
      await using device = await Device.start(control);
      const peers = Array.from({ length: 200 }, () => ({ key: someKey(), keepalive: 70_000 }));
      await assert.rejects(device.change(...peers), { code: "control-failed", message: /given up/ });
    });

    it("says that there is no device, and can be tried again", async () => {
      await using absent = control.create("pcnone");
      await assert.rejects(absent.read(), { code: "control-failed", retryable: true });
      await assert.rejects(absent.change({}, [{ key: someKey() }]), { code: "control-failed", retryable: true });
    });

    it("does nothing after its end", async () => {
      await using device = await Device.start(control);
      const calls = [1, 2, 3].map(() => device.change({ key: someKey() }).catch((error: unknown) => error));
      await device.control[Symbol.asyncDispose]();
      for (const result of await Promise.all(calls))
        assert.ok(result === undefined || (result as { code?: string }).code === "closed", String(result));
      await assert.rejects(device.control.read(), { code: "closed" });
      await assert.rejects(device.change(), { code: "closed" });
    });
  });
}
