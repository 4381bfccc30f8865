import assert from "node:assert/strict";
import { existsSync, mkdirSync, symlinkSync } from "node:fs";
import { join } from "node:path";
import { test } from "node:test";
import { isPlainName } from "./completion.ts";
import { PERCH, perch, SERVER, scene } from "./testing/perch-process.ts";

const BASH = "/bin/bash";
const bash = { skip: !existsSync(BASH) && `no ${BASH}` };

/** What bash offers after `line`, whose last word is being typed: as its own Tab does, by the registered function. */
function scriptFor(lines: readonly string[]): string {
  const asked = lines.map(
    (line) =>
      `COMP_WORDS=(${line}${line.endsWith(" ") ? '""' : ""}); COMP_CWORD=$((\${#COMP_WORDS[@]} - 1)); COMPREPLY=(); $function; echo "\${COMPREPLY[@]}"`,
  );
  return [
    'eval "$(perch completion bash)"',
    // complete -o default -F NAME perch
    `function=$(complete -p perch | sed 's/.*-F \\([^ ]*\\) perch$/\\1/')`,
    ...asked,
  ].join("\n");
}

test("bash completes commands, flags after values, and the names of peers that the daemon knows", bash, async (t) => {
  const at = scene(t);
  mkdirSync(join(at.dir, "bin"));
  symlinkSync(PERCH, join(at.dir, "bin", "perch"));
  const table: readonly (readonly [string, string])[] = [
    ["perch sta", "status state"],
    ["perch peers ", "wake sleep pin unpin --help"],
    ["perch status --daemon-addr unix:///tmp/a.sock --che", "--check"],
    ["perch service log", "log-level"],
    ["perch complete", ""],
    ["perch peers wake peer-", "peer-1.perch.test peer-2.perch.test peer-3.perch.test peer-4.perch.test"],
    ["perch why peer-3", "peer-3.perch.test"],
    ["perch debug capture --peer peer-2", "peer-2.perch.test"],
    ["perch why carol", ""],
    ["perch why --js", "--json"],
  ];
  const environment = { PATH: `${join(at.dir, "bin")}:/usr/bin:/bin`, PERCH_DAEMON_ADDR: at.address };
  const script = scriptFor(table.map(([line]) => line));
  await at.startDaemon("--registered");
  await at.run(`up --management-url ${SERVER}`);
  const { code, out, err } = await perch(["-c", script], environment, BASH);
  assert.deepEqual([code, err], [0, ""]);
  assert.deepEqual(
    out.split("\n").slice(0, -1),
    table.map(([, offered]) => offered),
  );
});

test("without a daemon no peer is offered and no error shown", async (t) => {
  const { code, out, err } = await scene(t).run("complete-peers bob");
  assert.deepEqual([code, out, err], [0, "", ""]);
});

test("a name that a shell would expand is not offered", () => {
  for (const name of ["$(reboot)", "`id`", "a b", "-rf", "x;y", "peer\nb", "", "~root", "*"])
    assert.equal(isPlainName(name), false, name);
  for (const name of ["bob", "peer-1.perch.test", "a_b.c"]) assert.equal(isPlainName(name), true, name);
});

test("the command behind completion is in no help and no script", async () => {
  const help = await perch(["--help"]);
  assert.doesNotMatch(help.out, /complete-peers/);
  for (const shell of ["zsh", "fish"]) {
    const { code, out } = await perch(["completion", shell]);
    assert.equal(code, 0);
    assert.match(out, /perch complete-peers -- /);
    assert.doesNotMatch(out, /-a complete-peers|help complete-peers/);
  }
});
