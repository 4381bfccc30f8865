import { mkdirSync, statSync } from "node:fs";
import { dirname } from "node:path";

/**
 * Makes a directory and the missing ones above it, each with `mode`. Returns the topmost one that was made, undefined when
 * the directory was there. Throws what the file system throws, and an Error that names what is in the way.
 *
 * Unlike mkdir's own recursive mode it ends where the kernel answers ENOENT to every mkdir, as in /proc.
 */
export function makeDirectory(path: string, mode: number): string | undefined {
  const found = statSync(path, { throwIfNoEntry: false });
  if (found?.isDirectory()) return undefined;
  if (found) throw new Error(`${path} is not a directory`);
  const above = dirname(path);
  const made = above === path ? undefined : makeDirectory(above, mode);
  try {
    mkdirSync(path, { mode });
  } catch (error) {
    // Somebody else made it in the same moment.
    if ((error as NodeJS.ErrnoException).code !== "EEXIST") throw error;
    return made;
  }
  return made ?? path;
}
