import assert from "node:assert/strict";
import { dirname, join } from "node:path/posix";
import { test } from "node:test";
import { importsOf, readSource, repositoryFiles } from "./source-files.ts";

interface FolderRule {
  /** Other top folders of src it may import. */
  readonly may: readonly string[];
  /** Why it may not import more; shown with a violation. */
  readonly because: string;
}

const FOLDERS: Readonly<Record<string, FolderRule>> = {
  base: { may: [], because: "everything stands on base; an import of Perch in it would be a circle" },
  gen: { may: [], because: "generated messages know nothing but protobuf" },
  net: { may: ["base"], because: "sockets and system calls are used by parts, and know none of them" },
  tun: { may: ["base", "net"], because: "a TUN device is a file of packets; it needs only system calls" },
  wireguard: {
    may: ["base", "net", "tun"],
    because: "the embedded WireGuard is usable alone and knows no network map",
  },
  ice: { may: ["base"], because: "ICE is sans-IO and is given its socket" },
  relay: { may: ["base"], because: "a protocol knows its frames, its client and its server" },
  signal: { may: ["base", "gen"], because: "a protocol knows its messages, its client and its server" },
  management: { may: ["base", "gen"], because: "a protocol knows its messages, its client and its server" },
  server: {
    may: ["base", "management", "signal", "relay", "ice"],
    because: "the server process composes the servers; it never contains an agent",
  },
  agent: {
    may: ["base", "gen", "net", "tun", "wireguard", "ice", "relay", "signal", "management"],
    because: "an agent is used by the CLI and never contains a server process",
  },
  cli: {
    may: ["base", "gen", "net", "tun", "wireguard", "ice", "relay", "signal", "management", "server", "agent"],
    because: "the CLI is the top",
  },
};

/**
 * Who may import a generated file; elsewhere its messages are not to be known. The clients hand the decrypted messages on
 * to the agent, so it knows them too; the daemon's are between daemon and CLI, and the engine below knows nothing of them.
 */
const GENERATED_OWNERS: Readonly<Record<string, readonly string[]>> = {
  "management_pb.ts": ["src/management", "src/agent"],
  "signal_pb.ts": ["src/signal", "src/agent"],
  "daemon_pb.ts": ["src/agent/daemon", "src/cli"],
};

/** Packages with one home each. */
const PACKAGE_HOMES: Readonly<Record<string, { readonly homes: readonly string[]; readonly because: string }>> = {
  koffi: {
    homes: ["src/tun", "src/net"],
    because: "foreign calls can crash the process; they stay where they are reviewed",
  },
  kysely: { homes: ["src/management/server"], because: "one part owns the database" },
  "node:sqlite": {
    homes: ["src/management/server", "src/server"],
    because: "one part owns the database, one its lock",
  },
  ws: { homes: ["src/relay"], because: "WebSocket is the relay's transport and nobody else's" },
  pino: { homes: ["src/cli", "src/agent/daemon", "src/server"], because: "parts log through base/log.ts" },
  commander: { homes: ["src/cli"], because: "only the CLI reads flags" },
  "libsodium-wrappers": { homes: ["src/base"], because: "boxes are made in one place" },
};

function topFolder(path: string): string {
  return path.split("/")[1]!;
}

function isUnder(path: string, folders: readonly string[]): boolean {
  return folders.some((folder) => path.startsWith(`${folder}/`));
}

