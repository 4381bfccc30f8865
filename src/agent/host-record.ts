import { readFileSync, rmSync } from "node:fs";
import type { z } from "zod";
import { writeFileAtomically } from "#base/atomic-file.ts";
import { messageOf } from "#base/errors.ts";

/**
 * What we are about to change on this machine and the kernel does not undo when our process dies: written down before it is
 * done, in a file of its own in the state directory, which is there exactly while the change is, or may be, in force.
 *
 *   write --> change --> ... --> change undone --> remove
 *
 * Whoever finds it after a crash (`restoreMachine`) undoes the change, done or not, and removes it.
 */
export class HostRecord<Change> {
  readonly path: string;
  readonly #schema: z.ZodType<Change>;
  readonly #fail: (message: string, cause: unknown) => Error;

  /** `fail` makes the error of the area that the change belongs to. */
  constructor(path: string, schema: z.ZodType<Change>, fail: (message: string, cause: unknown) => Error) {
    this.path = path;
    this.#schema = schema;
    this.#fail = fail;
  }

  /** Undefined: nothing to undo. Throws the area's error for a file that is none of ours. */
  read(): Change | undefined {
    let text: string;
    try {
      text = readFileSync(this.path, "utf8");
    } catch (cause) {
      if ((cause as NodeJS.ErrnoException).code === "ENOENT") return undefined;
      throw this.#fail(`cannot read ${this.path}: ${messageOf(cause)}`, cause);
    }
    try {
      return this.#schema.parse(JSON.parse(text));
    } catch (cause) {
      throw this.#fail(`${this.path} is not readable: ${messageOf(cause)}`, cause);
    }
  }

  /** Safe on the disk when it returns. Throws the area's error. */
  write(change: Change): void {
    try {
      writeFileAtomically(this.path, `${JSON.stringify(change, undefined, 2)}\n`);
    } catch (cause) {
      throw this.#fail(`cannot write ${this.path}: ${messageOf(cause)}`, cause);
    }
  }

  remove(): void {
    rmSync(this.path, { force: true });
  }
}

/** What undoing changes did, and what it could not do, in words. */
export interface Restoration {
  readonly done: readonly string[];
  readonly problems: readonly string[];
}

export const NOTHING_RESTORED: Restoration = { done: [], problems: [] };
