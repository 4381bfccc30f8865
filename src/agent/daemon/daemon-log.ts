import { existsSync, renameSync, statSync } from "node:fs";
import { formatWithOptions } from "node:util";
import { createLogger, LOG_LEVELS, type Logger, type LogLevel, type LogSink } from "#base/log.ts";
import { DaemonError } from "./daemon-error.ts";

/** A file larger than this is put aside. */
export const LOG_FILE_MAX_BYTES = 16 << 20;
/** Files that were put aside and are kept: FILE.1 is the youngest. */
export const LOG_FILES_KEPT = 4;

/** A logger whose level can be changed while it is used. */
export interface DaemonLog extends Disposable {
  readonly logger: Logger;
  level: LogLevel;
  /** Closes and opens the file again, after logrotate moved it. */
  reopen(): void;
}

export interface DaemonLogOptions {
  readonly level: LogLevel;
  /** JSON lines are appended here; absent: text on stderr. */
  readonly file?: string | undefined;
  /** A file that has reached this is put aside before the next line; default LOG_FILE_MAX_BYTES. */
  readonly maxBytes?: number;
  readonly colour: boolean;
  /** Without the time, where journald adds it. */
  readonly timestamps: boolean;
}

/** Throws DaemonError `value-invalid`. */
export function parseLogLevel(given: string, name: string): LogLevel {
  const level = LOG_LEVELS.find((known) => known === given.toLowerCase());
  if (level) return level;
  const shown = JSON.stringify(given.slice(0, 40));
  throw new DaemonError("value-invalid", `${name} must be one of ${LOG_LEVELS.join(", ")}, got ${shown}`);
}

/** Opens the daemon's log: JSON by pino to a file, or text for people on stderr. Throws what opening the file throws. */
export async function openDaemonLog(options: DaemonLogOptions): Promise<DaemonLog> {
  return options.file === undefined
    ? textLog(options)
    : await fileLog(options.level, options.file, options.maxBytes ?? LOG_FILE_MAX_BYTES);
}

function textLog(options: DaemonLogOptions): DaemonLog {
  const log = {
    level: options.level,
    logger: createLogger((level, message, fields) => {
      if (severity(level) < severity(log.level)) return;
      process.stderr.write(formatLine(level, message, fields, options));
    }),
    reopen: () => {},
    [Symbol.dispose]: () => {},
  };
  return log;
}

async function fileLog(level: LogLevel, file: string, maxBytes: number): Promise<DaemonLog> {
  const { destination, pino, stdTimeFunctions } = (await import("pino")).default;
  // Synchronous: the last lines before a crash are the ones that matter, and an agent writes few.
  const stream = destination({ dest: file, append: true, mkdir: true, mode: 0o640, sync: true });
  const target = pino(
    {
      level,
      base: { pid: process.pid },
      timestamp: stdTimeFunctions.isoTime,
      formatters: { level: (label) => ({ level: label }) },
    },
    stream,
  );
  // What the file holds already counts; a stream that writes at once tells the bytes of each line.
  let bytes = sizeOf(file);
  stream.on("write", (written: number) => {
    bytes += written;
  });
  const sink: LogSink = (line, message, fields) => {
    if (bytes >= maxBytes) {
      bytes = 0;
      rotate(file, stream);
    }
    target[line]({ ...fields }, message);
  };
  return {
    get level() {
      return target.level as LogLevel;
    },
    set level(next: LogLevel) {
      target.level = next;
    },
    logger: createLogger(sink),
    reopen: () => {
      stream.reopen();
      bytes = sizeOf(file);
    },
    [Symbol.dispose]: () => stream.end(),
  };
}

/** FILE becomes FILE.1, that becomes FILE.2 and so on; the last one goes. */
function rotate(file: string, stream: { reopen(): void }): void {
  try {
    for (let age = LOG_FILES_KEPT - 1; age > 0; age--)
      if (existsSync(`${file}.${age}`)) renameSync(`${file}.${age}`, `${file}.${age + 1}`);
    renameSync(file, `${file}.1`);
  } catch {
    // A directory that may not be written, or a file that somebody moved: the log goes on where it is.
  }
  stream.reopen();
}

function sizeOf(file: string): number {
  return statSync(file, { throwIfNoEntry: false })?.size ?? 0;
}

function severity(level: LogLevel): number {
  return LOG_LEVELS.indexOf(level);
}

const COLOURS: Readonly<Record<LogLevel, string>> = {
  trace: "\x1b[90m",
  debug: "\x1b[90m",
  info: "\x1b[32m",
  warn: "\x1b[33m",
  error: "\x1b[31m",
};

function formatLine(
  level: LogLevel,
  message: string,
  fields: Readonly<Record<string, unknown>>,
  { colour, timestamps }: DaemonLogOptions,
): string {
  const parts: string[] = [];
  if (timestamps) parts.push(dim(new Date().toISOString().slice(11, 23), colour));
  const label = level.toUpperCase().padEnd(5);
  parts.push(colour ? `${COLOURS[level]}${label}\x1b[0m` : label, message);
  for (const [name, value] of Object.entries(fields)) {
    if (value !== undefined) parts.push(`${dim(`${name}=`, colour)}${formatValue(value)}`);
  }
  return `${parts.join(" ")}\n`;
}

function formatValue(value: unknown): string {
  if (value instanceof Error) return JSON.stringify(value.message);
  if (typeof value === "string") return /^[^\s"=]+$/.test(value) ? value : JSON.stringify(value);
  return formatWithOptions({ breakLength: Number.POSITIVE_INFINITY, depth: 3 }, "%O", value);
}

function dim(text: string, colour: boolean): string {
  return colour ? `\x1b[2m${text}\x1b[0m` : text;
}
