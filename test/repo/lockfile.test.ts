import assert from "node:assert/strict";
import { readFileSync } from "node:fs";
import { test } from "node:test";

interface LockedPackage {
  readonly version?: string;
  readonly resolved?: string;
  /** A workspace of ours, linked into node_modules. */
  readonly link?: boolean;
  readonly optionalDependencies?: Readonly<Record<string, string>>;
}

const packages = Object.entries(
  (
    JSON.parse(readFileSync(new URL("../../package-lock.json", import.meta.url), "utf8")) as {
      readonly packages: Readonly<Record<string, LockedPackage>>;
    }
  ).packages,
);

test("the lock file holds every platform's variant of a package, or npm ci refuses it", () => {
  const locked = new Set(packages.map(([path]) => path.replace(/^.*node_modules\//, "")));
  const missing = packages.flatMap(([, { optionalDependencies = {} }]) =>
    Object.keys(optionalDependencies).filter((name) => !locked.has(name)),
  );
  assert.deepEqual(missing, []);
});

test("the lock file names no registry", () => {
  assert.deepEqual(
    packages.filter(([, { resolved, link }]) => resolved !== undefined && !link).map(([path]) => path),
    [],
  );
});
