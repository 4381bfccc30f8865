import type { Clock } from "#base/time.ts";

export interface ServiceState {
  readonly connected: boolean;
  readonly error?: string;
  /** Wall clock in ms of the last change of `connected`. */
  readonly since: number;
}

/** State of the connection to one server, as its client last reported it; status reads it without asking anybody. */
export class ServiceRecorder {
  readonly #clock: Clock;
  readonly #changed: () => void;
  #state: ServiceState;

  constructor(clock: Clock, changed: () => void) {
    this.#clock = clock;
    this.#changed = changed;
    this.#state = { connected: false, since: clock.wall() };
  }

  get state(): ServiceState {
    return this.#state;
  }

  note(state: { readonly connected: boolean; readonly error?: { readonly message: string } }): void {
    const since = state.connected === this.#state.connected ? this.#state.since : this.#clock.wall();
    this.#state = { connected: state.connected, since, ...(state.error && { error: state.error.message }) };
    this.#changed();
  }
}
