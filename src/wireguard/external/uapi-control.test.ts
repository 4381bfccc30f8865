import assert from "node:assert/strict";
import { once } from "node:events";
import { mkdtempSync, rmSync } from "node:fs";
import { createServer, type Server, type Socket } from "node:net";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { describe, it } from "node:test";
import { parsePrefix } from "#base/ip.ts";
import { PrivateKey, PublicKey } from "#base/keys.ts";
import { UapiControl, uapiPath } from "./uapi-control.ts";

const KEY = PublicKey.fromBytes(new Uint8Array(32).fill(0xab));
const PREFIX = parsePrefix("10.0.0.1/32");

/** A device that answers as it is told to. */
class ScriptedDevice implements AsyncDisposable {
  readonly path: string;
  readonly requests: string[] = [];
  connections = 0;
  readonly #folder = mkdtempSync(join(tmpdir(), "perch-uapi-"));
  readonly #server: Server;

  private constructor(answer: (request: string, socket: Socket) => void) {
    this.path = uapiPath("x", this.#folder);
    this.#server = createServer((socket) => {
      this.connections++;
      let rest = "";
      socket.on("error", () => {});
      socket.on("data", (piece) => {
        rest += piece.toString("latin1");
        const end = rest.indexOf("\n\n");
        if (end < 0) return;
        const request = rest.slice(0, end);
        rest = rest.slice(end + 2);
        this.requests.push(request);
        answer(request, socket);
      });
    });
  }

  static async start(answer: (request: string, socket: Socket) => void): Promise<ScriptedDevice> {
    const device = new ScriptedDevice(answer);
    device.#server.listen(device.path);
    await once(device.#server, "listening");
    return device;
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await new Promise((resolve) => this.#server.close(resolve));
    rmSync(this.#folder, { recursive: true });
  }
}

describe("the control of a device by its socket", { timeout: 10_000 }, () => {
  it("uses one connection for a call, and one for what follows a refusal", async () => {
    const bad = PublicKey.fromBytes(new Uint8Array(32).fill(1));
    await using device = await ScriptedDevice.start((request, socket) =>
      request.includes("01".repeat(32)) ? socket.end("errno=-22\n\n") : socket.write("errno=0\n\n"),
    );
    await using control = new UapiControl(device.path);
    await control.change({ privateKey: PrivateKey.generate(), listenPort: 7 }, [{ key: KEY }]);
    assert.equal(device.connections, 1);
    assert.equal(device.requests.length, 3);
    await assert.rejects(control.change({}, [{ key: KEY }, { key: bad }, { key: KEY, keepalive: 0 }]), {
      code: "control-failed",
      message: `the device refused of its peers: ${PublicKey.short(bad)} (EINVAL)`,
    });
    assert.deepEqual(
      device.requests
        .slice(3)
        .map((request) => request.split("\n").filter((line) => line.startsWith("public_key")).length),
      [3, 1, 2, 1, 1],
    );
  });

  it("names the key or the port that was refused, and changes no peer then", async () => {
    await using device = await ScriptedDevice.start((request, socket) =>
      socket.end(request.includes("listen_port") ? "errno=-98\n\n" : "errno=0\n\n"),
    );
    await using control = new UapiControl(device.path);
    await assert.rejects(control.change({ listenPort: 51820 }, [{ key: KEY }]), {
      code: "control-failed",
      message: "the device refused the listen port 51820: EADDRINUSE",
    });
    assert.equal(device.requests.length, 1);
  });

  it("sends a peer with thousands of prefixes, and many peers in several requests, one after the other", async () => {
    await using device = await ScriptedDevice.start((_, socket) => socket.write("errno=0\n\n"));
    await using control = new UapiControl(device.path);
    const many = Array.from({ length: 1000 }, () => ({ key: KEY, allowedIps: [PREFIX] }));
    await control.change({}, [{ key: KEY, allowedIps: Array(20_000).fill(PREFIX) }, ...many]);
    assert.equal(device.requests[0]!.match(/allowed_ip=/g)!.length, 20_000);
    const rest = device.requests.slice(1);
    assert.ok(rest.length > 1 && rest.length < 10, `${rest.length}`);
    assert.equal(rest.join("").match(/public_key=/g)!.length, 1000);
  });

  it("says what it is when a device dies in the middle, and can be tried again", async () => {
    let dies = true;
    await using device = await ScriptedDevice.start((_, socket) => {
      if (!dies) return socket.write("listen_port=5\nerrno=0\n\n");
      socket.write("listen_port=5\n");
      return socket.end();
    });
    await using control = new UapiControl(device.path);
    await assert.rejects(control.read(), { code: "control-failed", retryable: true, message: /closed the connection/ });
    dies = false;
    assert.equal((await control.read()).listenPort, 5);
  });

  it("does not wait for a device that hangs", async () => {
    await using device = await ScriptedDevice.start(() => {});
    await using control = new UapiControl(device.path, 50);
    await assert.rejects(control.read(), { code: "control-failed", retryable: true, message: /no answer for 0.05 s/ });
  });

  it("gives up at once when it is closed, what waits as well", async () => {
    await using device = await ScriptedDevice.start(() => {});
    const control = new UapiControl(device.path);
    const calls = [control.read(), control.change({}, [{ key: KEY }])];
    while (device.requests.length === 0) await new Promise((resolve) => setTimeout(resolve, 5));
    await control[Symbol.asyncDispose]();
    for (const result of await Promise.allSettled(calls))
      assert.equal(result.status === "rejected" && result.reason.code, "closed");
    assert.equal(device.requests.length, 1);
  });

  it("refuses an answer that is none", async () => {
    await using device = await ScriptedDevice.start((_, socket) => socket.write("rx_bytes=1\nerrno=what\n\n"));
    await using control = new UapiControl(device.path);
    await assert.rejects(control.read(), { code: "control-failed", message: /a number that is none/ });
  });
});
