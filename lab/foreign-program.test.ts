import assert from "node:assert/strict";
import { existsSync } from "node:fs";
import { mkdtemp, readdir, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { after, before, describe, it } from "node:test";
import { buildForeign, type ForeignProgram } from "./foreign-program.ts";

/** `sh` builds it. */
const program = (name: string, script: string): ForeignProgram => ({
  name,
  version: "1",
  tool: "sh",
  toolFolders: ["/bin"],
  newestArguments: ["-c", "echo 2"],
  buildArguments: (version) => ["-c", `version=${version}; ${script}`],
  environment: () => ({}),
  binary: "bin/program",
});

const WORKS = "mkdir bin target && echo $version > bin/program";

describe("a foreign program", () => {
  const { XDG_CACHE_HOME: inherited } = process.env;
  let cache: string;

  before(async () => {
    cache = await mkdtemp(join(tmpdir(), "perch-foreign-"));
    process.env.XDG_CACHE_HOME = cache;
  });

  after(async () => {
    if (inherited === undefined) delete process.env.XDG_CACHE_HOME;
    else process.env.XDG_CACHE_HOME = inherited;
    await rm(cache, { recursive: true });
  });

  const kept = (): Promise<string[]> => readdir(join(cache, "perch"));

  it("is built once, two callers at a time do not disturb each other, and nothing but it stays", async () => {
    const binary = join(cache, "perch/once-1/bin/program");
    const built = { kind: "built", binary, version: "1" };
    const both = await Promise.all([buildForeign(program("once", WORKS)), buildForeign(program("once", WORKS))]);
    assert.deepEqual(both, [built, built]);
    assert.ok(existsSync(binary));
    assert.deepEqual(await buildForeign(program("once", "exit 1")), built);
    assert.deepEqual(await readdir(join(cache, "perch/once-1")), ["bin"]);
    assert.deepEqual(await kept(), ["once-1"]);
  });

  it("is built of its newest version when that is wanted", async () => {
    const newest = await buildForeign(program("once", WORKS), "newest");
    assert.deepEqual(newest, { kind: "built", binary: join(cache, "perch/once-2/bin/program"), version: "2" });
  });

  it("that cannot be built says why, and leaves nothing", async () => {
    const before = await kept();
    const why = async (one: ForeignProgram, timeoutS = 10): Promise<string | undefined> => {
      const built = await buildForeign(one, "pinned", timeoutS);
      return built.kind === "missing" ? built.reason : undefined;
    };
    assert.equal(
      await why({ ...program("x", WORKS), tool: "no-such-tool" }),
      "there is no no-such-tool on this machine to build x",
    );
    assert.equal(
      await why(program("x", "echo early >&2; echo no network >&2; exit 1")),
      "x does not build: no network",
    );
    assert.equal(await why(program("x", "sleep 60 & wait"), 1), "x does not build: it took too long");
    assert.deepEqual(await kept(), before);
  });
});
