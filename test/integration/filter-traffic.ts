import { createInterface } from "node:readline";
import { setTimeout as sleep } from "node:timers/promises";
import { parsePrefix } from "#base/ip.ts";
import type { FilterRule, SourceRule } from "#wireguard/filter.ts";
import type { End } from "./data-plane/pair.ts";

/** What comes from the first host of a pair. */
export const PEER = ["10.77.0.1/32", "fd77::1/128"].map(parsePrefix);
/** The second host's address and the first one's. */
export const FAMILIES = [
  ["10.77.0.2", "10.77.0.1"],
  ["fd77::2", "fd77::1"],
] as const;

export const openTcp = (port: number): SourceRule => ({
  protocol: "tcp",
  ports: { first: port, last: port },
  verdict: "accept",
});
export const openUdp = (port: number): SourceRule => ({ ...openTcp(port), protocol: "udp" });
/** The same for both addresses of the first host. */
export const fromPeer = (...rules: SourceRule[]): FilterRule[] =>
  PEER.flatMap((source) => rules.map((rule) => ({ ...rule, source })));

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

/** What a program hears of a datagram to a port at which nobody listens: the name of the error, or "silence". */
export const refusedUdp = (from: Place, address: string): Promise<string> => script(from, REFUSED, address);

const REFUSED = `
const [address] = process.argv.slice(1);
const socket = require("node:dgram").createSocket(address.includes(":") ? "udp6" : "udp4");
const end = (what) => { console.log(JSON.stringify(what)); process.exit(); };
socket.on("error", (error) => end(error.code));
socket.connect(7099, address, () => socket.send("x"));
setTimeout(() => end("silence"), ${ANSWER_MS});`;

/** TCP connections that send all the time, by port; how many bytes came back on each. */
export class Chatter {
  #counts: number[];

  constructor(from: Place, to: string, ...ports: number[]) {
    this.#counts = ports.map(() => 0);
    follow(from.spawn(process.execPath, "-e", CHATTER, to, ...ports.map(String)), (counts: number[]) => {
      this.#counts = counts;
    });
  }

  count(index: number): number {
    return this.#counts[index]!;
  }

  grows(index: number): Promise<boolean> {
    return grows(() => this.count(index));
  }
}

const CHATTER = `
const net = require("node:net");
const [address, ...ports] = process.argv.slice(1);
const counts = ports.map(() => 0);
ports.forEach((port, index) => {
  const socket = net.connect(Number(port), address, () => setInterval(() => socket.write("x"), 20));
  socket.on("data", (data) => { counts[index] += data.length; }).on("error", () => {});
});
setInterval(() => console.log(JSON.stringify(counts)), 50);`;

/** Calls back with each line of JSON that the program says. */
export function follow<Line>(child: ReturnType<Place["spawn"]>, take: (line: Line) => void): void {
  createInterface({ input: child.stdout! }).on("line", (line) => take(JSON.parse(line) as Line));
}

/** Whether a count goes on within a few seconds. */
export async function grows(count: () => number): Promise<boolean> {
  const before = count();
  for (let i = 0; i < 100 && count() < before + 5; i++) await sleep(50);
  return count() >= before + 5;
}

/** Sends a datagram every 20 ms from a port to another host's; how many came from there. */
export class UdpTalker {
  count = 0;

  constructor(from: Place, port: number, to: string, toPort: number) {
    follow(from.spawn(process.execPath, "-e", UDP_TALKER, String(port), to, String(toPort)), (count: number) => {
      this.count = count;
    });
  }

  grows(): Promise<boolean> {
    return grows(() => this.count);
  }
}

const UDP_TALKER = `
const [port, address, toPort] = process.argv.slice(1);
const socket = require("node:dgram").createSocket(address.includes(":") ? "udp6" : "udp4");
let count = 0;
socket.on("message", () => { count++; }).on("error", () => {});
socket.bind(Number(port), () => setInterval(() => socket.send("x", Number(toPort), address), 20));
setInterval(() => console.log(count), 50);`;

/** A connection to a service that sends by itself; how many bytes came. The program only listens. */
export class Download {
  count = 0;

  /** The service is made on `server` first. */
  static async start(from: Place, server: Place, address: string, port: number): Promise<Download> {
    const service = server.spawn(process.execPath, "-e", SENDER, String(port));
    await new Promise((ready) => service.stdout!.once("data", ready));
    const download = new Download();
    follow(from.spawn(process.execPath, "-e", LISTENER, address, String(port)), (count: number) => {
      download.count = count;
    });
    return download;
  }

  grows(): Promise<boolean> {
    return grows(() => this.count);
  }
}

const SENDER = `
const server = require("node:net").createServer((socket) => {
  const timer = setInterval(() => socket.write("x"), 20);
  socket.on("error", () => {}).on("close", () => clearInterval(timer));
});
server.listen(Number(process.argv[1]), "::", () => console.log("ready"));`;

const LISTENER = `
const [address, port] = process.argv.slice(1);
let count = 0;
require("node:net").connect(Number(port), address).on("data", (data) => { count += data.length; }).on("error", () => {});
setInterval(() => console.log(count), 50);`;
