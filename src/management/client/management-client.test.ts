import assert from "node:assert/strict";
import { execFileSync } from "node:child_process";
import { readFileSync } from "node:fs";
import { createServer as createHttpServer } from "node:http";
import {
  createSecureServer,
  createServer,
  type Http2SecureServer,
  type Http2Server,
  type ServerHttp2Session,
} from "node:http2";
import { type AddressInfo, connect, createServer as createTcpServer, type Server, type Socket } from "node:net";
import { test } from "node:test";
import { create } from "@bufbuild/protobuf";
import { Code, ConnectError, type ServiceImpl } from "@connectrpc/connect";
import { connectNodeAdapter } from "@connectrpc/connect-node";
import { PrivateKey } from "#base/keys.ts";
import { createLogger, type LogFields, silentLogger } from "#base/log.ts";
import { systemClock } from "#base/time.ts";
import {
  type EncryptedMessage,
  LoginRequestSchema,
  LoginResponseSchema,
  ManagementService,
  SyncRequestSchema,
  type SyncResponse,
  SyncResponseSchema,
} from "#gen/management_pb.ts";
import { ManagementError } from "../errors.ts";
import { openMessage, sealMessage, senderOf } from "../protocol/envelope.ts";
import { temporaryDirectory, testMeta } from "../test-server.ts";
import { ManagementClient, type ManagementClientOptions } from "./management-client.ts";
import { PING_INTERVAL, PING_TIMEOUT, parseManagementUrl } from "./transport.ts";

type Implementation = Partial<ServiceImpl<typeof ManagementService>>;

/** A server that does what a test says; it counts the calls. */
class FakeServer {
  readonly key = PrivateKey.generate();
  readonly calls: string[] = [];
  readonly #http: Http2Server | Http2SecureServer;
  readonly #sessions = new Set<ServerHttp2Session>();

