import { readdirSync, readFileSync } from "node:fs";
import { extname, join, sep } from "node:path";
import { messageOf } from "#base/errors.ts";
import { DaemonError } from "./daemon-error.ts";

/** The built page. */
export const WEB_FOLDER = join(import.meta.dirname, "../../../web/dist");

const TYPES: Readonly<Record<string, string>> = {
  ".html": "text/html; charset=utf-8",
  ".js": "text/javascript; charset=utf-8",
  ".css": "text/css; charset=utf-8",
  ".svg": "image/svg+xml",
};

export interface UiFile {
  readonly type: string;
  readonly content: Buffer;
}

/**
 * All files of the page by the path of their URL, read once. A request is a lookup in this table and never becomes a path on
 * the disk. Throws DaemonError `daemon-path`.
 */
export function readUiFiles(folder: string = WEB_FOLDER): ReadonlyMap<string, UiFile> {
  const files = new Map<string, UiFile>();
  try {
    for (const name of readdirSync(folder, { recursive: true, encoding: "utf8" })) {
      const type = TYPES[extname(name)];
      if (type) files.set(`/${name.split(sep).join("/")}`, { type, content: readFileSync(join(folder, name)) });
    }
  } catch (cause) {
    throw new DaemonError("daemon-path", `cannot read the web page in ${folder}: ${messageOf(cause)}`, { cause });
  }
  const index = files.get("/index.html");
  if (!index)
    throw new DaemonError("daemon-path", `the web page is not in ${folder}; build it with: npm run build -w web`);
  files.set("/", index);
  return files;
}
