import assert from "node:assert/strict";
import { createSocket, type RemoteInfo, type Socket } from "node:dgram";
import { once } from "node:events";
import { readdirSync } from "node:fs";
import { describe, test } from "node:test";
import { setTimeout as pause } from "node:timers/promises";
import type { Endpoint } from "#base/ip.ts";
import { PrivateKey, PublicKey } from "#base/keys.ts";
import type { LocalEnds } from "../parts.ts";
import { fakeInitiation } from "./fake-initiation.ts";

const PATIENCE_MS = 3000;

/** One way to make local ends. */
export interface LocalEndsMaker {
  readonly name: string;
  /** Why it cannot run here. */
  readonly missing?: string | undefined;
  /** With what it needs besides, which goes when it is disposed of. */
  create(devicePort: number): Promise<LocalEnds>;
}

interface Arrival {
  readonly bytes: Buffer;
  readonly from: Endpoint;
}

/** A UDP socket on all addresses, as a device has it. */
export class FakeDevice implements AsyncDisposable {
  readonly arrivals: Arrival[] = [];
  readonly #socket: Socket;
  #arrived = Promise.withResolvers<void>();

  private constructor(socket: Socket) {
    this.#socket = socket;
    socket.on("message", (bytes: Buffer, { address, port }: RemoteInfo) => {
      this.arrivals.push({ bytes, from: { address: address as Endpoint["address"], port } });
      this.#arrived.resolve();
      this.#arrived = Promise.withResolvers();
    });
  }

  static async open(): Promise<FakeDevice> {
    const socket = createSocket({ type: "udp4", recvBufferSize: 4 << 20 });
    socket.bind(0);
    await once(socket, "listening");
    return new FakeDevice(socket);
  }

  get port(): number {
    return this.#socket.address().port;
  }

  async send(bytes: Uint8Array, to: Endpoint): Promise<void> {
    await new Promise<void>((resolve, reject) =>
      this.#socket.send(bytes, to.port, to.address, (error) => (error ? reject(error) : resolve())),
    );
  }

  /** The arrivals, when there are so many. */
  async received(count: number): Promise<readonly Arrival[]> {
    await until(
      () => this.arrivals.length >= count,
      () => this.#arrived.promise,
      () => `${this.arrivals.length} of ${count} datagrams arrived at the device`,
    );
    return this.arrivals;
  }

  async [Symbol.asyncDispose](): Promise<void> {
    const closed = once(this.#socket, "close");
    this.#socket.close();
    await closed;
  }
}

/** What local ends told, and the endpoint that each peer has now. */
export class Watched {
  readonly ends: LocalEnds;
  readonly datagrams: { key: PublicKey; datagram: Uint8Array }[] = [];
  readonly endpoints = new Map<PublicKey, Endpoint>();
  moves = 0;
  #told = Promise.withResolvers<void>();

  constructor(ends: LocalEnds) {
    this.ends = ends;
    ends.events.on("moved", ({ key, endpoint }) => {
      this.moves++;
      this.endpoints.set(key, endpoint);
    });
    ends.events.on("datagram", (event) => {
      this.datagrams.push(event);
      this.#told.resolve();
      this.#told = Promise.withResolvers();
    });
  }

  open(key: PublicKey): Endpoint {
    const endpoint = this.ends.open(key);
    this.endpoints.set(key, endpoint);
    return endpoint;
  }

  at(key: PublicKey): Endpoint {
    return this.endpoints.get(key)!;
  }

