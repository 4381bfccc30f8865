import { execFile } from "node:child_process";
import { existsSync } from "node:fs";
import { mkdir, mkdtemp, rename, rm } from "node:fs/promises";
import { homedir } from "node:os";
import { delimiter, join } from "node:path";
import { promisify } from "node:util";
import { messageOf } from "#base/errors.ts";

const run = promisify(execFile);

/** A program that is not ours, built from its published source: a judge for tests, a rival for benches. */
export interface ForeignProgram {
  readonly name: string;
  /** What tests use; it does not change without us. */
  readonly version: string;
  /** What builds it, and where that is found besides PATH. */
  readonly tool: string;
  readonly toolFolders: readonly string[];
  /** Prints the newest version. Absent: the registry is not asked. */
  readonly newestArguments?: readonly string[];
  /** Leaves `binary` in `directory`. */
  buildArguments(version: string, directory: string): readonly string[];
  environment(directory: string): NodeJS.ProcessEnv;
  /** Below `directory`. */
  readonly binary: string;
}

const GO_MODULE = "golang.zx2c4.com/wireguard";

/** Its author's own, in Go. */
export const WIREGUARD_GO: ForeignProgram = {
  name: "wireguard-go",
  // The newest in November 2026.
  version: "v0.0.0-20260522210424-ecfc5a8d5446",
  tool: "go",
  toolFolders: ["/usr/local/go/bin"],
  newestArguments: ["list", "-m", "-f", "{{.Version}}", `${GO_MODULE}@latest`],
  buildArguments: (version) => ["install", `${GO_MODULE}@${version}`],
  environment: (directory) => ({ GOBIN: join(directory, "bin"), GOTOOLCHAIN: "local", GOFLAGS: "-buildvcs=false" }),
  binary: "bin/wireguard",
};

/** Cloudflare's, in Rust. */
export const BORINGTUN: ForeignProgram = {
  name: "boringtun",
  // The newest in November 2026.
  version: "0.7.1",
  tool: "cargo",
  toolFolders: [join(homedir(), ".cargo/bin")],
  buildArguments: (version, directory) => [
    "install",
    "boringtun-cli",
    "--version",
    version,
    "--locked",
    "--debug",
    "--root",
    directory,
  ],
  // Unoptimized: the cryptography is assembly all the same, and its own assertions are on.
  environment: (directory) => ({ CARGO_TARGET_DIR: join(directory, "target"), CARGO_PROFILE_DEV_DEBUG: "0" }),
  binary: "bin/boringtun-cli",
};

export type Built =
  | { readonly kind: "built"; readonly binary: string; readonly version: string }
  /** In words for a person. */
  | { readonly kind: "missing"; readonly reason: string };

/** A test file has two minutes for all it does. */
const BUILD_TIMEOUT_S = 100;
const ASK_TIMEOUT_S = 30;

/**
 * The program's binary, built once for each version and then found in `$XDG_CACHE_HOME/perch` (default `~/.cache/perch`);
 * `newest`: of the version that its registry has now, for benches.
 * Never throws: without the tool, without its registry's answer, or after 100 s it says why there is none.
 */
export async function buildForeign(
  program: ForeignProgram,
  wanted: "pinned" | "newest" = "pinned",
  buildTimeoutS = BUILD_TIMEOUT_S,
): Promise<Built> {
  const cache = join(process.env.XDG_CACHE_HOME ?? join(homedir(), ".cache"), "perch");
  const binaryOf = (version: string): string => join(cache, `${program.name}-${version}`, program.binary);
  const pinned = binaryOf(program.version);
  if (wanted === "pinned" && existsSync(pinned)) return { kind: "built", binary: pinned, version: program.version };
  const folders = [...(process.env.PATH ?? "").split(delimiter), ...program.toolFolders];
  const tool = folders.map((folder) => join(folder, program.tool)).find((path) => existsSync(path));
  if (tool === undefined)
    return { kind: "missing", reason: `there is no ${program.tool} on this machine to build ${program.name}` };
  let directory: string | undefined;
  try {
    await mkdir(cache, { recursive: true, mode: 0o700 });
    directory = await mkdtemp(join(cache, `building-${program.name}-`));
    // The tool starts compilers, which have to end with it: `timeout` ends all of them.
    const env = { ...process.env, PATH: folders.join(delimiter), ...program.environment(directory) };
    const bounded = async (seconds: number, args: readonly string[]): Promise<string> =>
      (await run("timeout", ["-k", "5", `${seconds}`, tool, ...args], { env, cwd: directory, maxBuffer: 64 << 20 }))
        .stdout;
    const asked = wanted === "newest" ? program.newestArguments : undefined;
    const version = asked ? (await bounded(ASK_TIMEOUT_S, asked)).trim() : program.version;
    const binary = binaryOf(version);
    if (!existsSync(binary)) {
      await bounded(buildTimeoutS, program.buildArguments(version, directory));
      await rm(join(directory, "target"), { recursive: true, force: true });
      // Whole or not at all. Another process may have been faster: its own is as good.
      await rename(directory, join(cache, `${program.name}-${version}`)).catch((error: unknown) => {
        if (!existsSync(binary)) throw error;
      });
    }
    return { kind: "built", binary, version };
  } catch (error) {
    return { kind: "missing", reason: `${program.name} does not build: ${whyItFailed(error)}` };
  } finally {
    if (directory !== undefined) await rm(directory, { recursive: true, force: true });
  }
}

function whyItFailed(error: unknown): string {
  const { stderr = "", code } = error as { stderr?: string; code?: unknown };
  if (code === 124 || code === 137) return "it took too long";
  return stderr.trim().split("\n").at(-1) || messageOf(error);
}
