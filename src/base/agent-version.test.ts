import assert from "node:assert/strict";
import { test } from "node:test";
import { isVersionAtLeast, supportsGoIdle, supportsLazy } from "./agent-version.ts";

test("lazy connections are supported from 0.45.0 on and by development builds", () => {
  for (const version of ["0.45.0", "v0.45.0", "a0.45.1", "0.45", "1.0", "0.76.0-rc1", "0.100.0", "0.45.0+meta"])
    assert.ok(supportsLazy(version), version);
  for (const version of ["development", "development-abc", "ci-1234", "dev-x"])
    assert.ok(supportsLazy(version), version);
  for (const version of ["", "0.44.9", "v0.44.99-dev", "45", "vv0.45.0", "0.x.0", "0.45.", "latest", "0.9.0"])
    assert.ok(!supportsLazy(version), version);
});

test("versions are compared number by number", () => {
  for (const version of ["0.29.3", "0.29.10", "0.30", "0.29.3-rc1"])
    assert.ok(isVersionAtLeast(version, "0.29.3"), version);
  for (const version of ["0.29.2", "0.29", "0.3.9"]) assert.ok(!isVersionAtLeast(version, "0.29.3"), version);
});

test("GO_IDLE is understood from 0.50.0 on", () => {
  for (const version of ["0.50.0", "v0.50.0", "0.76.3", "development", "1.0.0"])
    assert.ok(supportsGoIdle(version), version);
  for (const version of ["0.49.9", "0.45.0", "", "?"]) assert.ok(!supportsGoIdle(version), version);
});
