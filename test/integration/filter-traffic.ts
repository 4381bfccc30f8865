import type { End } from "./data-plane/pair.ts";

/** A host that traffic is made on. */
export type Place = Pick<End, "exec" | "spawn">;

/** Runs JavaScript in the end's namespace; what it logs, as JSON. */
export async function script<Result>(end: Place, source: string, ...args: string[]): Promise<Result> {
  return JSON.parse(await end.exec(process.execPath, "-e", source, ...args)) as Result;
}

/** A TCP or UDP echo service on each port, both families, until the pair is closed. */
export async function serve(end: Place, ...ports: number[]): Promise<void> {
  const child = end.spawn(process.execPath, "-e", SERVE, ...ports.map(String));
  await new Promise<void>((ready, failed) => {
    child.stdout!.once("data", () => ready());
    child.once("exit", () => failed(new Error("the echo service ended")));
  });
}

const SERVE = `
const net = require("node:net"), dgram = require("node:dgram");
let waiting = 0;
const up = () => { if (--waiting === 0) console.log("ready"); };
for (const port of process.argv.slice(1).map(Number)) {
  waiting += 2;
  net.createServer((socket) => socket.on("error", () => {}).pipe(socket)).listen(port, "::", up);
  const udp = dgram.createSocket("udp6");
  udp.on("message", (message, from) => udp.send(message, from.port, from.address)).bind(port, up);
}`;

/** "connected", "refused" or "silence". */
const TCP = `
const [address, port, waitMs] = process.argv.slice(1);
const socket = require("node:net").connect(Number(port), address);
const end = (what) => { console.log(JSON.stringify(what)); process.exit(); };
socket.on("connect", () => socket.write("x")).on("data", () => end("connected"));
socket.on("error", (error) => end(error.code === "ECONNREFUSED" ? "refused" : error.code));
setTimeout(() => end("silence"), Number(waitMs));`;

/** Bytes of the answer, or -1. */
const UDP = `
const [address, port, bytes, waitMs] = process.argv.slice(1);
const socket = require("node:dgram").createSocket(address.includes(":") ? "udp6" : "udp4");
const end = (what) => { console.log(JSON.stringify(what)); process.exit(); };
socket.on("message", (message) => end(message.length)).on("error", () => end(-2));
socket.send(Buffer.alloc(Number(bytes)), Number(port), address);
setTimeout(() => end(-1), Number(waitMs));`;

/** Long enough for an answer on a busy machine; silence is believed sooner, the counters tell what it was. */
export const ANSWER_MS = 8000;
export const SILENCE_MS = 600;

export const tcpTo = (from: Place, address: string, port: number, waitMs = ANSWER_MS): Promise<string> =>
  script(from, TCP, address, String(port), String(waitMs));
export const udpTo = (from: Place, address: string, port: number, bytes = 100, waitMs = ANSWER_MS): Promise<number> =>
  script(from, UDP, address, String(port), String(bytes), String(waitMs));
