import assert from "node:assert/strict";
import { execFile, execFileSync, spawnSync } from "node:child_process";
import { createSocket } from "node:dgram";
import { once } from "node:events";
import { join } from "node:path";
import { describe, test } from "node:test";
import { connect } from "node:tls";
import { promisify } from "node:util";
import { TestAgent, testMeta } from "#management/test-server.ts";
import { missingPackages, SYSTEM_PYTHON, TEST_PACKAGES } from "../../scripts/system-packages.ts";
import { ServerProcess, temporaryDirectory } from "./server-process.ts";

const NEEDED = ["python3-grpcio", "python3-websockets"];
const missing = missingPackages(TEST_PACKAGES.filter(({ name }) => NEEDED.includes(name))).map(({ name }) => name);
const skip = missing.length > 0 ? `not installed: ${missing.join(" ")}` : false;

/** A self-signed certificate for 127.0.0.1 in PEM files; the one that was there is replaced. */
function makeCertificate(directory: string, name: string): { readonly cert: string; readonly key: string } {
  const [cert, key] = [join(directory, "cert.pem"), join(directory, "key.pem")];
  const curve = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1"];
  const subject = ["-subj", `/CN=${name}`, "-addext", "subjectAltName=IP:127.0.0.1"];
  const args = ["req", "-x509", "-nodes", "-days", "2", ...curve, "-keyout", key, "-out", cert, ...subject];
  execFileSync("openssl", args, { stdio: "ignore" });
  return { cert, key };
}

async function certificateName(origin: string): Promise<string | string[] | undefined> {
  const [host = "", port] = origin.split(":");
  const socket = connect({ host, port: Number(port), rejectUnauthorized: false, ALPNProtocols: ["h2"] });
  await once(socket, "secureConnect");
  const name = socket.getPeerCertificate().subject.CN;
  socket.destroy();
  return name;
}

async function askForeignClient(...args: readonly string[]): Promise<Record<string, unknown>> {
  const script = join(import.meta.dirname, "server-foreign-client.py");
  const { stdout } = await promisify(execFile)(SYSTEM_PYTHON, [script, ...args], { timeout: 15_000 });
  return JSON.parse(stdout) as Record<string, unknown>;
}

const EXPECTED = {
  healthy: true,
  unknownMethod: "UNIMPLEMENTED",
  unknownService: "UNIMPLEMENTED",
  badLogin: "INVALID_ARGUMENT",
  registered: "1",
  delivered: true,
  relay: "dropped",
};

describe("grpcio and websockets, on the server's one port", { skip }, () => {
  test("reach management, signal and relay without TLS", async () => {
    using directory = temporaryDirectory();
    await using server = await ServerProcess.start(directory.path);
    const { serverKey, ...rest } = await askForeignClient(server.origin);
    assert.match(String(serverKey), /^[A-Za-z0-9+/]{43}=$/);
    assert.deepEqual(rest, EXPECTED);
  });

  test("reach them with TLS, while an agent without TLS is served on the same port", async () => {
    using directory = temporaryDirectory();
    const { cert, key } = makeCertificate(directory.path, "first");
    const files = ["--tls-cert", cert, "--tls-key", key];
    await using server = await ServerProcess.start(join(directory.path, "data"), ...files);
    assert.match(server.url, /^https:/);
    const { serverKey, ...rest } = await askForeignClient(server.origin, cert);
    assert.match(String(serverKey), /^[A-Za-z0-9+/]{43}=$/);
    assert.deepEqual(rest, EXPECTED);
    await using agent = new TestAgent(`http://${server.origin}`);
    const login = await agent.client.login({ setupKey: server.setupKey, meta: testMeta("a") });
    assert.equal(login.netbirdConfig?.signal?.uri, server.origin);
    assert.deepEqual(login.netbirdConfig?.relay?.urls, [`rels://${server.origin}`]);
  });
});

test("SIGHUP reads the certificate again, and keeps the old one when the new one is unusable", async () => {
  using directory = temporaryDirectory();
  const { cert, key } = makeCertificate(directory.path, "first");
  const files = ["--tls-cert", cert, "--tls-key", key];
  await using server = await ServerProcess.start(join(directory.path, "data"), ...files);
  assert.equal(await certificateName(server.origin), "first");
  makeCertificate(directory.path, "second");
  const reload = async (line: RegExp): Promise<void> => {
    server.child.kill("SIGHUP");
    for (let i = 0; i < 200 && !line.test(server.stderr); i++) await new Promise((resolve) => setTimeout(resolve, 10));
    assert.match(server.stderr, line);
  };
  await reload(/certificate read again/);
  assert.equal(await certificateName(server.origin), "second");
  spawnSync("truncate", ["-s", "0", key]);
  await reload(/the new certificate is not used/);
  assert.equal(await certificateName(server.origin), "second");
});

test("the public URL is what agents are told, and STUN answers on its own port", async () => {
  using directory = temporaryDirectory();
  const told = ["--public-url", "https://perch.example.org"];
  await using server = await ServerProcess.start(directory.path, ...told);
  assert.equal(server.url, "https://perch.example.org:443");
  const port = /listen=127\.0\.0\.1:(\d+)/.exec(server.stderr)?.[1];
  await using agent = new TestAgent(`http://127.0.0.1:${port}`);
  const login = await agent.client.login({ setupKey: server.setupKey, meta: testMeta("a") });
  assert.equal(login.netbirdConfig?.signal?.uri, "perch.example.org:443");
  assert.deepEqual(login.netbirdConfig?.relay?.urls, ["rels://perch.example.org:443"]);
  agent.sync(testMeta("a"));
  const first = await agent.until((update) => update.netbirdConfig !== undefined);
  const stunPort = /^stun:perch\.example\.org:(\d+)$/.exec(first.netbirdConfig?.stuns[0]?.uri ?? "")?.[1];
  const socket = createSocket("udp4");
  // A Binding request: type, length, magic cookie, 12 bytes of transaction.
  const request = Buffer.from(`000100002112a442${"ab".repeat(12)}`, "hex");
  socket.send(request, Number(stunPort), "127.0.0.1");
  const [answer] = (await once(socket, "message")) as [Buffer];
  socket.close();
  assert.equal(answer.toString("hex", 0, 2), "0101");
  assert.deepEqual(answer.subarray(4, 20), request.subarray(4, 20));
});
