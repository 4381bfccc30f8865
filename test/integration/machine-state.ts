import { readdirSync, readFileSync } from "node:fs";
import type { Host } from "../../lab/host.ts";

/** What a program could leave behind in the network of a machine: sorted lines, to be compared as a whole. */
export interface MachineState {
  readonly links: readonly string[];
  readonly addresses: readonly string[];
  readonly routes: readonly string[];
  readonly rules: readonly string[];
  /** Local addresses of UDP sockets that anybody can send to; those of name look-ups are connected to one server. */
  readonly udp: readonly string[];
  /** Command lines of the programs that run there. */
  readonly programs: readonly string[];
}

/** Looks at a host of the lab from inside its namespace. */
export async function readMachine(host: Host): Promise<MachineState> {
  const ip = async (...args: readonly string[]): Promise<string[]> => {
    const { stdout, stderr, code } = await host.exec("ip", args);
    if (code !== 0) throw new Error(`ip ${args.join(" ")}: ${stderr}`);
    return lines(stdout);
  };
  const { stdout: udp } = await host.exec("cat", ["/proc/net/udp", "/proc/net/udp6"]);
  const pids = lines((await host.exec("ip", ["netns", "pids", host.namespace])).stdout);
  return {
    // Without the counters and queue lengths that change by themselves.
    links: (await ip("-o", "link")).map((line) => line.replace(/ state \w+/, "")),
    addresses: (await ip("-o", "address")).map((line) => line.replace(/ (valid|preferred)_lft \w+/g, "")),
    routes: [
      ...(await ip("route", "show", "table", "all")),
      ...(await ip("-6", "route", "show", "table", "all")),
    ].sort(),
    rules: [...(await ip("rule")), ...(await ip("-6", "rule"))].sort(),
    udp: lines(udp)
      .flatMap((line) => /^\d+: (\S+) 0+:0000 /.exec(line)?.[1] ?? [])
      .sort(),
    programs: pids.flatMap((pid) => commandLine(pid) ?? []).sort(),
  };
}

/** Files below a directory, sorted; directories end in a slash. */
export function filesBelow(directory: string): string[] {
  return readdirSync(directory, { recursive: true, withFileTypes: true })
    .map((entry) => `${entry.parentPath.slice(directory.length + 1)}/${entry.name}${entry.isDirectory() ? "/" : ""}`)
    .map((path) => path.replace(/^\//, ""))
    .sort();
}

/** Undefined when the program has ended, or is the `ip` or `cat` that looks. */
function commandLine(pid: string): string | undefined {
  try {
    const text = readFileSync(`/proc/${pid}/cmdline`, "latin1").replaceAll("\0", " ").trim();
    return text === "" || /^(ip|cat) /.test(text) ? undefined : text;
  } catch {
    return undefined;
  }
}

function lines(text: string): string[] {
  return text
    .split("\n")
    .map((line) => line.trim())
    .filter((line) => line !== "")
    .sort();
}
