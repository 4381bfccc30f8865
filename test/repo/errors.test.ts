import assert from "node:assert/strict";
import { test } from "node:test";
import { readSource, repositoryFiles, withoutComments } from "./source-files.ts";

/** Where each code of each PerchError class is named in the source. */
function codesInSource(text: string): string[] {
  const source = withoutComments(text);
  const codes: string[] = [];
  for (const match of source.matchAll(/extends PerchError<([^{]+)>\s*\{/g)) {
    const argument = match[1]!.trim();
    if (/^\w+$/.test(argument)) {
      const union = new RegExp(`type ${argument} =([^;]+);`).exec(source);
      assert.ok(union, `the union ${argument} is in the file of its error class`);
      codes.push(...literals(union[1]!));
    } else {
      codes.push(...literals(argument));
    }
  }
  return codes;
}

/** The string literals of a union. */
function literals(union: string): string[] {
  return [...union.matchAll(/"([^"]+)"/g)].map((match) => match[1]!);
}

/** The codes that docs/errors.md lists: the first cell of a table row, in backticks. */
function codesInDocument(text: string): string[] {
  return [...text.matchAll(/^\|\s*`([^`]+)`\s*\|/gm)].map((match) => match[1]!);
}

test("docs/errors.md lists every error code, and no other", () => {
  const inSource = new Set(
    repositoryFiles("src/**/*.ts")
      .filter((path) => !path.endsWith(".test.ts"))
      .flatMap((path) => codesInSource(readSource(path))),
  );
  const inDocument = new Set(codesInDocument(readSource("docs/errors.md")));
  assert.ok(inSource.size > 10, "codes were found in the source");
  assert.deepEqual(
    { undocumented: [...inSource.difference(inDocument)].sort(), gone: [...inDocument.difference(inSource)].sort() },
    { undocumented: [], gone: [] },
  );
});

test("unions are read in each form they are written in", () => {
  assert.deepEqual(codesInSource(`export class AError extends PerchError<"a" | "b-c"> {}`), ["a", "b-c"]);
  assert.deepEqual(
    codesInSource(
      `export type BCode =\n  /** the "first"; and more */\n  | "x"\n  // and "y"\n  | "z";\nclass B extends PerchError<BCode> {`,
    ),
    ["x", "z"],
  );
  assert.throws(() => codesInSource("class C extends PerchError<Elsewhere> {"), /Elsewhere/);
});