/** Why `path` may not import `specifier`, or undefined: it may. Tests beside the code may use packages and lab freely. */
function objectionTo(path: string, specifier: string): string | undefined {
  const from = topFolder(path);
  const isTest = path.endsWith(".test.ts");
  if (specifier.startsWith("#") || specifier.startsWith(".")) {
    const target = specifier.startsWith("#") ? `src/${specifier.slice(1)}` : join(dirname(path), specifier);
    if (!target.startsWith("src/"))
      return isTest ? undefined : "src is what is shipped; lab, test, bench and scripts use it, never the reverse";
    const to = topFolder(target);
    // A test may hand a program as text to another process, where nothing is relative.
    if (specifier.startsWith("#") && to === from && !isTest) return "inside a top folder imports are relative";
    if (specifier.startsWith(".") && to !== from)
      return "across top folders imports are written #folder/file.ts, to be seen";
    if (!target.endsWith(".ts")) return "imports name the file, with .ts";
    if (to !== from && !FOLDERS[from]?.may.includes(to))
      return FOLDERS[from]?.because ?? `src/${from} has no rule here`;
    if (to === "gen" && from !== "gen" && !isUnder(path, GENERATED_OWNERS[target.slice("src/gen/".length)] ?? []))
      return "a generated file is imported by its owner only";
    if (path.includes("/server/") && target.includes("/client/") && !isTest) return "a server never needs a client";
    if (path.includes("/client/") && target.includes("/server/") && !isTest) return "a client never needs a server";
    return undefined;
  }
  const home = PACKAGE_HOMES[specifier];
  if (home && !isTest && !isUnder(path, home.homes)) return `${home.because} (${home.homes.join(", ")})`;
  return undefined;
}

test("imports in src point in the allowed direction", () => {
  const objections: string[] = [];
  const files = repositoryFiles("src/**/*.ts", "src/*.ts");
  for (const path of files)
    for (const { specifier, line } of importsOf(readSource(path))) {
      const reason = objectionTo(path, specifier);
      if (reason) objections.push(`${path}:${line} imports ${specifier}: ${reason}`);
    }
  assert.ok(files.length > 10, "the sources were found");
  assert.equal(objections.join("\n"), "");
});

test("every top folder of src has a rule", () => {
  const folders = new Set(repositoryFiles("src/*/**").map(topFolder));
  assert.deepEqual(
    [...folders].filter((folder) => !(folder in FOLDERS)),
    [],
  );
});

test("the rules have no circle", () => {
  const visit = (folder: string, trail: readonly string[]): void => {
    assert.ok(!trail.includes(folder), [...trail, folder].join(" -> "));
    for (const next of FOLDERS[folder]!.may) visit(next, [...trail, folder]);
  };
  for (const folder of Object.keys(FOLDERS)) visit(folder, []);
});

test("a forbidden import is noticed, whatever its form", () => {
  const forbidden: readonly (readonly [string, string])[] = [
    ["src/base/a.ts", `import { x } from "#wireguard/device.ts";`],
    ["src/base/a.ts", `import type { x } from "#agent/control.ts";`],
    ["src/server/a.ts", `export { x } from "#agent/control.ts";`],
    ["src/relay/server/a.ts", `const x = await import("#agent/control.ts");`],
    ["src/relay/server/a.ts", `import {\n  x,\n  y,\n} from "../client/relay-client.ts";`],
    ["src/ice/a.ts", `import "../relay/frames.ts";`],
    ["src/ice/a.ts", `import { x } from "#ice/stun-message.ts";`],
    ["src/ice/a.ts", `import { x } from "../../lab/nat.ts";`],
    ["src/agent/peer/a.ts", `import { x } from "#gen/daemon_pb.ts";`],
    ["src/agent/peer/a.ts", `import koffi from "koffi";`],
  ];
  for (const [path, source] of forbidden) {
    const [found] = importsOf(source);
    assert.ok(found, source);
    assert.ok(objectionTo(path, found.specifier), `${path}: ${source}`);
  }
});

test("allowed imports are allowed", () => {
  for (const [path, specifier] of [
    ["src/agent/peer/a.ts", "#ice/ice-agent.ts"],
    ["src/agent/peer/a.ts", "../connections/connection-manager.ts"],
    ["src/tun/linux.ts", "koffi"],
    ["src/tun/linux.ts", "#net/libc.ts"],
    ["src/signal/server/a.ts", "#gen/signal_pb.ts"],
    ["src/ice/a.test.ts", "../../lab/nat.ts"],
    ["src/cli/server.ts", "#server/server.ts"],
  ] as const)
    assert.equal(objectionTo(path, specifier), undefined, `${path} ${specifier}`);
});
