// biome-ignore-all lint/suspicious/noConsole: its output is what the tests read

import { createHash, randomBytes } from "node:crypto";
import { once } from "node:events";
import { connect, createServer } from "node:net";
import { setTimeout as sleep } from "node:timers/promises";

/*
 * One TCP connection that lasts as long as the test wants, run inside a namespace:
 *
 *   receive ADDRESS        prints the port, then `BYTES SHA-256` of all that one connection brings
 *   send ADDRESS PORT      sends 8 KiB every 5 ms until a line comes on stdin; prints `BYTES SHA-256`
 */
const [mode, address, port] = process.argv.slice(2);
const hash = createHash("sha256");
let bytes = 0;
const note = (chunk: Buffer): void => {
  hash.update(chunk);
  bytes += chunk.length;
};
const tell = (): void => console.log(`${bytes} ${hash.digest("hex")}`);

if (mode === "receive") {
  const server = createServer((socket) => {
    server.close();
    socket.on("data", note).once("end", () => {
      tell();
      socket.end();
    });
  });
  server.listen(0, address, () => console.log((server.address() as { port: number }).port));
} else {
  const socket = connect(Number(port), address);
  await once(socket, "connect");
  let stopped = false;
  process.stdin.once("data", () => {
    stopped = true;
  });
  while (!stopped) {
    const chunk = randomBytes(8192);
    note(chunk);
    if (!socket.write(chunk)) await once(socket, "drain");
    await sleep(5);
  }
  socket.end();
  tell();
  process.stdin.destroy();
}
