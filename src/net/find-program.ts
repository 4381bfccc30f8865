import { execFile } from "node:child_process";
import { accessSync, constants, existsSync, statSync } from "node:fs";
import { delimiter, isAbsolute, join } from "node:path";
import { promisify } from "node:util";

const run = promisify(execFile);

/** PATH, and where a plain user's PATH does not look. */
export const PROGRAM_PATH = [process.env.PATH, "/usr/sbin", "/sbin"].filter(Boolean).join(delimiter);

/** Of every program that we start: nothing of our own, which may hold a setup key; without a language, messages are in English. */
export const PROGRAM_ENVIRONMENT: Readonly<Record<string, string>> = { PATH: PROGRAM_PATH };

/** Whole paths of a `setpriv` that was tried and can do it: each program that we start would try it anew. */
const ableToEndWithUs = new Set<string>();

/** The whole path of a program with this name or path that this user may run, or undefined: there is none. */
export function findProgram(name: string): string | undefined {
  return programPaths(name).find((path) => {
    try {
      accessSync(path, constants.X_OK);
      return statSync(path).isFile();
    } catch {
      return false;
    }
  });
}

/** Why `findProgram` does not find it, for a message. */
export function describeMissing(name: string, debianPackage: string): string {
  const unusable = programPaths(name).find((path) => existsSync(path));
  const problem = unusable === undefined ? `${name} is not installed` : `${unusable} may not be run`;
  return `the program ${problem} (Debian package ${debianPackage})`;
}

function programPaths(name: string): readonly string[] {
  return isAbsolute(name) ? [name] : PROGRAM_PATH.split(delimiter).map((folder) => join(folder, name));
}

/**
 * The words before a command with which the kernel sends it a signal when we end, however we do (PR_SET_PDEATHSIG). Node cannot ask
 * for that, and `setpriv` of util-linux can, in whose place the command then runs. None where that cannot be had.
 */
export async function commandThatEndsWithUs(signal: "TERM" | "KILL"): Promise<readonly string[]> {
  const setpriv = findProgram("setpriv");
  if (setpriv === undefined) return [];
  const command = [setpriv, "--pdeathsig", signal];
  if (ableToEndWithUs.has(setpriv)) return command;
  // busybox has a setpriv that cannot.
  return run(setpriv, ["--pdeathsig", signal, "true"], { env: PROGRAM_ENVIRONMENT }).then(
    () => {
      ableToEndWithUs.add(setpriv);
      return command;
    },
    () => [],
  );
}
