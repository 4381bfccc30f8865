import { execFileSync } from "node:child_process";
import { chmodSync, chownSync, lstatSync, mkdirSync, rmSync, symlinkSync, utimesSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { Host } from "../../../lab/host.ts";

/**
 * Mounts the host's own /etc, and where asked its resolver file on itself, then becomes the program. In a sandbox the first process
 * may not be looked at, by which an agent tells that this /etc is not the machine's: what it would see there is put in its place.
 */
const ENTER = `set -e
mount -t tmpfs perch-test /proc/1
mkdir /proc/1/root /proc/1/ns
ln -s "net:[1]" /proc/1/ns/net
mount --bind / /proc/1/root
mount --bind "$0" /etc
if [ -e "$0.mounted" ]; then mount --bind /etc/resolv.conf /etc/resolv.conf; fi
exec "$@"`;

/**
 * What a machine's resolver file may be. `mounted`: cannot be replaced, as in a container. `dangling`: a link to a file that
 * is not there yet.
 */
export const RESOLVER_SHAPES = ["file", "private-file", "link", "mounted", "absent", "dangling"] as const;
export type ResolverShape = (typeof RESOLVER_SHAPES)[number];

/**
 * A machine of the lab with a whole /etc of its own, in a mount namespace: a file there can be replaced, be a link or be absent,
 * unlike the single file that `ip netns` mounts.
 */
export class OwnEtcHost extends Host {
  /** The host's /etc as it is seen from outside. */
  readonly etc: string;

  /** Copies the machine's /etc to `etc`, which must not exist. */
  constructor(host: Host, etc: string) {
    super(host.plan, host.namespace);
    this.etc = etc;
    execFileSync("cp", ["-a", "/etc", etc]);
  }

  get resolverFile(): string {
    return join(this.etc, "resolv.conf");
  }

  override commandLine(command: string, args: readonly string[] = []): string[] {
    return super.commandLine("sh", ["-c", ENTER, this.etc, command, ...args]);
  }

  /** Makes the resolver file anew, with a text of its own each time. While no program of ours runs. */
  giveResolver(shape: ResolverShape, text: string): void {
    const path = this.resolverFile;
    for (const each of [path, `${this.etc}.mounted`, join(this.etc, "managed")])
      rmSync(each, { recursive: true, force: true });
    if (shape === "absent") return;
    if (shape === "link" || shape === "dangling") {
      mkdirSync(join(this.etc, "managed"));
      symlinkSync("managed/resolv.conf", path);
      if (shape === "link") writeFileSync(join(this.etc, "managed/resolv.conf"), text);
      return;
    }
    writeFileSync(path, text);
    if (shape === "private-file") {
      chmodSync(path, 0o640);
      chownSync(path, 1, 2);
    }
    if (shape === "mounted") writeFileSync(`${this.etc}.mounted`, "");
    // Long ago, so that a file written anew cannot pass for this one.
    utimesSync(path, 1_700_000_000.25, 1_700_000_000.25);
  }

  /** Another program writes the file: by renaming one over it, or in place where it is mounted. */
  rewriteResolver(text: string): void {
    const path = this.resolverFile;
    if (lstatSync(`${this.etc}.mounted`, { throwIfNoEntry: false })) return writeFileSync(path, text);
    const draft = join(this.etc, "resolv.conf.dhcp");
    writeFileSync(draft, text);
    execFileSync("mv", [draft, path]);
  }
}
