import { spawn } from "node:child_process";
import { closeSync } from "node:fs";
import { messageOf } from "#base/errors.ts";
import type { Millis } from "#base/time.ts";
import { PROGRAM_ENVIRONMENT } from "#net/find-program.ts";
import { ExternalDeviceError } from "./external-error.ts";
import { needProgram } from "./need-program.ts";
import { withoutKeys } from "./program-log.ts";
import { openSecretFile } from "./secret-file.ts";

const PATIENCE: Millis = 10_000;
/** Of its beginning, and as much of its end. */
const COMPLAINT_MAX_CHARACTERS = 500;
/** What looks like a program and is none for this machine, such as one whose interpreter is missing. */
const NO_PROGRAM: ReadonlySet<string | undefined> = new Set(["ENOENT", "EACCES", "ENOEXEC"]);

export interface ProgramCall {
  /** Its name or its whole path. */
  readonly program: string;
  readonly debianPackage: string;
  readonly args: readonly string[];
  /** What the program reads from its standard input. Default: nothing. */
  readonly input?: string;
  /** What the program reads from the files `secretPath(0)`, `secretPath(1)`, ...; wiped. */
  readonly secrets?: readonly Uint8Array[];
  /** After which it is ended. Default 10 s. */
  readonly patience?: Millis;
  readonly signal?: AbortSignal;
}

/**
 * `output`: what it wrote; the caller wipes it when there may be secrets in it. `complaint`: what it had to say, in one line and
 * without keys; when it failed without a word, how it ended.
 */
export interface ProgramResult {
  readonly ok: boolean;
  readonly output: Buffer;
  readonly complaint: string;
}

/** Where a program that `runProgram` starts finds its secret. */
export function secretPath(index: number): string {
  return `/proc/self/fd/${3 + index}`;
}

/**
 * Runs a program to its end, with nothing of our environment but PATH. Throws ExternalDeviceError: `program-missing`, also when
 * what has its name cannot be run; `control-failed` for one that hangs, or for which the system has nothing left; `closed` when the
 * signal aborts.
 */
export async function runProgram(call: ProgramCall): Promise<ProgramResult> {
  const { program, debianPackage, secrets = [], signal } = call;
  const files: number[] = [];
  try {
    const path = needProgram(program, debianPackage);
    if (signal?.aborted) throw calledOff();
    for (const secret of secrets) files.push(openSecretFile(secret));
    return await runToEnd(path, call, files);
  } catch (error) {
    if (error instanceof ExternalDeviceError) throw error;
    // No descriptor for a secret, no memory, or more words than the system takes.
    throw failed(program, messageOf(error));
  } finally {
    for (const secret of secrets) secret.fill(0);
    for (const file of files) closeSync(file);
  }
}

function runToEnd(path: string, call: ProgramCall, files: readonly number[]): Promise<ProgramResult> {
  const { args, input, patience = PATIENCE, signal } = call;
  return new Promise((resolve, reject) => {
    const stdin = input === undefined ? "ignore" : "pipe";
    const child = spawn(path, args, { stdio: [stdin, "pipe", "pipe", ...files], env: PROGRAM_ENVIRONMENT });
    let stopped: ExternalDeviceError | undefined;
    const stop = (why: ExternalDeviceError): void => {
      stopped ??= why;
      child.kill("SIGKILL");
    };
    const abort = (): void => stop(calledOff());
    const timer = setTimeout(() => stop(failed(path, `no end after ${patience / 1000} s`)), patience);
    signal?.addEventListener("abort", abort);
    const pieces: Buffer[] = [];
    const complaint = new Complaint();
    // A system without descriptors makes none of these, and says so by `error`.
    child.stdout?.on("data", (piece: Buffer) => pieces.push(piece));
    child.stderr?.setEncoding("utf8").on("data", (text: string) => complaint.push(text));
    // It may end before it has read everything.
    child.stdin?.on("error", () => {}).end(input);
    const settle = (finish: () => void): void => {
      clearTimeout(timer);
      signal?.removeEventListener("abort", abort);
      finish();
    };
    child.on("error", (error) => settle(() => reject(startError(path, call.debianPackage, error))));
    child.on("close", (code, exitSignal) =>
      settle(() => {
        const output = Buffer.concat(pieces);
        for (const piece of pieces) piece.fill(0);
        const end = exitSignal ? `ended by ${exitSignal}` : `ended with code ${code}`;
        if (stopped) reject(stopped);
        else resolve({ ok: code === 0, output, complaint: complaint.text || (code === 0 ? "" : end) });
      }),
    );
  });
}

/** What a program says that may be long: nft shows the line that it does not like, and what is wrong comes before it. */
class Complaint {
  #beginning = "";
  #end = "";
  #isCut = false;

  push(text: string): void {
    const room = COMPLAINT_MAX_CHARACTERS - this.#beginning.length;
    this.#beginning += text.slice(0, room);
    this.#end += text.slice(room);
    if (this.#end.length <= COMPLAINT_MAX_CHARACTERS) return;
    this.#end = this.#end.slice(-COMPLAINT_MAX_CHARACTERS);
    this.#isCut = true;
  }

  /** Cut between words: half a key would not be seen to be one. */
  get text(): string {
    const text = this.#isCut
      ? `${this.#beginning.replace(/\S*$/, "")}... ${this.#end.replace(/^\S*\s*/, "")}`
      : this.#beginning + this.#end;
    return withoutKeys(text.trim().replace(/\s*\n\s*/g, "; "));
  }
}

function startError(path: string, debianPackage: string, cause: NodeJS.ErrnoException): ExternalDeviceError {
  if (!NO_PROGRAM.has(cause.code)) return failed(path, cause.message);
  const message = `the program ${path} cannot be run: ${cause.message} (Debian package ${debianPackage})`;
  return new ExternalDeviceError("program-missing", message, { cause });
}

function calledOff(): ExternalDeviceError {
  return new ExternalDeviceError("closed", "the device is closed");
}

function failed(path: string, why: string): ExternalDeviceError {
  return new ExternalDeviceError("control-failed", `${path}: ${why}`, { retryable: true });
}
