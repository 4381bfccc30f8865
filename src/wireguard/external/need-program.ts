import { existsSync } from "node:fs";
import { findProgram, programPaths } from "#net/find-program.ts";
import { ExternalDeviceError } from "./external-error.ts";

/** The whole path of a program. Throws ExternalDeviceError `program-missing`, also for one that this user may not run. */
export function needProgram(name: string, debianPackage: string): string {
  const path = findProgram(name);
  if (path !== undefined) return path;
  const unusable = programPaths(name).find((path) => existsSync(path));
  const problem = unusable === undefined ? `${name} is not installed` : `${unusable} may not be run`;
  throw new ExternalDeviceError("program-missing", `the program ${problem} (Debian package ${debianPackage})`);
}
