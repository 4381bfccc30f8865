import { execFile } from "node:child_process";
import { existsSync } from "node:fs";
import { mkdtemp, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { delimiter, join } from "node:path";
import { promisify } from "node:util";

const MODULE = "golang.zx2c4.com/wireguard@latest";
const BUILD_TIMEOUT_MS = 240_000;

/** A wireguard-go built for this run; the directory goes with it. */
export interface BuiltWireGuardGo extends AsyncDisposable {
  readonly binary: string;
  /** As it tells it, such as `v0.0.20250522`. */
  readonly version: string;
}

/** Builds the newest wireguard-go where the machine has Go; else says why not. */
export async function buildWireGuardGo(): Promise<BuiltWireGuardGo | string> {
  const places = [...(process.env.PATH ?? "").split(delimiter), "/usr/local/go/bin"];
  const go = places.map((place) => join(place, "go")).find((path) => existsSync(path));
  if (go === undefined) return "there is no Go on this machine";
  const directory = await mkdtemp(join(tmpdir(), "perch-bench-go-"));
  const remove = (): Promise<void> => rm(directory, { recursive: true, force: true });
  const run = promisify(execFile);
  try {
    const env = { ...process.env, GOBIN: directory, GOTOOLCHAIN: "local" };
    await run(go, ["install", MODULE], { env, cwd: directory, timeout: BUILD_TIMEOUT_MS });
    const binary = join(directory, "wireguard");
    const { stdout } = await run(binary, ["--version"]);
    return { binary, version: /v[\d.]+/.exec(stdout)?.[0] ?? "newest", [Symbol.asyncDispose]: remove };
  } catch (error) {
    await remove();
    const { stderr = "" } = error as { stderr?: string };
    return `it does not build: ${stderr.trim().split("\n").at(-1)}`;
  }
}
