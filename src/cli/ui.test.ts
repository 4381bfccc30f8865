import assert from "node:assert/strict";
import { existsSync, mkdirSync, readFileSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { test } from "node:test";
import { scene } from "./testing/perch-process.ts";
import { hasDesktop, openBrowser } from "./ui.ts";

const LINK = /^http:\/\/127\.0\.0\.1:\d+\/#token=[\w-]{43}$/;

test("perch ui prints a link on stdout and how long it is good on stderr; each is another", async (t) => {
  const { run, startDaemon } = scene(t);
  await startDaemon();
  const first = await run("ui --no-open");
  assert.equal(first.code, 0, first.err);
  assert.match(first.out.trim(), LINK);
  assert.match(first.err, /opens the page once, within 5 minutes/);
  const second = await run("ui --json");
  const { url, expiresAt } = JSON.parse(second.out) as { readonly url: string; readonly expiresAt: string };
  assert.match(url, LINK);
  assert.ok(Date.parse(expiresAt) > Date.now());
  assert.notEqual(url, first.out.trim());
  assert.equal(new URL(url).port, new URL(first.out.trim()).port, "one page for a daemon");
  const page = await (await fetch(new URL("/", url))).text();
  assert.match(page, /<title>Perch<\/title>/);
});

test("perch ui refuses a wrong port, another one than the one in use, and tells that no daemon runs", async (t) => {
  const { run, startDaemon } = scene(t);
  assert.equal((await run("ui")).code, 3);
  await startDaemon();
  for (const port of ["65536", "-1", "1.5", "x"]) assert.equal((await run(`ui --port ${port}`)).code, 2, port);
  const { out } = await run("ui --no-open");
  const taken = Number(new URL(out.trim()).port);
  const other = await run(`ui --port ${taken === 4000 ? 4001 : 4000}`);
  assert.equal(other.code, 2);
  assert.match(other.err, new RegExp(`is served on port ${taken} already`));
});

test("a browser is opened on a desktop that is the caller's own, where there is something to open it with", async (t) => {
  const { dir } = scene(t);
  const bin = join(dir, "bin");
  mkdirSync(bin);
  writeFileSync(join(bin, "xdg-open"), "#!/bin/sh\n", { mode: 0o755 });
  assert.equal(hasDesktop({ DISPLAY: ":0", PATH: bin }, 1000), true);
  assert.equal(hasDesktop({ WAYLAND_DISPLAY: "wayland-0", PATH: `/nowhere:${bin}` }, 1000), true);
  assert.equal(hasDesktop({ PATH: bin }, 1000), false, "no desktop");
  assert.equal(hasDesktop({ DISPLAY: ":0", PATH: "/nowhere" }, 1000), false, "nothing to open it with");
  assert.equal(hasDesktop({ DISPLAY: ":0", PATH: bin }, 0), false, "root on somebody's desktop");
});

test("the browser is given a file that only its user reads and that goes away, never the link itself", async (t) => {
  const { dir } = scene(t);
  // What a browser would be started with, and what it would find there.
  const script = `echo "$1" > ${dir}/argument; ls -l "$1" > ${dir}/mode; cat "$1" > ${dir}/page`;
  writeFileSync(join(dir, "xdg-open"), `#!/bin/sh\n${script}\n`, { mode: 0o755 });
  const url = "http://127.0.0.1:7400/#token=secret";
  const environment = { PATH: `${dir}:${process.env.PATH}`, XDG_RUNTIME_DIR: dir };
  await openBrowser(url, environment, 1500);
  const path = readFileSync(join(dir, "argument"), "utf8").trim();
  assert.ok(path.startsWith(dir) && !path.includes("secret"), path);
  assert.match(readFileSync(join(dir, "mode"), "utf8"), /^-rw------- /);
  assert.ok(readFileSync(join(dir, "page"), "utf8").includes(`url=${url}"`));
  assert.equal(existsSync(path), false);
});
