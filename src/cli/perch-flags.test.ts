import assert from "node:assert/strict";
import { existsSync, mkdirSync, readFileSync, rmSync, symlinkSync, writeFileSync } from "node:fs";
import { dirname, join } from "node:path";
import { test } from "node:test";
import { DAEMON_ERROR_CODES } from "#agent/daemon/daemon-error.ts";
import { EXIT, EXIT_OF_CODE } from "./exit-codes.ts";

import { KEY, PERCH, perch, scene } from "./testing/perch-process.ts";

const NO_DAEMON = "unix:///tmp/perch-test-nobody.sock";

test("bad flags end in exit code 2 with a message that names the value", async () => {
  const table: readonly (readonly [string, RegExp])[] = [
    ["status --bogus", /unknown option '--bogus'\n\(try: perch status --help\)/],
    ["statsu", /unknown command 'statsu'/],
    ["status --filter-by-status sleeping", /--filter-by-status must be idle, connecting or connected, got "sleeping"/],
    ["status --filter-by-status idle,Awake", /got "Awake"/],
    ["status --filter-by-ips 100.64.0.300", /--filter-by-ips must be overlay addresses, got "100.64.0.300"/],
    ["status --check fine", /--check must be live or ready, got "fine"/],
    ["status --json --yaml", /--json and --yaml exclude each other/],
    ["status --watch -4", /--watch and --ipv4 exclude each other/],
    ["status --daemon-addr tcp://127.0.0.1:1", /--daemon-addr must be unix:\/\/\/absolute\/path, got "tcp:/],
    ["up --mtu 12", /--mtu must be 576 to 8192, got 12/],
    ["up --wireguard-port many", /--wireguard-port must be a whole number 0 to 65535, got "many"/],
    ["up --device tun", /--device must be one of embedded, kernel, wireguard-go, auto, got "tun"/],
    ["up --enable-lazy-connection=maybe", /--enable-lazy-connection must be true or false, got "maybe"/],
    ["up --management-url vpn", /--management-url must be http/],
    ["up --setup-key A2C8E62B-38F5-4553-B31E", /--setup-key must be a UUID .*got "A2C8…" of 23 characters/],
    ["up --setup-key-file /nonexistent/key", /--setup-key-file: .*\/nonexistent\/key/],
    [`up --setup-key ${KEY} --setup-key-file x`, /exclude each other/],
    ["up extra", /too many arguments/],
    ["peers wake", /missing required argument 'PEER'/],
    ["lazy sometimes", /lazy takes on, off or network, got "sometimes"/],
    ["service run --log-level loud", /--log-level must be one of .* got "loud"/],
    ["service log-level loud", /got "loud"/],
    ["deregister", /without a terminal add --yes/],
  ];
  const results = await mapInTurn(table, ([args]) =>
    perch(args.split(" "), { PERCH_DAEMON_ADDR: args.includes("daemon-addr") ? "" : NO_DAEMON }),
  );
  for (const [index, [args, message]] of table.entries()) {
    const { code, out, err } = results[index]!;
    assert.match(err, message, args);
    assert.equal(code, EXIT.usage, `${args}: ${err}`);
    assert.equal(out, "", args);
    assert.doesNotMatch(err, /38F5-4553/, "a setup key is not printed");
  }
});

test("wrong variables are errors by their name, NetBird's are reported and ignored", async () => {
  const wrong = await perch(["up"], { PERCH_DAEMON_ADDR: NO_DAEMON, PERCH_LAZY_CONN: "perhaps" });
  assert.deepEqual([wrong.code, wrong.err], [2, 'perch: PERCH_LAZY_CONN must be true or false, got "perhaps"\n']);
  const ignored = await perch(["up"], { PERCH_DAEMON_ADDR: NO_DAEMON, NB_LAZY_CONN: "perhaps" });
  assert.equal(ignored.code, EXIT.noDaemon);
  assert.match(ignored.err, /NB_LAZY_CONN must be true or false, got "perhaps"; it is ignored/);
  const state = await perch(["status"], { PERCH_DAEMON_ADDR: NO_DAEMON, NB_FILTER_BY_STATUS: "asleep" });
  assert.match(state.err, /NB_FILTER_BY_STATUS: .*got "asleep"/);
  assert.equal(state.code, EXIT.usage);
});

test("without a daemon every command says at once what to start", async (t) => {
  for (const args of ["status", "up", "down", "peers wake bob", "why bob", "lazy", "status --json", "status --watch"]) {
    const { code, out, err, ms } = await perch(args.split(" "), { PERCH_DAEMON_ADDR: NO_DAEMON });
    assert.equal(code, EXIT.noDaemon, args);
    assert.equal(out, "");
    assert.match(
      err,
      /^perch: no daemon runs on \/tmp\/perch-test-nobody.sock: start it with "perch service run --daemon-addr unix:\/\/\/tmp\/perch-test-nobody.sock", .*perch up -F.*\n$/,
    );
    t.diagnostic(`${args}: ${Math.round(ms)} ms`);
  }
});

test("help and version work without anything, and the help has examples", async () => {
  const help = await perch(["--help"]);
  assert.deepEqual([help.code, help.err], [0, ""]);
  assert.match(help.out, /Examples:\n {2}perch service install/);
  for (const name of ["up", "status", "service", "peers", "why"]) {
    const { code, out } = await perch([name, "--help"]);
    assert.equal(code, 0);
    assert.match(out, new RegExp(`^Usage: perch ${name}`));
  }
  assert.match((await perch(["help", "up"])).out, /--enable-lazy-connection/);
  const version = await perch(["version"]);
  assert.deepEqual([version.code, /^\d+\.\d+\.\d+\n$/.test(version.out)], [0, true]);
  assert.equal((await perch(["--version"])).out, version.out);
});

test("bin/perch runs through symbolic links and names what is missing without a Node", async (t) => {
  const { dir } = scene(t);
  symlinkSync(PERCH, join(dir, "one"));
  mkdirSync(join(dir, "sub"));
  symlinkSync("../one", join(dir, "sub", "two"));
  assert.match((await perch(["version"], {}, join(dir, "sub", "two"))).out, /^\d/);
  for (const file of ["bin/perch", "scripts/node"]) {
    mkdirSync(dirname(join(dir, "alone", file)), { recursive: true });
    writeFileSync(join(dir, "alone", file), readFileSync(join(PERCH, "../..", file)), { mode: 0o755 });
  }
  mkdirSync(join(dir, "path"));
  writeFileSync(join(dir, "path", "node"), "#!/bin/sh\necho 20.1.0\n", { mode: 0o755 });
  for (const tool of ["dirname", "readlink", "sh"]) symlinkSync(`/usr/bin/${tool}`, join(dir, "path", tool));
  const old = await perch(["version"], { PATH: join(dir, "path") }, join(dir, "alone", "bin", "perch"));
  assert.equal(old.code, 1);
  assert.match(old.err, /needs Node.js 24 or newer and the node in PATH is 20.1.0; run 'npm ci' in .*alone/);
  rmSync(join(dir, "path", "node"));
  const none = await perch(["version"], { PATH: join(dir, "path") }, join(dir, "alone", "bin", "perch"));
  assert.match(none.err, /there is no node in PATH/);
});

test("completion knows commands, subcommands and flags", async () => {
  const bash = (await perch(["completion", "bash"])).out;
  assert.match(bash, /"peers"\) offers="wake sleep pin unpin --help"/);
  const { code, out } = await perch(
    [
      "-c",
      `eval "$('${PERCH}' completion bash)"; COMP_WORDS=(perch service st); COMP_CWORD=2; _perch; echo "\${COMPREPLY[@]}"`,
    ],
    {},
    "/bin/bash",
  );
  assert.deepEqual([code, out.trim().split(" ").sort()], [0, ["start", "status", "stop"]]);
});

