import { setTimeout as pause } from "node:timers/promises";
import type { PortsEvent, PortsRequest } from "./external-ports-host.ts";
import { LabChild } from "./lab-child.ts";
import type { Lab } from "./wireguard-lab.ts";

const PATIENCE_MS = 5000;

/** external-ports-host.ts in a namespace of the lab. */
export class PortsHost extends LabChild<PortsRequest, PortsEvent> {
  #happened = Promise.withResolvers<void>();

  constructor(lab: Lab, namespace: string) {
    super(lab, namespace, new URL("./external-ports-host.ts", import.meta.url));
    this.onEvent(() => {
      this.#happened.resolve();
      this.#happened = Promise.withResolvers();
    });
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
}
