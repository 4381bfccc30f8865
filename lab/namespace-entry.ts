import { lastError, libc, loadLibrary } from "#net/libc.ts";
import { NAMESPACE_FOLDER } from "./namespace.ts";

const O_CLOEXEC = 0x80000;
const CLONE_NEWNET = 0x40000000;

/**
 * Runs `action` with this thread in a named network namespace; what it opens stays there, the thread comes back. Synchronous
 * work only: another thread of the process is not moved. Throws NetError, and what `action` throws.
 */
export function inNamespace<T>(name: string, action: () => T): T {
  const setns = loadLibrary(null).func("setns", "int", ["int", "int"]) as (fd: number, kind: number) => number;
  const enter = (namespace: number): void => {
    if (setns(namespace, CLONE_NEWNET) < 0) throw lastError(`entering a namespace, ${name} or back`);
  };
  const home = openFile("/proc/thread-self/ns/net");
  try {
    const there = openFile(`${NAMESPACE_FOLDER}/${name}`);
    try {
      enter(there);
    } finally {
      libc().close(there);
    }
    try {
      return action();
    } finally {
      // Not to come home is worse than whatever the action threw, and replaces it.
      enter(home);
    }
  } finally {
    libc().close(home);
  }
}

function openFile(path: string): number {
  const fd = libc().open(path, O_CLOEXEC);
  if (fd < 0) throw lastError(`opening ${path}`);
  return fd;
}