test("a service command without systemd says so", {
  skip: existsSync("/run/systemd/system") && "systemd runs here",
}, async () => {
  for (const verb of ["install", "uninstall", "start", "stop", "status"]) {
    const { code, err } = await perch(["service", verb]);
    assert.equal(code, 1);
    assert.equal(err, "perch: systemd does not run this machine; have your init system run: perch service run\n");
  }
});

test("docs/errors.md lists every code of the daemon with its exit code, and every exit code", () => {
  const text = readFileSync(new URL("../../docs/errors.md", import.meta.url), "utf8");
  const listed = new Map(
    [...text.matchAll(/^\| `([a-z-]+)` \| (\d+) \|/gm)].map(([, code, exit]) => [code!, Number(exit)]),
  );
  for (const [code, exit] of Object.entries(EXIT_OF_CODE)) assert.equal(listed.get(code), exit, code);
  const section = text.slice(text.indexOf("## Daemon"), text.indexOf("\n## ", text.indexOf("## Daemon") + 1));
  const inSection = [...section.matchAll(/^\| `([a-z-]+)` \|/gm)].map(([, code]) => code!).sort();
  assert.deepEqual(inSection, Object.keys(DAEMON_ERROR_CODES).sort());
  for (const exit of Object.values(EXIT)) assert.match(text, new RegExp(`^\\| ${exit} \\|`, "m"));
});

async function mapInTurn<Item, Out>(items: readonly Item[], call: (item: Item) => Promise<Out>): Promise<Out[]> {
  const out: Out[] = [];
  for (let index = 0; index < items.length; index += 2)
    out.push(...(await Promise.all(items.slice(index, index + 2).map(call))));
  return out;
}
