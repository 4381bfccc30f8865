/**
 * Loaded into a daemon that a test looks at (`NODE_OPTIONS=--import …`): keeps count of the timers that wait, and writes it on
 * SIGUSR2 to a file named after the process in PERCH_TIMERS_DIRECTORY. Node's own list leaves out timers that do not hold the process.
 */
import { writeFileSync } from "node:fs";
import { join } from "node:path";
import { isMainThread } from "node:worker_threads";

const directory = process.env.PERCH_TIMERS_DIRECTORY;
if (directory !== undefined && isMainThread) {
  const live = new Set<NodeJS.Timeout>();
  const { setTimeout: setOnce, clearTimeout: clear, setInterval: setAgain, clearInterval: clearAgain } = globalThis;
  globalThis.setTimeout = ((callback: (...args: unknown[]) => void, delay?: number, ...args: unknown[]) => {
    const timer = setOnce(() => {
      live.delete(timer);
      callback(...args);
    }, delay);
    live.add(timer);
    return timer;
  }) as typeof setTimeout;
  globalThis.setInterval = ((callback: (...args: unknown[]) => void, delay?: number, ...args: unknown[]) => {
    const timer = setAgain(callback, delay, ...args);
    live.add(timer);
    return timer;
  }) as typeof setInterval;
  const forget = (timer: unknown): void => void live.delete(timer as NodeJS.Timeout);
  globalThis.clearTimeout = ((timer) => {
    forget(timer);
    clear(timer);
  }) as typeof clearTimeout;
  globalThis.clearInterval = ((timer) => {
    forget(timer);
    clearAgain(timer);
  }) as typeof clearInterval;
  process.on("SIGUSR2", () => writeFileSync(join(directory, `${process.pid}`), `${live.size}`));
}
