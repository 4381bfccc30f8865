import type { Clock, Millis, Timer } from "#base/time.ts";

/** Between an answer and the next question. */
export const ASK_INTERVAL: Millis = 5_000;
/** While an answer is awaited the time is looked at so often. */
const TICK: Millis = 250;
/** A tick that comes later than this says that we did not run either: the machine was suspended, or has no time for anybody. */
const TICK_LATE: Millis = 3 * TICK;
/** For each question: of the time in which we ran ourselves. */
const PATIENCE: Millis = 3_000;
/** The question that is one too many without an answer. */
const QUESTIONS_MAX = 2;

export interface WireguardGoWatchDeps {
  readonly clock: Clock;
  /**
   * Asks the program for a sign of life: resolves when it gave one, or could not be asked for a reason of our own. What it throws
   * is no answer. Aborted when the answer is not awaited any more.
   */
  readonly ask: (signal: AbortSignal) => Promise<void>;
  /** The program does not answer; called once. */
  readonly hung: (reason: string) => void;
}

/**
 * Notices a program that runs and does nothing: stopped, or stuck. It is asked every 5 s, and hangs when two questions in a row are
 * not answered within 3 s each, of which only the time counts in which our own event loop ran.
 */
export class WireguardGoWatch implements Disposable {
  readonly #deps: WireguardGoWatchDeps;
  #timer: Timer | undefined;
  #question: AbortController | undefined;
  #unanswered = 0;
  #isOver = false;

  constructor(deps: WireguardGoWatchDeps) {
    this.#deps = deps;
    this.#pause();
  }

  /** Idempotent. */
  [Symbol.dispose](): void {
    this.#isOver = true;
    this.#timer?.cancel();
    this.#question?.abort();
  }

  #pause(): void {
    this.#timer = this.#deps.clock.after(ASK_INTERVAL, () => this.#ask());
  }

  #ask(): void {
    const question = new AbortController();
    this.#question = question;
    const { clock, ask } = this.#deps;
    ask(question.signal).then(
      () => this.#answered(question),
      () => {},
    );
    this.#await(clock.now(), PATIENCE);
  }

  #answered(question: AbortController): void {
    if (this.#isOver || this.#question !== question) return;
    this.#question = undefined;
    this.#unanswered = 0;
    this.#timer?.cancel();
    this.#pause();
  }

  #await(since: Millis, left: Millis): void {
    const { clock } = this.#deps;
    this.#timer = clock.after(TICK, () => {
      const now = clock.now();
      const ran = now - since > TICK_LATE ? 0 : now - since;
      if (left > ran) this.#await(now, left - ran);
      else this.#giveUp();
    });
  }

  #giveUp(): void {
    this.#question?.abort();
    this.#question = undefined;
    if (++this.#unanswered < QUESTIONS_MAX) return this.#ask();
    this.#isOver = true;
    this.#deps.hung(`it did not answer for ${(QUESTIONS_MAX * PATIENCE) / 1000} s`);
  }
}
