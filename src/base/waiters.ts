/** Whoever waits for news, each with its own signal. Holds nothing while nobody waits. */
export class Waiters {
  readonly #waiting = new Set<() => void>();

  /** Resolves true with the next `wake`, false when the signal aborts. */
  wait(signal: AbortSignal): Promise<boolean> {
    if (signal.aborted) return Promise.resolve(false);
    const { promise, resolve } = Promise.withResolvers<boolean>();
    const finish = (result: boolean) => (): void => {
      this.#waiting.delete(wake);
      signal.removeEventListener("abort", stop);
      resolve(result);
    };
    const wake = finish(true);
    const stop = finish(false);
    this.#waiting.add(wake);
    signal.addEventListener("abort", stop, { once: true });
    return promise;
  }

  /** Wakes all who wait now; who comes later waits for the next time. */
  wake(): void {
    for (const wake of [...this.#waiting]) wake();
  }
}
