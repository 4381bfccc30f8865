import assert from "node:assert/strict";
import { spawnSync } from "node:child_process";
import { once } from "node:events";
import { mkdtempDisposable } from "node:fs/promises";
import { createServer, type Socket } from "node:net";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { describe, it } from "node:test";
import { needSignOfLife } from "./uapi-connection.ts";

/** Serves a control socket while `work` runs. */
async function served(answer: (socket: Socket) => void, work: (path: string) => Promise<void>): Promise<void> {
  await using folder = await mkdtempDisposable(join(tmpdir(), "perch-uapi-"));
  const path = join(folder.path, "x.sock");
  const sockets = new Set<Socket>();
  const server = createServer((socket) => {
    sockets.add(socket);
    socket.on("error", () => {});
    answer(socket);
  });
  server.listen(path);
  await once(server, "listening");
  try {
    await work(path);
  } finally {
    for (const socket of sockets) socket.destroy();
    await new Promise((done) => server.close(done));
  }
}

describe("a sign of life of a device", { timeout: 10_000 }, () => {
  const { signal } = new AbortController();

  for (const reply of ["errno=0\n\n", "errno=22\n\n"])
    it(`is any answer: ${JSON.stringify(reply)}`, () =>
      served(
        (socket) => socket.on("data", () => socket.write(reply)),
        (path) => needSignOfLife(path, signal),
      ));

  it("is awaited until the caller has no more patience", () =>
    served(
      () => {},
      async (path) => {
        const patience = new AbortController();
        const asking = assert.rejects(needSignOfLife(path, patience.signal), { code: "control-failed" });
        setTimeout(() => patience.abort(), 100);
        await asking;
        await assert.rejects(needSignOfLife(path, patience.signal), { code: "control-failed" });
      },
    ));

  it("is not there where nobody listens", () =>
    assert.rejects(needSignOfLife(join(tmpdir(), "perch-nobody.sock"), signal), { code: "control-failed" }));

  it("is not denied for want of descriptors of our own", { skip: process.platform !== "linux" }, () => {
    const module = JSON.stringify(import.meta.resolve("./uapi-connection.ts"));
    const program = `(async () => {
      const { needSignOfLife } = await import(${module});
      const { openSync } = require("node:fs");
      try { for (;;) openSync("/dev/null"); } catch {}
      await needSignOfLife("/nonexistent/x.sock", new AbortController().signal);
      console.log("fine");
    })()`;
    const limited = `ulimit -n 100; exec "$0" "$@"`;
    const { stdout, stderr } = spawnSync("sh", ["-c", limited, process.execPath, "-e", program], { timeout: 8000 });
    assert.equal(`${stdout}`, "fine\n", `${stderr}`);
  });
});
