import assert from "node:assert/strict";
import { test } from "node:test";
import { readSource, repositoryFiles } from "./source-files.ts";

/** A file longer than this usually holds two things (STYLE: a file that is hard to name). */
const MAX_LINES = 500;

/** Longer files, each with the reason why it is one thing. */
const EXCEPTIONS: Readonly<Record<string, string>> = {};

const lengths = new Map(
  repositoryFiles("src/**/*.ts", "lab/**/*.ts")
    .filter((path) => !path.startsWith("src/gen/") && !path.endsWith(".test.ts"))
    .map((path) => [path, readSource(path).split("\n").length - 1]),
);

test(`no source file is longer than ${MAX_LINES} lines without a reason`, () => {
  const long = [...lengths].filter(([path, length]) => length > MAX_LINES && !(path in EXCEPTIONS));
  assert.deepEqual(long, []);
});

test("every exception still needs to be one", () => {
  assert.deepEqual(
    Object.keys(EXCEPTIONS).filter((path) => (lengths.get(path) ?? 0) <= MAX_LINES),
    [],
  );
});
