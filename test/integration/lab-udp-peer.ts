import type { ChildProcess } from "node:child_process";
import { createSocket } from "node:dgram";
import { once } from "node:events";
import { createInterface } from "node:readline";
import { fileURLToPath } from "node:url";
import type { Host } from "../../lab/host.ts";

/** A datagram as the peer's socket got it. */
export interface Received {
  readonly from: string;
  readonly text: string;
}

const WAIT_MS = 2000;

/** A real UDP socket in a host of the lab, driven from the test: a process of its own that does what its input says. */
export class UdpPeer {
  readonly host: Host;
  readonly received: Received[] = [];
  port = 0;
  readonly #child: ChildProcess;
  #waiting: (() => void)[] = [];
  #sent = 0;

  /** Opens a socket on `port`, 0 for any. */
  static async open(host: Host, port = 0): Promise<UdpPeer> {
    const peer = new UdpPeer(host, port);
    await peer.#until(() => peer.port !== 0, "the socket to open");
    return peer;
  }

  private constructor(host: Host, port: number) {
    this.host = host;
    this.#child = host.spawnNode(fileURLToPath(import.meta.url), [String(port)], {
      stdio: ["pipe", "pipe", "inherit"],
    });
    createInterface({ input: this.#child.stdout! }).on("line", (line) => this.#note(line.split(" ")));
  }

  get endpoint(): string {
    return `${this.host.address}:${this.port}`;
  }

  /** Resolves when the kernel has the datagram. `to` is ADDRESS:PORT. */
  async send(to: string, text: string): Promise<void> {
    const before = this.#sent;
    this.#child.stdin!.write(`${to} ${text}\n`);
    await this.#until(() => this.#sent > before, "a datagram to be sent");
  }

  /** The source of the datagram with this text, when it has come. */
  async expect(text: string): Promise<string> {
    await this.#until(() => this.has(text), `datagram ${text} to arrive`);
    return this.received.find((datagram) => datagram.text === text)!.from;
  }

  has(text: string): boolean {
    return this.received.some((datagram) => datagram.text === text);
  }

  async close(): Promise<void> {
    const exited = once(this.#child, "exit");
    this.#child.stdin!.end();
    await exited;
  }

  #note([kind, first, second]: string[]): void {
    if (kind === "port") this.port = Number(first);
    else if (kind === "sent") this.#sent++;
    else this.received.push({ from: first!, text: second! });
    for (const wake of this.#waiting.splice(0)) wake();
  }

  async #until(isDone: () => boolean, what: string): Promise<void> {
    const timeout = AbortSignal.timeout(WAIT_MS);
    while (!isDone()) {
      if (timeout.aborted) throw new Error(`${this.host.name}: waited ${WAIT_MS} ms for ${what}`);
      await new Promise<void>((resolve) => {
        const timer = setTimeout(resolve, WAIT_MS);
        this.#waiting.push(() => {
          clearTimeout(timer);
          resolve();
        });
      });
    }
  }
}

if (import.meta.main) {
  const say = (line: string): void => void process.stdout.write(`${line}\n`);
  const socket = createSocket("udp4");
  socket.on("message", (text, { address, port }) => say(`got ${address}:${port} ${text}`));
  socket.bind(Number(process.argv[2]), () => say(`port ${socket.address().port}`));
  const input = createInterface({ input: process.stdin });
  input.on("line", (line) => {
    const [address, port, text] = line.split(/[: ]/);
    socket.send(text!, Number(port), address, () => say("sent"));
  });
  input.on("close", () => socket.close());
}
