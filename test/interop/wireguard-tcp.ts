/**
 * TCP through a tunnel, for wireguard-lab.ts: `serve ADDRESS PORT` sends back what it gets; `send ADDRESS PORT BYTES`
 * sends random bytes to it and prints, as JSON, whether the same came back.
 */
import { createHash, randomBytes } from "node:crypto";
import { connect, createServer } from "node:net";
import { Readable } from "node:stream";

const [mode, address, port, bytes] = process.argv.slice(2);

if (mode === "serve") {
  const server = createServer({ allowHalfOpen: true }, (socket) => socket.on("error", () => {}).pipe(socket));
  server.listen(Number(port), address, () => process.stdout.write("ready\n"));
} else {
  const sent = createHash("sha256");
  const received = createHash("sha256");
  const chunk = randomBytes(65_536);
  let left = Number(bytes);
  let back = 0;
  const source = new Readable({
    read() {
      if (left === 0) {
        this.push(null);
        return;
      }
      const part = Buffer.from(chunk.subarray(0, Math.min(left, chunk.length)));
      part.writeUInt32LE(left, 0);
      left -= part.length;
      sent.update(part);
      this.push(part);
    },
  });
  const socket = connect({ host: address!, port: Number(port), allowHalfOpen: true });
  source.pipe(socket);
  socket.on("data", (part) => {
    received.update(part);
    back += part.length;
  });
  socket.on("end", () => {
    const isSame = sent.digest("hex") === received.digest("hex");
    process.stdout.write(`${JSON.stringify({ back, isSame })}\n`);
  });
}
