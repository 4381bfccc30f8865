import { readFileSync } from "node:fs";
import { join } from "node:path";
import { replaceFile } from "#base/atomic-file.ts";
import { messageOf } from "#base/errors.ts";
import type { Logger } from "#base/log.ts";
import type { TimestampMark } from "#wireguard/timestamp-mark.ts";

/** File in the state directory with the mark: milliseconds since the Unix epoch, as text. */
const TIMESTAMP_FILE = "handshake-timestamp";

/** The mark of the agent's key. A file that cannot be read or written is logged, and the clock is trusted. */
export function timestampFile(stateDir: string, log: Logger): TimestampMark {
  const path = join(stateDir, TIMESTAMP_FILE);
  let written: Promise<void> = Promise.resolve();
  return {
    load: () => {
      try {
        const wall = Number(readFileSync(path, "utf8").trim());
        if (Number.isSafeInteger(wall) && wall >= 0) return wall;
        log.warn("handshake timestamp file is damaged", { path });
      } catch (error) {
        if ((error as NodeJS.ErrnoException).code !== "ENOENT")
          log.warn("handshake timestamp not read", { path, err: messageOf(error) });
      }
      return 0;
    },
    store: (wall) => {
      written = written
        .then(() => replaceFile(path, `${wall}\n`))
        .catch((error: unknown) => log.warn("handshake timestamp not stored", { path, err: messageOf(error) }));
    },
  };
}
