import type { Logger } from "#base/log.ts";
import type { Clock, Millis } from "#base/time.ts";

/** A program that complains of every packet must not fill a disk. */
const LINES_MAX = 30;
const LINES_INTERVAL: Millis = 10_000;
const LINE_MAX_CHARACTERS = 500;
/** A key in base64 or hex. */
const SECRETS = /[A-Za-z0-9+/]{43}=|\b[0-9a-f]{64}\b/gi;
const TIME = /^\d{4}\/\d\d\/\d\d \d\d:\d\d:\d\d /;

/** What a program writes, line by line into our log, at most 30 lines in 10 s, with whatever looks like a key taken out. */
export class ProgramLog {
  readonly #log: Logger;
  readonly #clock: Clock;
  readonly #rests = new Map<string, string>();
  #since: Millis = 0;
  #lines = 0;
  #last = "";

  constructor(log: Logger, clock: Clock) {
    this.#log = log;
    this.#clock = clock;
  }

  /** The last line that was written, or nothing. */
  get lastLine(): string {
    return this.#last;
  }

  /** `stream` keeps the halves of lines of different streams apart. */
  push(stream: string, text: string): void {
    const lines = ((this.#rests.get(stream) ?? "") + text).split("\n");
    this.#rests.set(stream, lines.pop()!.slice(0, LINE_MAX_CHARACTERS));
    for (const line of lines) this.#line(line);
  }

  /** The program has ended. */
  end(): void {
    for (const [stream, rest] of this.#rests) if (rest) this.push(stream, "\n");
  }

  #line(line: string): void {
    // `ERROR: (perch0) 2026/01/31 23:59:59 what happened`
    const [, level, said = line] = /^(ERROR|DEBUG): (?:\([^)]*\) )?(.*)$/.exec(line) ?? [];
    const text = withoutKeys(said.replace(TIME, "")).slice(0, LINE_MAX_CHARACTERS).trim();
    if (text === "") return;
    this.#last = text;
    const now = this.#clock.now();
    if (this.#lines === 0 || now - this.#since >= LINES_INTERVAL) {
      const left = this.#lines - LINES_MAX;
      if (left > 0) this.#log.warn("the WireGuard program said more than is logged", { lines: left });
      this.#since = now;
      this.#lines = 0;
    }
    if (++this.#lines > LINES_MAX) return;
    if (level === "DEBUG") this.#log.debug("the WireGuard program says", { text });
    else this.#log.warn("the WireGuard program complains", { text });
  }
}

/** Whatever looks like a key is not for a log or a message. */
export function withoutKeys(text: string): string {
  return text.replace(SECRETS, "[key]");
}
