/** Severity, least first. */
export const LOG_LEVELS = ["trace", "debug", "info", "warn", "error"] as const;
export type LogLevel = (typeof LOG_LEVELS)[number];

export type LogFields = Readonly<Record<string, unknown>>;

/**
 * A constant message plus fields (`peer`, `path`, `attempt`, `elapsedMs`, `err`); never a key, never a token.
 * `with` derives a logger that carries fields into every line.
 */
export interface Logger {
  trace(message: string, fields?: LogFields): void;
  debug(message: string, fields?: LogFields): void;
  info(message: string, fields?: LogFields): void;
  warn(message: string, fields?: LogFields): void;
  error(message: string, fields?: LogFields): void;
  with(fields: LogFields): Logger;
}

/** Where a finished line goes; `cli` and `agent/daemon` connect pino here. */
export type LogSink = (level: LogLevel, message: string, fields: LogFields) => void;

export function createLogger(sink: LogSink, base: LogFields = {}): Logger {
  const line =
    (level: LogLevel) =>
    (message: string, fields: LogFields = {}): void =>
      sink(level, message, { ...base, ...fields });
  return {
    trace: line("trace"),
    debug: line("debug"),
    info: line("info"),
    warn: line("warn"),
    error: line("error"),
    with: (fields) => createLogger(sink, { ...base, ...fields }),
  };
}

/** Discards everything; the default of library parts. */
export const silentLogger: Logger = createLogger(() => {});
