// biome-ignore-all lint/suspicious/noConsole: its output is what the tests read

import { createHash, hash } from "node:crypto";
import { createSocket } from "node:dgram";
import { connect, createServer } from "node:net";
import { createInterface } from "node:readline";
import { setTimeout as sleep } from "node:timers/promises";
import { parseEndpoint } from "#base/ip.ts";
import { type Libc, libc } from "#net/libc.ts";
import { encodeSockaddr } from "#net/sockaddr.ts";

/*
 * Traffic whose arrival can be checked, run inside a namespace:
 *
 *   tcp-receive ADDRESS            prints the port, then the SHA-256 of all that one connection brings
 *   tcp-send ENDPOINT BYTES        prints the SHA-256 of what it sent
 *   udp-receive ADDRESS SIZE       prints the port, then the number of each burst that it has got something of; for a line
 *                                  `end COUNT` on stdin the UdpReceived of what came, when COUNT did or nothing comes any more
 *   udp-send ENDPOINT BURSTS SIZE AHEAD
 *                                  bursts of 40 datagrams of SIZE bytes in one send each (UDP_SEGMENT), the last datagram
 *                                  smaller; keeps AHEAD bursts (default 3) ahead of the numbers on stdin; prints the UdpSent
 *
 * A datagram begins with its number, 32 bits.
 */
const [mode, target, first = "0", second = "0", third] = process.argv.slice(2);
const DATAGRAMS_PER_BURST = 40;
/** With the one under way as many as our receiver's buffer holds, for which the administrator's limit is 208 KiB, doubled. */
const BURSTS_AHEAD = 3;
/** When all of a burst was lost, nobody says that it came. */
const PATIENCE_MS = 50;
/** Longer than a link that reorders holds a packet back. */
const SETTLE_MS = 300;
const HASH_BYTES = 32;

export interface UdpSent {
  readonly datagrams: number;
  /** SHA-256 of the SHA-256 of each datagram, in the order of their numbers. */
  readonly hash: string;
}

export interface UdpReceived {
  /** Different ones. */
  readonly datagrams: number;
  /** The same of what came. */
  readonly hash: string;
  readonly duplicates: number;
  /** Not what was sent with that number. */
  readonly altered: number;
  readonly outOfOrder: number;
}

/** Bytes that do not repeat, the same for the same seed. */
function noise(bytes: number, seed: number): Buffer<ArrayBuffer> {
  const buffer = Buffer.alloc(bytes);
  let state = seed | 1;
  for (let i = 0; i + 4 <= bytes; i += 4) {
    state = Math.imul(state ^ (state >>> 15), 0x2c1b3c6d) + 0x9e3779b9;
    buffer.writeInt32LE(state | 0, i);
  }
  return buffer;
}

/** The datagrams of a burst, one after the other. */
function burstOf(number: number, size: number): Buffer<ArrayBuffer> {
  const payload = noise(DATAGRAMS_PER_BURST * size - 7, number + 1);
  for (let i = 0; i < DATAGRAMS_PER_BURST; i++) payload.writeUInt32LE(number * DATAGRAMS_PER_BURST + i, i * size);
  return payload;
}

async function main(): Promise<void> {
  switch (mode) {
    case "tcp-receive": {
      const server = createServer((socket) => {
        const hash = createHash("sha256");
        socket.on("data", (data) => hash.update(data));
        socket.on("end", () => {
          console.log(hash.digest("hex"));
          socket.end();
          server.close();
        });
      });
      server.listen(0, target, () => console.log((server.address() as { port: number }).port));
      return;
    }
    case "tcp-send": {
      const { address, port } = parseEndpoint(target!);
      const hash = createHash("sha256");
      const socket = connect(port, address);
      let left = Number(first);
      const write = (): void => {
        while (left > 0) {
          // Odd sizes, so that segments end anywhere.
          const part = noise(Math.min(left, 300_001), left);
          left -= part.length;
          hash.update(part);
          if (!socket.write(part)) return;
        }
        socket.end();
        console.log(hash.digest("hex"));
      };
      socket.on("drain", write);
      socket.on("connect", write);
      socket.resume();
      return;
    }
    case "udp-receive":
      return receiveDatagrams(target!, Number(first));
    case "udp-send":
      return sendBursts(target!, Number(first), Number(second), Number(third ?? BURSTS_AHEAD));
    default:
      throw new Error(`unknown mode ${mode}`);
  }
}