  constructor(implementation: (server: FakeServer) => Implementation, tls?: { key: string; cert: string }) {
    const handler = connectNodeAdapter({
      routes: (router) =>
        router.service(ManagementService, {
          getServerKey: async () => ({ key: this.key.publicKey }),
          ...implementation(this),
        }),
      interceptors: [
        (next) => async (request) => {
          this.calls.push(request.method.name);
          return next(request);
        },
      ],
    });
    this.#http = tls ? createSecureServer(tls, handler) : createServer(handler);
    this.#http.on("session", (session: ServerHttp2Session) => {
      this.#sessions.add(session);
      session.on("close", () => this.#sessions.delete(session));
    });
  }

  async listen(port = 0): Promise<number> {
    await new Promise<void>((resolve) => this.#http.listen(port, "127.0.0.1", resolve));
    return (this.#http.address() as AddressInfo).port;
  }

  seal(envelope: EncryptedMessage, response: SyncResponse): EncryptedMessage {
    return sealMessage(SyncResponseSchema, response, senderOf(envelope), this.key);
  }

  async [Symbol.asyncDispose](): Promise<void> {
    for (const session of this.#sessions) session.destroy();
    await new Promise<void>((resolve) => this.#http.close(() => resolve()));
  }
}

function newClient(url: string, more: Partial<ManagementClientOptions> = {}): ManagementClient {
  return new ManagementClient({ clock: systemClock, log: silentLogger }, { url, key: PrivateKey.generate(), ...more });
}

const hasCode = (code: string, pattern = /./) => {
  return (error: unknown) => error instanceof ManagementError && error.code === code && pattern.test(error.message);
};

const meta = () => testMeta("a");
const until = async (done: () => boolean): Promise<void> => {
  for (let i = 0; i < 500 && !done(); i++) await new Promise((resolve) => setTimeout(resolve, 10));
  assert.ok(done());
};
/** Pends until the client goes away. */
const hang = (signal: AbortSignal): Promise<void> =>
  new Promise((resolve) => signal.addEventListener("abort", () => resolve(), { once: true }));

test("1.4: the connection is pinged every 30 s with 10 s for the answer, so a dead server is known within 40 s", () => {
  assert.deepEqual([PING_INTERVAL, PING_TIMEOUT], [30_000, 10_000]);
});

test("1.2: only http and https URLs are taken, the port defaults, path and query are ignored", () => {
  assert.equal(parseManagementUrl("https://api.example/some/path?x=1"), "https://api.example");
  assert.equal(parseManagementUrl("http://[::1]:33073"), "http://[::1]:33073");
  for (const bad of ["", "api.example:443", "ftp://x", "rels://x:1", "http://", "https://:443"])
    assert.throws(() => parseManagementUrl(bad), hasCode("url-malformed"), bad);
});

test("3.1: what a login request holds when a stock server opens it", async () => {
  const seen: unknown[] = [];
  await using server = new FakeServer((own) => ({
    login: async (envelope) => {
      const sender = senderOf(envelope);
      const request = openMessage(LoginRequestSchema, envelope, sender, own.key);
      const text = (bytes: Uint8Array | undefined) => Buffer.from(bytes ?? []).toString();
      seen.push(request.setupKey, text(request.peerKeys?.wgPubKey) === sender, text(request.peerKeys?.sshPubKey));
      return sealMessage(LoginResponseSchema, create(LoginResponseSchema), sender, own.key);
    },
  }));
  await using client = newClient(`http://127.0.0.1:${await server.listen()}`, { sshPublicKey: "ssh-ed25519 AAAA" });
  await client.login({ meta: meta(), setupKey: "A2C8E62B-38F5-4553-B31E-DD66C696CEBB" });
  assert.deepEqual(seen, ["a2c8e62b-38f5-4553-b31e-dd66c696cebb", true, "ssh-ed25519 AAAA"]);
  assert.deepEqual(server.calls, ["GetServerKey", "Login"]);
});

const REFUSALS: readonly (readonly [code: Code, message: string, withKey: boolean, expected: string])[] = [
  [Code.PermissionDenied, "no", false, "permission-denied"],
  [Code.PermissionDenied, "no", true, "setup-key-invalid"],
  [Code.NotFound, "no such key", true, "setup-key-invalid"],
  [Code.FailedPrecondition, "used up", true, "setup-key-invalid"],
  [Code.PermissionDenied, "rpc: peer login has expired, please log in", false, "login-expired"],
  [Code.PermissionDenied, "rpc: peer login has expired, please log in", true, "login-expired"],
  [Code.Internal, "oops", false, "server-error"],
  [Code.Unimplemented, "", false, "unsupported"],
  [Code.Unavailable, "later", false, "unreachable"],
];

for (const [code, message, withKey, expected] of REFUSALS) {
  test(`1.6: ${Code[code]} "${message}" ${withKey ? "with" : "without"} a setup key is ${expected}`, async () => {
    await using server = new FakeServer(() => ({
      login: async () => {
        throw new ConnectError(message, code);
      },
    }));
    await using client = newClient(`http://127.0.0.1:${await server.listen()}`);
    const setupKey = withKey ? { setupKey: crypto.randomUUID() } : {};
    await assert.rejects(client.login({ meta: meta(), ...setupKey }), hasCode(expected));
  });
}

test("an answer sealed by somebody else is a protocol error", async () => {
  await using server = new FakeServer(() => ({
    login: async (envelope) =>
      sealMessage(LoginResponseSchema, create(LoginResponseSchema), senderOf(envelope), PrivateKey.generate()),
  }));
  await using client = newClient(`http://127.0.0.1:${await server.listen()}`);
  await assert.rejects(client.login({ meta: meta() }), hasCode("protocol"));
});

test("a web server, a proxy that says 403, and TLS where none is spoken are all called unreachable", async () => {
  const web = createHttpServer((_, response) => response.writeHead(403).end("no"));
  await new Promise<void>((resolve) => web.listen(0, "127.0.0.1", resolve));
  const url = `127.0.0.1:${(web.address() as AddressInfo).port}`;
  await using plain = newClient(`http://${url}`);
  await assert.rejects(plain.login({ meta: meta() }), hasCode("unreachable", /http:\/\/127/));
  await using tls = newClient(`https://${url}`);
  await assert.rejects(tls.login({ meta: meta() }), hasCode("unreachable", /http:\/\/ where https:\/\/ is meant/));
  await new Promise((resolve) => web.close(resolve));
  const proxy = createServer((_, response) => void response.writeHead(403).end("no"));
  await new Promise<void>((resolve) => proxy.listen(0, "127.0.0.1", resolve));
  await using behind = newClient(`http://127.0.0.1:${(proxy.address() as AddressInfo).port}`);
  await assert.rejects(behind.login({ meta: meta() }), hasCode("unreachable", /403/));
  await behind.close();
  await new Promise((resolve) => proxy.close(resolve));
});

test("a stream that is reset without an answer is called unreachable, and not an answer", async () => {
  const resetting = createServer();
  resetting.on("stream", (stream) => stream.close(8));
  await new Promise<void>((resolve) => resetting.listen(0, "127.0.0.1", resolve));
  await using client = newClient(`http://127.0.0.1:${(resetting.address() as AddressInfo).port}`);
  await assert.rejects(
    client.login({ meta: meta() }),
    hasCode("unreachable", /: GetServerKey ended without an answer \(http\/2 stream closed/),
  );
  await client.close();
  await new Promise((resolve) => resetting.close(resolve));
});

test("sync reads the server key before each opening, comes back after an end in order and after garbage", async () => {
  let openings = 0;
  const lines: LogFields[] = [];
  await using server = new FakeServer((own) => ({
    async *sync(envelope, context) {
      openMessage(SyncRequestSchema, envelope, senderOf(envelope), own.key);
      const good = own.seal(envelope, create(SyncResponseSchema, { NetworkMap: { Serial: BigInt(++openings) } }));
      yield good;
      if (openings === 2) yield { ...good, body: good.body.slice(1) };
      if (openings >= 2 && openings < 4) await hang(context.signal);
      if (openings === 4) await hang(context.signal);
    },
  }));
  const log = createLogger((_, __, fields) => lines.push(fields));
  await using client = new ManagementClient(
    { clock: systemClock, log },
    { url: `http://127.0.0.1:${await server.listen()}`, key: PrivateKey.generate() },
  );
  const serials: bigint[] = [];
  const states: string[] = [];
  client.events.on("state", ({ connected, error }) => states.push(error ? error.code : String(connected)));
  const stop = new AbortController();
  const syncing = client.sync(
    meta,
    (update) => {
      serials.push(update.NetworkMap!.Serial);
      if (update.NetworkMap!.Serial === 3n) throw new Error("the engine stumbles");
    },
    stop.signal,
  );
  await until(() => serials.length === 3);
  assert.equal(client.state.connected, true);
  stop.abort();
  await syncing;
  assert.deepEqual(serials, [1n, 2n, 3n]);
  assert.deepEqual(server.calls, ["GetServerKey", "Sync", "GetServerKey", "Sync", "GetServerKey", "Sync"]);
  assert.deepEqual(states, ["true", "false", "true", "protocol", "true", "false"]);
  const pauses = lines.map((fields) => fields.retryInMs).filter((pause) => pause !== undefined);
  assert.ok(Number(pauses[0]) < 1000, `the first pause was ${pauses[0]} ms`);
});

test("1.6: sync ends for PERMISSION_DENIED alone", async () => {
  const codes = [Code.Unavailable, Code.Internal, Code.PermissionDenied];
  await using server = new FakeServer(() => ({
    // biome-ignore lint/correctness/useYield: it refuses before it has anything to say
    async *sync() {
      throw new ConnectError("no", codes.shift() ?? Code.Internal);
    },
  }));
  await using client = newClient(`http://127.0.0.1:${await server.listen()}`);
  const syncing = client.sync(meta, () => {}, new AbortController().signal);
  await assert.rejects(syncing, hasCode("permission-denied"));
  assert.deepEqual(codes, []);
  assert.equal(client.state.error?.code, "permission-denied");
});

test("updates come one at a time, the next one when the last is done with", async () => {
  await using server = new FakeServer((own) => ({
    async *sync(envelope, context) {
      for (let i = 1n; i <= 3n; i++)
        yield own.seal(envelope, create(SyncResponseSchema, { NetworkMap: { Serial: i } }));
      await hang(context.signal);
    },
  }));
  await using client = newClient(`http://127.0.0.1:${await server.listen()}`);
  const events: string[] = [];
  const stop = new AbortController();
  const syncing = client.sync(
    meta,
    async (update) => {
      events.push(`begin ${update.NetworkMap!.Serial}`);
      await new Promise((resolve) => setTimeout(resolve, 20));
      events.push(`end ${update.NetworkMap!.Serial}`);
    },
    stop.signal,
  );
  await until(() => events.length === 6);
  assert.deepEqual(events, ["begin 1", "end 1", "begin 2", "end 2", "begin 3", "end 3"]);
  stop.abort();
  await syncing;
});

test("1.1: a map of ten megabytes is read", async () => {
  const remotePeers = Array.from({ length: 1000 }, (_, i) => ({ fqdn: `${i}${"x".repeat(10_000)}` }));
  await using server = new FakeServer((own) => ({
    async *sync(envelope, context) {
      yield own.seal(envelope, create(SyncResponseSchema, { NetworkMap: { remotePeers } }));
      await hang(context.signal);
    },
  }));
  await using client = newClient(`http://127.0.0.1:${await server.listen()}`);
  let count = 0;
  const syncing = client.sync(
    meta,
    (update) => {
      count = update.NetworkMap!.remotePeers.length;
    },
    new AbortController().signal,
  );
  await until(() => count === 1000);
  await client.close();
  await syncing;
});

/** Passes bytes on until it is told to swallow them: a server that vanished without a word. */
async function relayThatDies(port: number): Promise<{ port: number; die(): void; server: Server; sockets: Socket[] }> {
  const sockets: Socket[] = [];
  let dead = false;
  const server = createTcpServer((near) => {
    const far = connect(port, "127.0.0.1");
    sockets.push(near, far);
    for (const [from, to] of [
      [near, far],
      [far, near],
    ] as const) {
      from.on("data", (bytes) => !dead && to.write(bytes));
      from.on("error", () => {});
      from.on("close", () => !dead && to.destroy());
    }
  });
  await new Promise<void>((resolve) => server.listen(0, "127.0.0.1", resolve));
  const die = (): void => {
    dead = true;
  };
  return { port: (server.address() as AddressInfo).port, die, server, sockets };
}

test("a server that vanishes without a word is noticed by the ping", async () => {
  await using server = new FakeServer((own) => ({
    async *sync(envelope, context) {
      yield own.seal(envelope, create(SyncResponseSchema));
      await hang(context.signal);
    },
  }));
  const relay = await relayThatDies(await server.listen());
  await using client = newClient(`http://127.0.0.1:${relay.port}`, { pingIntervalMs: 150, pingTimeoutMs: 100 });
  const syncing = client.sync(meta, () => {}, new AbortController().signal);
  await until(() => client.state.connected);
  relay.die();
  await until(() => !client.state.connected);
  assert.equal(client.state.error?.code, "unreachable");
  await client.close();
  await syncing;
  for (const socket of relay.sockets) socket.destroy();
  await new Promise((resolve) => relay.server.close(resolve));
});

test("after a change of the network the stream is opened anew at once", async () => {
  await using server = new FakeServer((own) => ({
    async *sync(envelope, context) {
      yield own.seal(envelope, create(SyncResponseSchema));
      await hang(context.signal);
    },
  }));
  await using client = newClient(`http://127.0.0.1:${await server.listen()}`);
  let updates = 0;
  const syncing = client.sync(meta, () => void updates++, new AbortController().signal);
  await until(() => updates === 1);
  client.reconnect();
  await until(() => updates === 2);
  await client.close();
  await syncing;
});

test("a call is given up when its signal is aborted, and close ends a call that hangs", async () => {
  await using server = new FakeServer(() => ({
    login: async (_, context) => {
      await hang(context.signal);
      throw new ConnectError("gone", Code.Canceled);
    },
  }));
  await using client = newClient(`http://127.0.0.1:${await server.listen()}`);
  const stop = new AbortController();
  const login = client.login({ meta: meta(), signal: stop.signal });
  await until(() => server.calls.includes("Login"));
  stop.abort();
  await assert.rejects(login, hasCode("call-aborted"));
  const second = client.login({ meta: meta() });
  const refused = assert.rejects(second, hasCode("call-aborted"));
  await client.close();
  await refused;
  await assert.rejects(client.login({ meta: meta() }), hasCode("call-aborted"));
  assert.equal(await client.isHealthy(), false);
});

test("a dial that hangs in the TLS handshake is given up by close, without a trace", async () => {
  const sockets: Socket[] = [];
  const mute = createTcpServer((socket) => void sockets.push(socket.on("error", () => {})));
  await new Promise<void>((resolve) => mute.listen(0, "127.0.0.1", resolve));
  await using client = newClient(`https://127.0.0.1:${(mute.address() as AddressInfo).port}`);
  const refused = assert.rejects(client.login({ meta: meta() }), hasCode("call-aborted"));
  await until(() => sockets.length === 1);
  await client.close();
  await refused;
  for (const socket of sockets) socket.destroy();
  await new Promise((resolve) => mute.close(resolve));
});

test("TLS: with the authority's certificate the call passes, without it the reason is named", async (t) => {
  using directory = temporaryDirectory();
  const [keyFile, certFile] = [`${directory.path}/key.pem`, `${directory.path}/cert.pem`];
  try {
    execFileSync(
      "openssl",
      [
        ..."req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 2 -subj /CN=localhost".split(" "),
        ...["-addext", "subjectAltName=DNS:localhost", "-keyout", keyFile, "-out", certFile],
      ],
      { stdio: "ignore" },
    );
  } catch (error) {
    return t.skip(`openssl made no certificate: ${(error as Error).message}`);
  }
  const [key, cert] = [readFileSync(keyFile, "utf8"), readFileSync(certFile, "utf8")];
  await using server = new FakeServer(() => ({ isHealthy: async () => ({}) }), { key, cert });
  const url = `https://localhost:${await server.listen()}`;
  await using trusting = newClient(url, { ca: cert });
  assert.equal(await trusting.isHealthy(), true);
  await using wary = newClient(url);
  await assert.rejects(wary.login({ meta: meta() }), hasCode("unreachable", /self-signed certificate/));
});
