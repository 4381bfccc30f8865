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
  #returned: () => void = () => {};
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
    const isBack = state.connected && !this.#state.connected;
    const since = state.connected === this.#state.connected ? this.#state.since : this.#clock.wall();
    this.#state = { connected: state.connected, since, ...(state.error && { error: state.error.message }) };
    this.#changed();
    if (isBack) this.#returned();
  }

  /** Called when the connection is there after it was not; replaces the listener before. */
  onReturn(listener: () => void): void {
    this.#returned = listener;
  }
}

/** A client that connects again by itself, with growing pauses. */
export interface RetryingService {
  readonly recorder: ServiceRecorder;
  /** Ends the pause it is in, if it is in one. */
  readonly retry: () => void;
}

/**
 * The servers of a network mostly run on one machine, behind one link: when one of them is back the others are tried at
 * once. After an outage of minutes, when each client pauses for up to half a minute, the first to try brings all back.
 */
export function retryTogether(services: readonly RetryingService[]): void {
  for (const { recorder } of services) {
    recorder.onReturn(() => {
      for (const other of services) if (!other.recorder.state.connected) other.retry();
    });
  }
}
