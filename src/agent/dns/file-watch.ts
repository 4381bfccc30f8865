import { type FSWatcher, realpathSync, watch } from "node:fs";
import { basename, dirname, join } from "node:path";

/** Tells that somebody wrote, replaced, made or removed one of a few files; it may tell it without need, never too rarely. */
export interface FileWatch {
  /** From now on these files, whether they are there or not; follows links to where they lead now. Again after each replacement. */
  follow(paths: readonly string[]): void;
  close(): void;
}

export type OpenFileWatch = (changed: () => void, failed: (error: Error) => void) => FileWatch;

/** By inotify. Does not keep the process alive. `failed` hears of what cannot be watched, for example for lack of watches. */
export const watchFiles: OpenFileWatch = (changed, failed) => {
  let watchers: FSWatcher[] = [];
  const close = (): void => {
    for (const watcher of watchers) watcher.close();
    watchers = [];
  };
  const open = (path: string, only?: string): void => {
    try {
      const watcher = watch(path, { persistent: false }, (_, name) => {
        if (only === undefined || name === null || name === only) changed();
      });
      watcher.on("error", failed);
      watchers.push(watcher);
    } catch (error) {
      // A file, or a link's directory, that is not there is noticed by the directory, or when the link is looked at anew.
      if ((error as NodeJS.ErrnoException).code !== "ENOENT") failed(error as Error);
    }
  };
  return {
    follow(paths) {
      close();
      for (const path of new Set(paths.flatMap((each) => [each, realPathOf(each)]))) {
        open(dirname(path), basename(path));
        // A file that is mounted there has its directory elsewhere: only the file itself tells.
        open(path);
      }
    },
    close,
  };
};

/** Where a path leads; a file that is not there yet is looked for in the directory that will have it. */
function realPathOf(path: string): string {
  try {
    return realpathSync(path);
  } catch {
    try {
      return join(realpathSync(dirname(path)), basename(path));
    } catch {
      return path;
    }
  }
}
