import { createSocket, type Socket } from "node:dgram";
import { connect, createServer, isIPv6 } from "node:net";
import { type FlowCommand, labNow, type TrafficCommand, type TrafficReply, type TrafficResult } from "./traffic.ts";

/*
 * Runs in a host of the lab: answers whatever arrives (UDP and TCP echo) and makes traffic on command. A datagram holds
 *   0 run u32 | 4 number u32 | 8 filler
 * and is sent back as it came; every copy that arrives is counted, so a second one is seen.
 */

const HEADER_BYTES = 8;
let nextRun = 1;

for (const [type, address] of [
  ["udp4", "0.0.0.0"],
  ["udp6", "::"],
] as const) {
  const echo = createSocket({ type, ...(type === "udp6" && { ipv6Only: true }) });
  echo.on("message", (data, from) => echo.send(data, from.port, from.address));
  echo.on("error", () => {});
  echo.bind(Number(process.argv[2]), address);
}
createServer((socket) => {
  socket.on("error", () => {});
  socket.pipe(socket);
}).listen(Number(process.argv[2]), "::", () => reply({ id: 0, result: {} as TrafficResult }));

process.on("message", (command: TrafficCommand | FlowCommand) => {
  if (command.protocol === "flow") return steerFlow(command);
  run(command).then(
    (result) => reply({ id: command.id, result }),
    (error: Error) => reply({ id: command.id, error: error.message }),
  );
});
process.on("disconnect", () => process.exit(0));

function reply(message: TrafficReply): void {
  process.send?.(message);
}

function run(command: TrafficCommand): Promise<TrafficResult> {
  return command.protocol === "udp" ? sendDatagrams(command) : exchangeStream(command);
}

/** Sends all datagrams, paced by `intervalMs` (0: at once), and waits for the last echo or the timeout. */
function sendDatagrams(command: TrafficCommand): Promise<TrafficResult> {
  const { to, port, count, bytes, intervalMs, timeoutMs, settleMs } = command;
  const runNumber = nextRun++;
  const seen = new Uint32Array(count);
  const order: number[] = [];
  const socket: Socket = createSocket(isIPv6(to) ? "udp6" : "udp4");
  const startedAt = Date.now();
  const start = performance.now();
  const sentAt = new Float64Array(count);
  let firstMs = Number.NaN;
  let lastMs = Number.NaN;
  let ended = false;
  return new Promise((resolve, reject) => {
    const finish = (): void => {
      clearTimeout(timeout);
      if (ended) return;
      ended = true;
      socket.close();
      resolve({
        sent: count,
        received: seen.filter((copies) => copies > 0).length,
        duplicates: seen.reduce((sum, copies) => sum + Math.max(0, copies - 1), 0),
        inOrder: order.every((number, index) => index === 0 || number > order[index - 1]!),
        startedAt,
        firstMs,
        lastMs,
      });
    };
    const timeout = setTimeout(finish, timeoutMs);
    socket.on("error", reject);
    socket.on("message", (data) => {
      if (data.length < HEADER_BYTES || data.readUInt32LE(0) !== runNumber) return;
      const number = data.readUInt32LE(4);
      if (number >= count) return;
      seen[number]!++;
      order.push(number);
      lastMs = performance.now() - sentAt[number]!;
      if (number === 0 && Number.isNaN(firstMs)) firstMs = performance.now() - start;
      // A moment more after the last one: a second copy would still be on its way.
      if (order.length === count) setTimeout(finish, settleMs);
    });
    const send = (number: number): void => {
      const data = Buffer.alloc(Math.max(HEADER_BYTES, bytes));
      data.writeUInt32LE(runNumber, 0);
      data.writeUInt32LE(number, 4);
      sentAt[number] = performance.now();
      socket.send(data, port, to);
    };
    if (intervalMs === 0) for (let number = 0; number < count; number++) send(number);
    else {
      let number = 0;
      const tick = (): void => {
        send(number++);
        if (number < count) setTimeout(tick, intervalMs);
      };
      tick();
    }
  });
}

const flows = new Map<number, () => void>();

/** Starts a flow, or ends one. Late timers are made up for, so that the number of datagrams tells the time. */
function steerFlow({ id, to, port, bytes = 0, intervalMs = 10, settleMs = 0 }: FlowCommand): void {
  if (to === undefined) return flows.get(id)?.();
  const runNumber = nextRun++;
  const sentAt: number[] = [];
  const echoedAt: number[] = [];
  const copies: number[] = [];
  const socket = createSocket(isIPv6(to) ? "udp6" : "udp4");
  // An address that goes away while the flow runs is part of what is looked at: those datagrams are lost.
  socket.on("error", () => {});
  socket.on("message", (data) => {
    if (data.length < HEADER_BYTES || data.readUInt32LE(0) !== runNumber) return;
    const number = data.readUInt32LE(4);
    if (number >= copies.length) return;
    if (copies[number]!++ === 0) echoedAt[number] = labNow();
  });
  const start = labNow();
  const timer = setInterval(() => {
    while (start + sentAt.length * intervalMs <= labNow()) {
      const data = Buffer.alloc(Math.max(HEADER_BYTES, bytes));
      data.writeUInt32LE(runNumber, 0);
      data.writeUInt32LE(sentAt.length, 4);
      sentAt.push(labNow());
      echoedAt.push(0);
      copies.push(0);
      socket.send(data, port!, to, () => {});
    }
  }, intervalMs);
  flows.set(id, () => {
    clearInterval(timer);
    flows.delete(id);
    setTimeout(() => {
      socket.close();
      reply({ id, flow: { sentAt, echoedAt, copies } });
    }, settleMs);
  });
}

/** Connects, sends `count` times `bytes`, and reads them back. */
function exchangeStream(command: TrafficCommand): Promise<TrafficResult> {
  const { to, port, count, bytes, timeoutMs, settleMs } = command;
  const total = count * bytes;
  const startedAt = Date.now();
  const start = performance.now();
  return new Promise((resolve, reject) => {
    let received = 0;
    let firstMs = Number.NaN;
    const socket = connect(port, to);
    const timeout = setTimeout(() => {
      socket.destroy();
      reject(new Error(`tcp to ${to}: ${received} of ${total} bytes within ${timeoutMs} ms`));
    }, timeoutMs);
    socket.on("error", (error) => {
      clearTimeout(timeout);
      reject(error);
    });
    socket.on("connect", () => socket.write(Buffer.alloc(total, 0x70)));
    socket.on("data", (data) => {
      if (Number.isNaN(firstMs)) firstMs = performance.now() - start;
      received += data.length;
      if (received < total) return;
      clearTimeout(timeout);
      const lastMs = performance.now() - start;
      const result = {
        sent: count,
        received: Math.floor(received / bytes),
        duplicates: 0,
        inOrder: true,
        startedAt,
        firstMs,
        lastMs,
      };
      // The connection's own last packets are traffic as well: the answer comes when the line is quiet.
      socket.on("close", () => setTimeout(() => resolve(result), settleMs));
      socket.end();
    });
  });
}
