import type { ChildProcess } from "node:child_process";
import { once } from "node:events";
import { fileURLToPath } from "node:url";
import type { Lab } from "./wireguard-lab.ts";

type Answer = { readonly kind: "answer"; readonly id: number; readonly value?: unknown; readonly error?: string };

/**
 * A script as a process of its own in a network namespace of a lab. Requests go, and answers and events come, over the IPC channel;
 * its end of it is `serveRequests`.
 */
export class LabChild<Request, Event extends { readonly kind: "event" }> {
  readonly events: Event[] = [];
  readonly #child: ChildProcess;
  readonly #answers = new Map<number, PromiseWithResolvers<unknown>>();
  readonly #listeners = new Set<(event: Event) => void>();
  #nextId = 0;

  constructor(lab: Lab, namespace: string, script: URL) {
    const file = fileURLToPath(script);
    this.#child = lab.spawn(namespace, process.execPath, [file], "ipc");
    this.#child.stdout?.pipe(process.stderr);
    this.#child.on("message", (message: Answer | Event) => {
      if (message.kind === "event") {
        this.events.push(message);
        for (const listener of [...this.#listeners]) listener(message);
        return;
      }
      const answer = this.#answers.get(message.id);
      this.#answers.delete(message.id);
      if (message.error === undefined) answer?.resolve(message.value);
      else answer?.reject(new Error(message.error));
    });
    this.#child.on("exit", (code, signal) => {
      for (const { reject } of this.#answers.values()) reject(new Error(`${file} ended: ${code ?? signal}`));
    });
  }

  request(request: Request | CloseRequest): Promise<unknown> {
    const id = this.#nextId++;
    const answer = Promise.withResolvers<unknown>();
    this.#answers.set(id, answer);
    this.#child.send({ id, request });
    return answer.promise;
  }

  onEvent(listener: (event: Event) => void): void {
    this.#listeners.add(listener);
  }

  /** Closes everything and waits for the process to end by itself. */
  async close(): Promise<void> {
    await this.request({ op: "close" });
    const ended = once(this.#child, "exit");
    this.#child.disconnect();
    await ended;
  }
}

export interface CloseRequest {
  readonly op: "close";
}

/** In the process: answers requests; the returned function tells an event. Without a close the process ends with the test's. */
export function serveRequests<Request extends { readonly op: string }, Event extends { readonly kind: "event" }>(
  perform: (request: Request) => Promise<unknown>,
): (event: Event) => void {
  const send = (message: Answer | Event): void => void process.send?.(message);
  let isClosed = false;
  process.on("message", ({ id, request }: { readonly id: number; readonly request: Request }) => {
    perform(request).then(
      (value) => {
        isClosed ||= request.op === "close";
        send({ kind: "answer", id, value });
      },
      (error: unknown) => send({ kind: "answer", id, error: error instanceof Error ? error.message : String(error) }),
    );
  });
  process.on("disconnect", () => {
    if (!isClosed) process.exit(0);
  });
  return send;
}
