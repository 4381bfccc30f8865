import { existsSync, lstatSync, readdirSync, readFileSync, readlinkSync } from "node:fs";
import { processesIn } from "../../../lab/namespace.ts";
import { filesBelow } from "../machine-state.ts";
import type { OwnEtcHost } from "./own-etc-host.ts";

/** All that Perch could change on a machine, to be compared as a whole. */
export interface HostState {
  /** What the kernel answers to each question about its network. */
  readonly network: Readonly<Record<string, unknown>>;
  /** Settings below /proc/sys/net. */
  readonly settings: Readonly<Record<string, string>>;
  readonly resolver: ResolverState;
  /** Names in /etc. */
  readonly etc: readonly string[];
}

export type ResolverState =
  | { readonly kind: "absent" }
  | { readonly kind: "link"; readonly target: string; readonly owner: string }
  | {
      readonly kind: "file";
      readonly text: string;
      readonly mode: string;
      readonly owner: string;
      readonly modifiedAt: number;
    };

const QUESTIONS = [
  "ip -j link",
  "ip -j addr",
  "ip -j maddr",
  "ip -j -4 route show table all",
  "ip -j -6 route show table all",
  "ip -j -4 rule",
  "ip -j -6 rule",
  "nft -j list ruleset",
  // Who listens, or may be sent to; connections that the kernel still ends for a dead process are its own.
  "cat /proc/net/udp /proc/net/udp6 /proc/net/tcp /proc/net/tcp6 | awk '$4 ~ /^(07|0A)$/ { print $2, $3, $4 }' | sort",
];
/** Values that change by themselves. */
const RESTLESS = /nf_conntrack_count|tcp_fastopen_key/;
const SEPARATOR = "=== next ===";

/** Looks at the machine from inside its namespaces. */
export async function readHostState(host: OwnEtcHost): Promise<HostState> {
  const script = [...QUESTIONS, "cd /proc/sys/net && grep -rs . ."].join(`; echo '${SEPARATOR}'; `);
  const { stdout } = await host.exec("sh", ["-c", script]);
  const answers = stdout.split(`${SEPARATOR}\n`);
  const settings = answers.pop()!;
  return {
    network: Object.fromEntries(QUESTIONS.map((question, i) => [question, answerOf(answers[i]!)])),
    settings: Object.fromEntries(
      settings
        .split("\n")
        .filter((line) => line !== "" && !RESTLESS.test(line))
        .map((line) => [line.slice(0, line.indexOf(":")), line.slice(line.indexOf(":") + 1)]),
    ),
    resolver: readResolver(host.resolverFile),
    etc: readdirSync(host.etc).sort(),
  };
}

export function readResolver(path: string): ResolverState {
  const found = lstatSync(path, { throwIfNoEntry: false });
  if (!found) return { kind: "absent" };
  const owner = `${found.uid}:${found.gid}`;
  if (found.isSymbolicLink()) return { kind: "link", target: readlinkSync(path), owner };
  return {
    kind: "file",
    text: readFileSync(path, "utf8"),
    mode: (found.mode & 0o7777).toString(8),
    owner,
    modifiedAt: Math.round(found.mtimeMs),
  };
}

/** Command lines of what runs on the host. */
export function programsOn(host: OwnEtcHost): string[] {
  return processesIn([host.namespace]).flatMap((pid) => {
    try {
      return readFileSync(`/proc/${pid}/cmdline`, "latin1").replaceAll("\0", " ").trim() || [];
    } catch {
      return [];
    }
  });
}

/** Files in the directory of an agent that are none of those it keeps. */
export function strayFiles(directory: string, kept: ReadonlySet<string>): string[] {
  return existsSync(directory) ? filesBelow(directory).filter((path) => !kept.has(path)) : [];
}

/** Of `ip -j` without what the kernel counts on by itself; an empty list and no answer are the same. */
function answerOf(text: string): unknown {
  if (!/^[[{]/.test(text)) return text.split("\n").filter((line) => line !== "");
  return JSON.parse(text, (key, value: unknown) => (key === "metainfo" ? undefined : value)) as unknown;
}
