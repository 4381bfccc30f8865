import { execFile } from "node:child_process";
import { accessSync, constants } from "node:fs";
import { delimiter, isAbsolute, join } from "node:path";
import { promisify } from "node:util";
import { ExternalDeviceError } from "./external-error.ts";

const run = promisify(execFile);

/** PATH, and where a plain user's PATH does not look. */
export const PROGRAM_PATH = [process.env.PATH, "/usr/sbin", "/sbin"].filter(Boolean).join(delimiter);

/** The whole path of a program with this name or path, or undefined: there is none. */
export function findProgram(name: string): string | undefined {
  const paths = isAbsolute(name) ? [name] : PROGRAM_PATH.split(delimiter).map((folder) => join(folder, name));
  return paths.find((path) => {
    try {
      accessSync(path, constants.X_OK);
      return true;
    } catch {
      return false;
    }
  });
}

/** Throws ExternalDeviceError `program-missing`. */
export function needProgram(name: string, debianPackage: string): string {
  const path = findProgram(name);
  if (path !== undefined) return path;
  throw new ExternalDeviceError(
    "program-missing",
    `the program ${name} is not installed (Debian package ${debianPackage})`,
  );
}

/**
 * The words before a command with which the kernel sends it a signal when we end, however we do (PR_SET_PDEATHSIG). Node cannot ask
 * for that, and `setpriv` of util-linux can, in whose place the command then runs. None where that cannot be had.
 */
export async function commandThatEndsWithUs(signal: "TERM" | "KILL"): Promise<readonly string[]> {
  const setpriv = findProgram("setpriv");
  if (setpriv === undefined) return [];
  const words = ["--pdeathsig", signal];
  // busybox has a setpriv that cannot.
  return run(setpriv, [...words, "true"]).then(
    () => [setpriv, ...words],
    () => [],
  );
}
