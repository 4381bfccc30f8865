import { ExternalDeviceError } from "./external-error.ts";

/** Runs calls one after the other; what one throws is its own. After `close` none begins. */
export class CallQueue {
  readonly #closed = new AbortController();
  #tail: Promise<unknown> = Promise.resolve();

  /** Aborts with the queue's end: the call under way may stop early. */
  get signal(): AbortSignal {
    return this.#closed.signal;
  }

  run<Result>(call: () => Promise<Result>): Promise<Result> {
    const result = this.#tail.then(() => {
      if (this.#closed.signal.aborted) throw new ExternalDeviceError("closed", "the device is closed");
      return call();
    });
    this.#tail = result.catch(() => {});
    return result;
  }

  /** Resolves when nothing runs any more. */
  async close(): Promise<void> {
    this.#closed.abort();
    await this.#tail;
  }
}
