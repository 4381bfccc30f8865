/**
 * Base of every error Perch throws on purpose. Each area derives one class with its own closed set of codes; the codes
 * are listed in docs/errors.md. `retryable` is true where the same call may succeed later without anything being changed
 * by the user. Messages name the offending value and the limit.
 */
export class PerchError<Code extends string = string> extends Error {
  readonly code: Code;
  readonly retryable: boolean;

  constructor(code: Code, message: string, options: { cause?: unknown; retryable?: boolean } = {}) {
    super(message, options.cause === undefined ? undefined : { cause: options.cause });
    this.name = new.target.name;
    this.code = code;
    this.retryable = options.retryable ?? false;
  }
}

/** The text of anything that was thrown, for logs and for a person. */
export function messageOf(reason: unknown): string {
  return reason instanceof Error ? reason.message : String(reason);
}

/** Ends a `switch` over a closed union: the compiler proves that it is not reached, and it speaks if it is. */
export function unreachable(value: never): never {
  throw new TypeError(`unexpected variant: ${JSON.stringify(value)}`);
}
