import { loadLibrary } from "./libc.ts";

let trim: ((pad: number) => number) | undefined;

/**
 * Gives the system back what the C library keeps of memory that was freed (`malloc_trim` of glibc; others keep little and
 * have no such call). False when there was nothing, or no way. A large network map leaves tens of MB behind; the call takes
 * 1 to 2 ms then, and microseconds when there is nothing.
 */
export function trimHeap(): boolean {
  try {
    trim ??= loadLibrary(null).func("malloc_trim", "int", ["size_t"]) as (pad: number) => number;
  } catch {
    trim = () => 0;
  }
  return trim(0) !== 0;
}
