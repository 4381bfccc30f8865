/** Runs tasks of the same key one after another; tasks of different keys do not wait for each other. */
export class KeyedQueue<Key> {
  readonly #tails = new Map<Key, Promise<unknown>>();

  run<T>(key: Key, task: () => Promise<T>): Promise<T> {
    const before = this.#tails.get(key) ?? Promise.resolve();
    const work = before.then(task, task);
    this.#tails.set(key, work);
    const done = (): void => {
      if (this.#tails.get(key) === work) this.#tails.delete(key);
    };
    work.then(done, done);
    return work;
  }

  /** Resolves when nothing is running or waiting. */
  async idle(): Promise<void> {
    while (this.#tails.size > 0) await Promise.allSettled([...this.#tails.values()]);
  }
}
