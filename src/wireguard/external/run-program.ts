import { spawn } from "node:child_process";
import { closeSync } from "node:fs";
import type { Millis } from "#base/time.ts";
import { ExternalDeviceError } from "./external-error.ts";
import { needProgram, PROGRAM_PATH } from "./find-program.ts";
import { withoutKeys } from "./program-log.ts";
import { openSecretFile } from "./secret-file.ts";

const PATIENCE: Millis = 10_000;
const COMPLAINT_MAX_CHARACTERS = 500;

export interface ProgramCall {
  readonly program: string;
  readonly debianPackage: string;
  readonly args: readonly string[];
  /** What the program reads from the files `secretPath(0)`, `secretPath(1)`, ...; wiped. */
  readonly secrets?: readonly Uint8Array[];
  readonly signal?: AbortSignal;
}

/** `output`: what it wrote; the caller wipes it when there may be secrets in it. `complaint`: its last words, without keys. */
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
 * Runs a program to its end, with nothing of our environment but PATH. Throws ExternalDeviceError: `program-missing`;
 * `control-failed` for one that hangs (10 s) or cannot be started; `closed` when the signal aborts.
 */
export async function runProgram(call: ProgramCall): Promise<ProgramResult> {
  const { program, debianPackage, args, secrets = [], signal } = call;
  const files: number[] = [];
  try {
    const path = needProgram(program, debianPackage);
    if (signal?.aborted) throw calledOff();
    for (const secret of secrets) files.push(openSecretFile(secret));
    return await runToEnd(path, args, files, signal);
  } finally {
    for (const secret of secrets) secret.fill(0);
    for (const file of files) closeSync(file);
  }
}

function runToEnd(
  path: string,
  args: readonly string[],
  files: readonly number[],
  signal: AbortSignal | undefined,
): Promise<ProgramResult> {
  return new Promise((resolve, reject) => {
    const child = spawn(path, args, { stdio: ["ignore", "pipe", "pipe", ...files], env: { PATH: PROGRAM_PATH } });
    let stopped: ExternalDeviceError | undefined;
    const stop = (why: ExternalDeviceError): void => {
      stopped ??= why;
      child.kill("SIGKILL");
    };
    const abort = (): void => stop(calledOff());
    const timer = setTimeout(() => stop(failed(path, `no end after ${PATIENCE / 1000} s`)), PATIENCE);
    signal?.addEventListener("abort", abort);
    const pieces: Buffer[] = [];
    let complaint = "";
    child.stdout!.on("data", (piece: Buffer) => pieces.push(piece));
    child.stderr!.setEncoding("utf8");
    child.stderr!.on("data", (text: string) => {
      complaint = (complaint + text).slice(-COMPLAINT_MAX_CHARACTERS);
    });
    const settle = (finish: () => void): void => {
      clearTimeout(timer);
      signal?.removeEventListener("abort", abort);
      finish();
    };
    child.on("error", (error) => settle(() => reject(failed(path, error.message))));
    child.on("close", (code) =>
      settle(() => {
        const output = Buffer.concat(pieces);
        for (const piece of pieces) piece.fill(0);
        if (stopped) reject(stopped);
        else resolve({ ok: code === 0, output, complaint: withoutKeys(complaint.trim().replaceAll("\n", "; ")) });
      }),
    );
  });
}

function calledOff(): ExternalDeviceError {
  return new ExternalDeviceError("closed", "the device is closed");
}

function failed(path: string, why: string): ExternalDeviceError {
  return new ExternalDeviceError("control-failed", `${path}: ${why}`, { retryable: true });
}
