import assert from "node:assert/strict";
import { test } from "node:test";
import { importsOf, readSource, repositoryFiles } from "./source-files.ts";

type Section = "dependencies" | "devDependencies" | "optionalDependencies";
type Manifest = Record<Section, Record<string, string>>;
const manifest = JSON.parse(readSource("package.json")) as Manifest;
const webManifest = JSON.parse(readSource("web/package.json")) as Manifest;

/** First cells of the tables between a heading and the next one. */
function packagesUnder(heading: string): string[] {
  const document = readSource("docs/dependencies.md");
  const start = document.indexOf(`\n## ${heading}\n`);
  assert.ok(start >= 0, `docs/dependencies.md has a section "${heading}"`);
  const section = document.slice(start + 1).split(/^## /m)[1] ?? "";
  return [...section.matchAll(/^\| `([^`]+)` \|/gm)].map((match) => match[1]!).sort();
}

for (const [heading, section] of [
  ["At run time", "dependencies"],
  ["The runtime", "optionalDependencies"],
  ["For development", "devDependencies"],
] as const)
  test(`docs/dependencies.md lists the ${section} of package.json under "${heading}"`, () => {
    assert.deepEqual(packagesUnder(heading), Object.keys(manifest[section]).sort());
  });

test('docs/dependencies.md lists what web/package.json names under "For the web page"', () => {
  assert.deepEqual(packagesUnder("For the web page"), Object.keys(webManifest.devDependencies).sort());
  assert.equal(
    webManifest.dependencies,
    undefined,
    "the page is built beforehand: nothing of it is needed at run time",
  );
});

test("src imports nothing but Node, itself and the dependencies", () => {
  const strangers = new Set<string>();
  for (const path of repositoryFiles("src/**/*.ts"))
    for (const { specifier } of importsOf(readSource(path))) {
      if (/^(node:|#|\.)/.test(specifier)) continue;
      const name = specifier.split("/", specifier.startsWith("@") ? 2 : 1).join("/");
      const allowed = path.includes(".test.ts") || path.includes("/testing/") ? { ...manifest.devDependencies } : {};
      if (!(name in manifest.dependencies) && !(name in allowed)) strangers.add(`${path} imports ${specifier}`);
    }
  assert.equal([...strangers].join("\n"), "");
});

/**
 * Variants of development tools for platforms on which Perch is not developed: the lock file must name them, or npm ci
 * refuses it, and npm installs none of them on a platform that Perch runs on (Linux with glibc, x64 and arm64).
 */
const FOREIGN_TOOL =
  /^node_modules\/@(biomejs\/cli|bufbuild\/buf)-(android|darwin|win32|linux-(x64|arm64)-musl|linux-armv7)/;

test("no install script is needed: none is run, and every locked package has an integrity hash", () => {
  assert.match(readSource(".npmrc"), /^ignore-scripts=true$/m);
  const lock = JSON.parse(readSource("package-lock.json")) as {
    packages: Record<string, { integrity?: string; link?: boolean; dev?: boolean }>;
  };
  const unhashed = Object.entries(lock.packages).filter(
    ([path, entry]) =>
      path !== "" && path !== "web" && !entry.link && !entry.integrity && !(entry.dev && FOREIGN_TOOL.test(path)),
  );
  assert.deepEqual(unhashed, []);
});