  /** The datagrams, when there are so many. */
  async told(count: number): Promise<typeof this.datagrams> {
    await until(
      () => this.datagrams.length >= count,
      () => this.#told.promise,
      () => `${this.datagrams.length} of ${count} datagrams were told`,
    );
    return this.datagrams;
  }
}

async function until(isDone: () => boolean, change: () => Promise<void>, state: () => string): Promise<void> {
  const isLate = pause(PATIENCE_MS, true, { ref: false });
  while (!isDone()) if (await Promise.race([change(), isLate])) throw new Error(`${state()} in ${PATIENCE_MS} ms`);
}

/** A public key that nobody has the private key of; cheaper than a real one. */
export function someKey(): PublicKey {
  return PublicKey.fromBytes(crypto.getRandomValues(new Uint8Array(32)));
}

const DATA = Uint8Array.of(4, 0, 0, 0, ...new Array<number>(60).fill(7));
const openDescriptors = (): number => readdirSync("/proc/self/fd").length;
const threads = (): number => readdirSync("/proc/self/task").length;

/** What every kind of local ends does, to a device that is a plain UDP socket. */
export function describeLocalEnds(maker: LocalEndsMaker): void {
  const options = { timeout: 15_000 };
  describe(maker.name, { skip: maker.missing ?? false }, () => {
    test("what the device sends to a peer's endpoint is told with the peer, byte by byte", options, async () => {
      await using device = await FakeDevice.open();
      await using ends = await maker.create(device.port);
      const watched = new Watched(ends);
      const [a, b] = [PrivateKey.generate().publicKey, PrivateKey.generate().publicKey];
      for (const key of [a, b]) watched.open(key);
      for (const key of [b, a]) {
        const initiation = fakeInitiation(key);
        await device.send(initiation, watched.at(key));
        const { key: told, datagram } = (await watched.told(watched.datagrams.length + 1)).at(-1)!;
        assert.equal(told, key);
        assert.deepEqual(Buffer.from(datagram), Buffer.from(initiation));
      }
      // Data names nobody: from the first initiation on the endpoint is the peer's alone.
      assert.notDeepEqual(watched.at(a), watched.at(b));
      await device.send(DATA, watched.at(a));
      assert.deepEqual((await watched.told(3)).at(-1), { key: a, datagram: Buffer.from(DATA) });
    });

    test("endpoints are loopback addresses other than 127.0.0.1", options, async () => {
      await using ends = await maker.create(4711);
      const { address, port } = ends.open(someKey());
      assert.match(address, /^127\.(?!0\.)\d+\.\d+\.\d+$/);
      assert.ok(port > 0);
    });

    test("what is delivered arrives at the device's port from the peer's endpoint, in order", options, async () => {
      await using device = await FakeDevice.open();
      await using ends = await maker.create(device.port);
      const watched = new Watched(ends);
      const [a, b] = [someKey(), someKey()];
      for (const key of [a, b]) watched.open(key);
      // Sizes and peers change: what is sent as one message must come apart where it was put together.
      const sent = Array.from({ length: 300 }, (_, index) => ({
        key: index % 50 < 40 ? a : b,
        bytes: Buffer.alloc(index % 7 === 6 ? 32 : 1200, index & 0xff),
      }));
      for (const [index, { key, bytes }] of sent.entries()) {
        assert.equal(ends.deliver(key, bytes), true);
        bytes.fill(0xee);
        // A socket's receive buffer has an end; the turn's does too.
        if (index % 100 === 99) await device.received(index + 1);
      }
      const arrivals = await device.received(sent.length);
      for (const key of [a, b]) {
        const want = sent.map((_, index) => index).filter((index) => sent[index]!.key === key);
        const got = arrivals.filter(
          ({ from }) => from.address === watched.at(key).address && from.port === watched.at(key).port,
        );
        assert.deepEqual(
          got.map(({ bytes }) => [bytes[0], bytes.length]),
          want.map((index) => [index & 0xff, sent[index]!.bytes.length]),
        );
      }
      assert.equal(arrivals.length, sent.length);
    });

    test("an endpoint opened again stays, and so does one that datagrams passed", options, async () => {
      await using device = await FakeDevice.open();
      await using ends = await maker.create(device.port);
      const watched = new Watched(ends);
      const key = someKey();
      watched.open(key);
      await device.send(fakeInitiation(key), watched.at(key));
      await watched.told(1);
      assert.deepEqual(ends.open(key), watched.at(key));
      ends.deliver(key, DATA);
      assert.deepEqual((await device.received(1))[0]!.from, watched.at(key));
    });

    test("who does not send from the device's port is not heard", options, async () => {
      await using device = await FakeDevice.open();
      await using stranger = await FakeDevice.open();
      await using ends = await maker.create(device.port);
      const watched = new Watched(ends);
      const key = someKey();
      const endpoint = watched.open(key);
      await stranger.send(fakeInitiation(key), endpoint);
      await device.send(fakeInitiation(key), endpoint);
      assert.equal((await watched.told(1)).length, 1);

      // The device takes another port: the earlier one is a stranger's.
      ends.setDevicePort(stranger.port);
      await device.send(DATA, watched.at(key));
      const last = fakeInitiation(key);
      await stranger.send(last, watched.at(key));
      const datagrams = await watched.told(2);
      assert.equal(datagrams.length, 2);
      assert.deepEqual(Buffer.from(datagrams[1]!.datagram), Buffer.from(last));
      ends.deliver(key, DATA);
      assert.deepEqual((await stranger.received(1))[0]!.from, watched.at(key));
      assert.equal(device.arrivals.length, 0);
    });

    test("a closed peer is not heard any more, and nothing is delivered for it", options, async () => {
      await using device = await FakeDevice.open();
      await using ends = await maker.create(device.port);
      const watched = new Watched(ends);
      const [gone, stays] = [someKey(), someKey()];
      for (const key of [gone, stays]) watched.open(key);
      ends.close(gone);
      ends.close(gone);
      assert.equal(ends.deliver(gone, DATA), false);
      assert.equal(ends.deliver(someKey(), DATA), false);
      await device.send(fakeInitiation(gone), watched.at(gone));
      await device.send(fakeInitiation(stays), watched.at(stays));
      assert.deepEqual(
        (await watched.told(1)).map(({ key }) => key),
        [stays],
      );
      watched.open(gone);
      await device.send(fakeInitiation(gone), watched.at(gone));
      assert.equal((await watched.told(2))[1]!.key, gone);
    });

    test("a thousand peers are told apart", options, async () => {
      await using device = await FakeDevice.open();
      await using ends = await maker.create(device.port);
      const watched = new Watched(ends);
      const keys = Array.from({ length: 1000 }, someKey);
      for (const key of keys) watched.open(key);
      const initiations = new Map(keys.map((key) => [key, Buffer.from(fakeInitiation(key))]));
      for (const [index, key] of keys.entries()) {
        await device.send(initiations.get(key)!, watched.at(key));
        if (index % 50 === 49) await watched.told(index + 1);
      }
      const datagrams = await watched.told(keys.length);
      assert.equal(new Set(datagrams.map(({ key }) => key)).size, keys.length);
      for (const { key, datagram } of datagrams) assert.deepEqual(Buffer.from(datagram), initiations.get(key));
    });

    test("two on one machine do not disturb each other", options, async () => {
      await using one = await FakeDevice.open();
      await using two = await FakeDevice.open();
      await using endsOne = await maker.create(one.port);
      await using endsTwo = await maker.create(two.port);
      const [watchedOne, watchedTwo] = [new Watched(endsOne), new Watched(endsTwo)];
      const key = someKey();
      assert.notDeepEqual(watchedOne.open(key), watchedTwo.open(key));
      await two.send(fakeInitiation(key), watchedOne.at(key));
      await one.send(fakeInitiation(key), watchedOne.at(key));
      await two.send(fakeInitiation(key), watchedTwo.at(key));
      await Promise.all([watchedOne.told(1), watchedTwo.told(1)]);
      assert.deepEqual([watchedOne.datagrams.length, watchedTwo.datagrams.length], [1, 1]);
    });

    test("closing leaves no socket and no thread", options, async () => {
      await using device = await FakeDevice.open();
      // The first one loads what stays loaded.
      await (await maker.create(device.port))[Symbol.asyncDispose]();
      const before = { descriptors: openDescriptors(), threads: threads() };
      const ends = await maker.create(device.port);
      const watched = new Watched(ends);
      const keys = Array.from({ length: 20 }, someKey);
      for (const key of keys) watched.open(key);
      await device.send(fakeInitiation(keys[0]!), watched.at(keys[0]!));
      await watched.told(1);
      assert.ok(openDescriptors() > before.descriptors);
      await ends[Symbol.asyncDispose]();
      await ends[Symbol.asyncDispose]();
      assert.deepEqual({ descriptors: openDescriptors(), threads: threads() }, before);
      assert.equal(ends.deliver(keys[0]!, DATA), false);
    });
  });
}
