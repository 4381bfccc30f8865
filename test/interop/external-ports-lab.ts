import type { ChildProcess } from "node:child_process";
import { once } from "node:events";
import { setTimeout as pause } from "node:timers/promises";
import { fileURLToPath } from "node:url";
import type { PortsEvent, PortsMessage, PortsRequest } from "./external-ports-host.ts";
import type { Lab } from "./wireguard-lab.ts";

const PATIENCE_MS = 5000;

/** external-ports-host.ts in a namespace of the lab. */
export class PortsHost {
  readonly events: PortsEvent[] = [];
  readonly #child: ChildProcess;
  readonly #answers = new Map<number, PromiseWithResolvers<unknown>>();
  #listener: (event: PortsEvent) => void = () => {};
  #happened = Promise.withResolvers<void>();
  #nextId = 0;

  constructor(lab: Lab, namespace: string) {
    const file = fileURLToPath(new URL("./external-ports-host.ts", import.meta.url));
    this.#child = lab.spawn(namespace, process.execPath, [file], "ipc");
    this.#child.stdout?.pipe(process.stderr);
    this.#child.on("message", (message: PortsMessage) => {
      if (message.kind === "event") {
        this.events.push(message);
        this.#listener(message);
        this.#happened.resolve();
        this.#happened = Promise.withResolvers();
        return;
      }
      const answer = this.#answers.get(message.id);
      this.#answers.delete(message.id);
      if (message.error === undefined) answer?.resolve(message.value);
      else answer?.reject(new Error(message.error));
    });
    this.#child.on("exit", (code, signal) => {
      for (const { reject } of this.#answers.values()) reject(new Error(`the host ended: ${code ?? signal}`));
    });
  }

  request(request: PortsRequest): Promise<unknown> {
    const id = this.#nextId++;
    const answer = Promise.withResolvers<unknown>();
    this.#answers.set(id, answer);
    this.#child.send({ id, request });
    return answer.promise;
  }

  onEvent(listener: (event: PortsEvent) => void): void {
    this.#listener = listener;
  }

  of(name: PortsEvent["name"]): PortsEvent[] {
    return this.events.filter((event) => event.name === name);
  }

  /** The events of a name, when there are so many. */
  async waitFor(name: PortsEvent["name"], count: number): Promise<PortsEvent[]> {
    const isLate = pause(PATIENCE_MS, true, { ref: false });
    while (this.of(name).length < count) {
      if (await Promise.race([this.#happened.promise, isLate]))
        throw new Error(`${this.of(name).length} of ${count} events ${name} in ${PATIENCE_MS} ms`);
    }
    return this.of(name);
  }

  /** Closes everything and waits for the process to end by itself. */
  async close(): Promise<void> {
    await this.request({ op: "close" });
    const ended = once(this.#child, "exit");
    this.#child.disconnect();
    await ended;
  }
}
