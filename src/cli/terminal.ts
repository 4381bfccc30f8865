import { styleText } from "node:util";

/** Data: one or more whole lines on stdout. */
export function print(text: string): void {
  process.stdout.write(text.endsWith("\n") ? text : `${text}\n`);
}

/** Talk: a line on stderr. */
export function say(text: string): void {
  process.stderr.write(`${text}\n`);
}

export type Style = "green" | "yellow" | "red" | "dim" | "bold";
/** Text with a style, or as it is where colours are not wanted. */
export type Paint = (style: Style, text: string) => string;

/** Colours on a terminal only; NO_COLOR, FORCE_COLOR and TERM=dumb are respected. */
export function paintFor(stream: NodeJS.WriteStream): Paint {
  const wanted = styleText("bold", "x", { stream }) !== "x";
  return wanted ? (style, text) => styleText(style, text, { validateStream: false }) : (_, text) => text;
}

export const plain: Paint = (_, text) => text;

/** Text of others (names, reasons, errors) without characters that would act on the terminal. */
export function clean(text: string): string {
  // biome-ignore lint/suspicious/noControlCharactersInRegex: control characters are what is looked for
  return text.replace(/[\x00-\x1f\x7f-\x9f]/g, "?");
}

/** `850 ms`, `12 s`, `3 min`, `2 h 5 min`, `4 d 3 h`: two units at most. */
export function formatSpan(milliseconds: number): string {
  const ms = Math.max(0, milliseconds);
  if (ms < 1000) return `${Math.round(ms)} ms`;
  const seconds = Math.floor(ms / 1000);
  if (seconds < 60) return `${seconds} s`;
  const minutes = Math.floor(seconds / 60);
  if (minutes < 60) return seconds % 60 === 0 || minutes >= 10 ? `${minutes} min` : `${minutes} min ${seconds % 60} s`;
  const hours = Math.floor(minutes / 60);
  if (hours < 24) return minutes % 60 === 0 ? `${hours} h` : `${hours} h ${minutes % 60} min`;
  const days = Math.floor(hours / 24);
  return hours % 24 === 0 ? `${days} d` : `${days} d ${hours % 24} h`;
}

/** `0 B`, `1.4 KiB`, `12 MiB`. */
export function formatBytes(bytes: number): string {
  if (bytes < 1024) return `${bytes} B`;
  let value = bytes;
  let unit = "B";
  for (const next of ["KiB", "MiB", "GiB", "TiB", "PiB"]) {
    if (value < 1024) break;
    value /= 1024;
    unit = next;
  }
  return `${value < 10 ? value.toFixed(1) : Math.round(value)} ${unit}`;
}

/**
 * What a command is waiting for. On a terminal one line that shows the last step and, after a second, how long it has
 * taken; elsewhere a line for each step. `end` takes the moving line away.
 */
export class Progress implements Disposable {
  readonly #stream = process.stderr;
  readonly #live = process.stderr.isTTY === true && process.env.TERM !== "dumb";
  #step = "";
  #since = 0;
  #timer: NodeJS.Timeout | undefined;

  step(text: string): void {
    const line = clean(text);
    if (!this.#live) {
      this.#stream.write(`${line}\n`);
      return;
    }
    this.#step = line;
    this.#since = performance.now();
    this.#timer ??= setInterval(() => this.#draw(), 1000).unref();
    this.#draw();
  }

  end(): void {
    clearInterval(this.#timer);
    this.#timer = undefined;
    if (this.#live && this.#step !== "") this.#stream.write("\r\x1b[K");
    this.#step = "";
  }

  [Symbol.dispose](): void {
    this.end();
  }

  #draw(): void {
    const waited = performance.now() - this.#since;
    const width = Math.max(20, this.#stream.columns ?? 80);
    const text = waited < 1000 ? `${this.#step} …` : `${this.#step} … ${formatSpan(waited)}`;
    this.#stream.write(`\r\x1b[K${text.length < width ? text : `${text.slice(0, width - 2)}…`}`);
  }
}
