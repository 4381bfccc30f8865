import { execFileSync } from "node:child_process";
import { readFileSync } from "node:fs";
import { dirname, join } from "node:path";

export const ROOT = dirname(dirname(import.meta.dirname));

/** Files git knows or would add, by pathspec, relative to the root and sorted; ignored ones are not among them. */
export function repositoryFiles(...pathspecs: readonly string[]): string[] {
  const output = execFileSync("git", ["ls-files", "-z", "--cached", "--others", "--exclude-standard", ...pathspecs], {
    cwd: ROOT,
    encoding: "utf8",
    maxBuffer: 64 * 1024 * 1024,
  });
  const deleted = execFileSync("git", ["ls-files", "-z", "--deleted"], { cwd: ROOT, encoding: "utf8" }).split("\0");
  return [...new Set(output.split("\0"))].filter((path) => path !== "" && !deleted.includes(path)).sort();
}

export function readSource(path: string): string {
  return readFileSync(join(ROOT, path), "utf8");
}

export interface Import {
  readonly specifier: string;
  readonly line: number;
}

/**
 * The source without comments, lines kept. A comment begins at a line's start or after white space, so that globs and URLs in
 * strings are none.
 */
export function withoutComments(source: string): string {
  return source
    .replace(/(?<=^|\s)\/\*[\s\S]*?\*\//g, (comment) => comment.replace(/[^\n]/g, ""))
    .replace(/(?<=^|\s)\/\/.*$/gm, "");
}

/** Static and dynamic imports and re-exports, also of types. Strings that only look like one do not occur in our code. */
export function importsOf(text: string): Import[] {
  const source = withoutComments(text);
  const found: Import[] = [];
  for (const match of source.matchAll(/(?:^|[\s;}])(?:from|import)\s*\(?\s*"([^"\n]+)"/g))
    found.push({ specifier: match[1]!, line: source.slice(0, match.index + match[0].length).split("\n").length });
  return found;
}
