import { describeMissing, findProgram } from "#net/find-program.ts";
import { ExternalDeviceError } from "./external-error.ts";

/** The whole path of a program. Throws ExternalDeviceError `program-missing`, also for one that this user may not run. */
export function needProgram(name: string, debianPackage: string): string {
  const path = findProgram(name);
  if (path === undefined) throw new ExternalDeviceError("program-missing", describeMissing(name, debianPackage));
  return path;
}
