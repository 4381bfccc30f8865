import assert from "node:assert/strict";
import { chmodSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { test } from "node:test";
import { parseEndpoint } from "#base/ip.ts";
import type { DomainName } from "./domain-name.ts";
import { isResolvedRunning, SystemdResolved } from "./resolved-linux.ts";

test("resolved is told server and domains of the link, and to forget them; a link that is gone is no problem", async () => {
  const folder = mkdtempSync(join(tmpdir(), "perch-resolved-"));
  const path = process.env.PATH;
  const script = (body: string): void => {
    writeFileSync(join(folder, "resolvectl"), `#!/bin/sh\nshift\necho "$@" >> ${folder}/log\n${body}\n`);
    chmodSync(join(folder, "resolvectl"), 0o755);
  };
  try {
    process.env.PATH = `${folder}:${path}`;
    script("exit 0");
    const names = {
      interfaceName: "perch0",
      server: parseEndpoint("100.64.0.1:5053"),
      search: ["perch.internal" as DomainName],
      match: ["perch.internal", "corp.example"] as DomainName[],
      everything: true,
    };
    const resolved = new SystemdResolved();
    assert.ok(await isResolvedRunning());
    await resolved.apply(names);
    assert.deepEqual(await resolved.restore(), []);
    assert.deepEqual(readFileSync(join(folder, "log"), "utf8").split("\n").slice(1, -1), [
      "dns perch0 100.64.0.1:5053",
      "domain perch0 perch.internal ~corp.example ~.",
      "default-route perch0 yes",
      "llmnr perch0 no",
      "mdns perch0 no",
      "flush-caches",
      "revert perch0",
    ]);
    script('echo "Failed to resolve interface \\"perch0\\": No such device" >&2; exit 1');
    await assert.rejects(resolved.apply(names), { code: "resolver", message: /resolvectl dns perch0.*No such device/ });
    assert.deepEqual(await resolved.restore(), []);
    assert.ok(!(await isResolvedRunning()));
  } finally {
    process.env.PATH = path;
    rmSync(folder, { recursive: true });
  }
});