function receiveDatagrams(address: string, size: number): void {
  const socket = createSocket({ type: address.includes(":") ? "udp6" : "udp4", recvBufferSize: 8 << 20 });
  let hashes = Buffer.alloc(1 << 20);
  let got = new Uint8Array(hashes.length / HASH_BYTES);
  let [datagrams, duplicates, altered, outOfOrder, newest] = [0, 0, 0, 0, -1];
  let reported = -1;
  let expected = Number.POSITIVE_INFINITY;
  let lastAt = 0;
  let burst = { number: -1, bytes: Buffer.alloc(0) };

  const isWhole = (message: Buffer, number: number): boolean => {
    const wanted = Math.floor(number / DATAGRAMS_PER_BURST);
    if (burst.number !== wanted) burst = { number: wanted, bytes: burstOf(wanted, size) };
    const at = (number % DATAGRAMS_PER_BURST) * size;
    return message.equals(burst.bytes.subarray(at, at + size));
  };
  socket.on("message", (message) => {
    lastAt = performance.now();
    const number = message.length < 4 ? Number.NaN : message.readUInt32LE(0);
    if (!(number < 1 << 26) || !isWhole(message, number)) {
      altered++;
      return;
    }
    if (number >= got.length) {
      const bytes = Buffer.alloc(2 * HASH_BYTES * number);
      hashes.copy(bytes);
      const flags = new Uint8Array(2 * number);
      flags.set(got);
      [hashes, got] = [bytes, flags];
    }
    if (got[number]) {
      duplicates++;
      return;
    }
    got[number] = 1;
    datagrams++;
    if (number < newest) outOfOrder++;
    newest = Math.max(newest, number);
    hash("sha256", message, "buffer").copy(hashes, number * HASH_BYTES);
    const reached = Math.floor(newest / DATAGRAMS_PER_BURST);
    if (reached === reported) return;
    reported = reached;
    console.log(reached);
  });
  const finish = async (): Promise<void> => {
    while (datagrams < expected && performance.now() - lastAt < SETTLE_MS) await sleep(20);
    const all = createHash("sha256").update(hashes.subarray(0, (newest + 1) * HASH_BYTES));
    const received: UdpReceived = { datagrams, hash: all.digest("hex"), duplicates, altered, outOfOrder };
    console.log(JSON.stringify(received));
    socket.close();
    process.stdin.destroy();
  };
  createInterface({ input: process.stdin }).on("line", (line) => {
    expected = Number(line.replace("end ", ""));
    lastAt = performance.now();
    void finish();
  });
  socket.bind(0, address, () => console.log(socket.address().port));
}

async function sendBursts(target: string, bursts: number, size: number, ahead: number): Promise<void> {
  const to = parseEndpoint(target);
  const c = libc();
  const fd = c.socket(to.address.includes(":") ? 10 : 2, 2 | 0x80000, 0);
  const all = createHash("sha256");
  let reached = -1;
  let heard: (() => void) | undefined;
  createInterface({ input: process.stdin }).on("line", (line) => {
    reached = Number(line);
    heard?.();
  });
  for (let number = 0; number < bursts; number++) {
    const payload = burstOf(number, size);
    for (let at = 0; at < payload.length; at += size)
      all.update(hash("sha256", payload.subarray(at, at + size), "buffer"));
    sendSegmented(c, fd, encodeSockaddr(to), new Uint8Array(payload), size);
    while (number - reached >= ahead) {
      const before = reached;
      const news = new Promise<void>((done) => {
        heard = done;
      });
      await Promise.race([news, sleep(PATIENCE_MS)]);
      if (reached === before) break;
    }
  }
  const sent: UdpSent = { datagrams: bursts * DATAGRAMS_PER_BURST, hash: all.digest("hex") };
  console.log(JSON.stringify(sent));
  process.stdin.destroy();
}

/** One sendmsg with UDP_SEGMENT, which the kernel hands to the TUN as one packet when it may. */
function sendSegmented(c: Libc, fd: number, name: Uint8Array, payload: Uint8Array, size: number): void {
  const control = new Uint8Array(24);
  const controlView = new DataView(control.buffer);
  controlView.setUint32(0, 18, true);
  controlView.setUint32(8, 17, true);
  controlView.setUint32(12, 103, true);
  controlView.setUint16(16, size, true);
  const iovec = new BigUint64Array([BigInt(c.addressOf(payload)), BigInt(payload.length)]);
  const message = new Uint8Array(56);
  const view = new DataView(message.buffer);
  view.setBigUint64(0, BigInt(c.addressOf(name)), true);
  view.setUint32(8, name.length, true);
  view.setBigUint64(16, BigInt(c.addressOf(iovec)), true);
  view.setUint32(24, 1, true);
  view.setBigUint64(32, BigInt(c.addressOf(control)), true);
  view.setUint32(40, control.length, true);
  if (c.sendmsg(fd, message, 0) < 0) throw new Error(`sendmsg fails with errno ${c.errno()}`);
}

if (import.meta.main) await main();
