// biome-ignore-all lint/suspicious/noConsole: its output is what the tests read

import { createHash } from "node:crypto";
import { createSocket } from "node:dgram";
import { connect, createServer } from "node:net";
import { parseEndpoint } from "#base/ip.ts";
import { libc } from "#net/libc.ts";
import { encodeSockaddr } from "#net/sockaddr.ts";

/*
 * Traffic whose arrival can be checked, run inside a namespace:
 *
 *   tcp-receive ADDRESS            prints the port, then the SHA-256 of all that one connection brings
 *   tcp-send ENDPOINT BYTES        prints the SHA-256 of what it sent
 *   udp-receive ADDRESS COUNT      prints the port, then the sorted digest of COUNT datagrams, or of those that came in 3 s
 *   udp-send ENDPOINT BURSTS SIZE  bursts of 40 datagrams of SIZE bytes in one send (UDP_SEGMENT), the last one smaller
 */
const [mode, target, first = "0", second = "0"] = process.argv.slice(2);
const DATAGRAMS_PER_BURST = 40;

/** Bytes that do not repeat, the same for the same seed. */
function noise(bytes: number, seed: number): Buffer {
  const buffer = Buffer.alloc(bytes);
  let state = seed | 1;
  for (let i = 0; i + 4 <= bytes; i += 4) {
    state = Math.imul(state ^ (state >>> 15), 0x2c1b3c6d) + 0x9e3779b9;
    buffer.writeInt32LE(state | 0, i);
  }
  return buffer;
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
    case "udp-receive": {
      const socket = createSocket({ type: target!.includes(":") ? "udp6" : "udp4", recvBufferSize: 8 << 20 });
      const seen: string[] = [];
      const finish = (): void => {
        console.log(createHash("sha256").update(seen.sort().join()).digest("hex"), seen.length);
        socket.close();
        clearTimeout(timer);
      };
      const timer = setTimeout(finish, 3000);
      socket.on("message", (message) => {
        seen.push(createHash("sha256").update(message).digest("hex"));
        if (seen.length === Number(first)) finish();
      });
      socket.bind(0, target, () => console.log(socket.address().port));
      return;
    }
    case "udp-send": {
      await sendBursts(target!, Number(first), Number(second));
      return;
    }
    default:
      throw new Error(`unknown mode ${mode}`);
  }
}

async function sendBursts(target: string, bursts: number, size: number): Promise<void> {
  const to = parseEndpoint(target);
  const name = encodeSockaddr(to);
  const c = libc();
  const fd = c.socket(to.address.includes(":") ? 10 : 2, 2 | 0x80000, 0);
  const seen: string[] = [];
  for (let burst = 0; burst < bursts; burst++) {
    const payload = new Uint8Array(noise(DATAGRAMS_PER_BURST * size - 7, burst + 1));
    for (let at = 0; at < payload.length; at += size)
      seen.push(
        createHash("sha256")
          .update(payload.subarray(at, at + size))
          .digest("hex"),
      );
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
    // Not faster than a receiver in JavaScript can read.
    await new Promise((done) => setTimeout(done, 2));
  }
  console.log(createHash("sha256").update(seen.sort().join()).digest("hex"), seen.length);
}

await main();
