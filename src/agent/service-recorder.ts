import type { Clock } from "#base/time.ts";

/** The part of a client's emitter that is listened to. */
interface ServiceEvents {
  on(
    name: "state",
    listener: (state: { readonly connected: boolean; readonly error?: { readonly message: string } }) => void,
  ): () => void;
}

/** State of the connection to one server, as its client last reported it; status reads it without asking anybody. */
export class ServiceRecorder {
  #state: { readonly connected: boolean; readonly error?: string; readonly since: number };

  constructor(clock: Clock, events: ServiceEvents, changed: () => void) {
    this.#state = { connected: false, since: clock.wall() };
    events.on("state", ({ connected, error }) => {
      const since = connected === this.#state.connected ? this.#state.since : clock.wall();
      this.#state = { connected, since, ...(error && { error: error.message }) };
      changed();
    });
  }

  /** `since` is the wall clock in ms of the last change of `connected`. */
  get state(): { readonly connected: boolean; readonly error?: string; readonly since: number } {
    return this.#state;
  }
}
