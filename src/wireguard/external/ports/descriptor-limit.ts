import { readFileSync } from "node:fs";

/** Of systems that do not say. */
const USUAL_LIMIT = 1024;

/** How many descriptors this process may have open (RLIMIT_NOFILE, getrlimit(2)). */
export function descriptorLimit(): number {
  try {
    const [, soft] = /^Max open files\s+(\d+|unlimited)/m.exec(readFileSync("/proc/self/limits", "latin1")) ?? [];
    if (soft === "unlimited") return Number.POSITIVE_INFINITY;
    return soft === undefined ? USUAL_LIMIT : Number(soft);
  } catch {
    return USUAL_LIMIT;
  }
}
