import { readdirSync, readFileSync } from "node:fs";

/** Of systems that do not say. */
const USUAL_LIMIT = 1024;
/** For connections, and for the pipes of programs that are started now and then. */
const RESERVE = 32;

/** How many more descriptors this process may open (RLIMIT_NOFILE, getrlimit(2)) when some are left for everything else. */
export function freeDescriptors(): number {
  return Math.max(0, descriptorLimit() - openDescriptors() - RESERVE);
}

function descriptorLimit(): number {
  try {
    const [, soft] = /^Max open files\s+(\d+|unlimited)/m.exec(readFileSync("/proc/self/limits", "latin1")) ?? [];
    if (soft === "unlimited") return Number.POSITIVE_INFINITY;
    return soft === undefined ? USUAL_LIMIT : Number(soft);
  } catch {
    return USUAL_LIMIT;
  }
}

function openDescriptors(): number {
  try {
    return readdirSync("/proc/self/fd").length;
  } catch {
    return 0;
  }
}
