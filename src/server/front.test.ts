import assert from "node:assert/strict";
import { execFileSync } from "node:child_process";
import { once } from "node:events";
import { mkdtempSync, readFileSync, rmSync } from "node:fs";
import { get } from "node:http";
import { type ClientHttp2Session, connect as connectHttp2 } from "node:http2";
import { request as httpsRequest } from "node:https";
import { connect as connectTcp, type Socket } from "node:net";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { after, test } from "node:test";
import { connect as connectTls, type TLSSocket } from "node:tls";
import WebSocket, { WebSocketServer } from "ws";
import { parseIp } from "#base/ip.ts";
import { silentLogger } from "#base/log.ts";
import { ManualClock, systemClock } from "#base/time.ts";
import { createFront, type Front, type FrontLimits, type FrontRequest, type TlsMaterial } from "./front.ts";

const directory = mkdtempSync(join(tmpdir(), "perch-front-"));
after(() => rmSync(directory, { recursive: true }));

/** A self-signed certificate for 127.0.0.1 with this common name. */
function selfSigned(name: string): TlsMaterial {
  const [cert, key] = [join(directory, `${name}.pem`), join(directory, `${name}.key`)];
  const subject = ["-subj", `/CN=${name}`, "-addext", "subjectAltName=IP:127.0.0.1"];
  const curve = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1"];
  execFileSync(
    "openssl",
    ["req", "-x509", "-nodes", "-days", "2", ...curve, "-keyout", key, "-out", cert, ...subject],
    {
      stdio: "ignore",
    },
  );
  return { cert: readFileSync(cert, "utf8"), key: readFileSync(key, "utf8") };
}

const material = selfSigned("first");

async function readBody(request: FrontRequest): Promise<Buffer> {
  const chunks: Buffer[] = [];
  for await (const chunk of request) chunks.push(chunk as Buffer);
  return Buffer.concat(chunks);
}

/** A front whose routes answer /echo with the body, /hang never, and echo WebSocket messages on /relay. */
async function openFront(options: { tls?: TlsMaterial; limits?: Partial<FrontLimits>; clock?: ManualClock } = {}) {
  const webSockets = new WebSocketServer({ noServer: true, perMessageDeflate: false });
  const front = await createFront(
    { clock: options.clock ?? systemClock, log: silentLogger },
    {
      listen: { address: parseIp("127.0.0.1"), port: 0 },
      ...(options.tls ? { tls: options.tls } : {}),
      ...(options.limits ? { limits: options.limits } : {}),
    },
    {
      isEndless: () => false,
      request(path, request, response) {
        if (path === "/hang") return true;
        if (path === "/throw") throw new Error("a bug");
        if (path !== "/echo") return false;
        void readBody(request).then((body) => response.end(body));
        return true;
      },
      upgrade(path, request, socket, head) {
        if (path !== "/relay") return false;
        webSockets.handleUpgrade(request, socket, head, (ws) => ws.on("message", (data) => ws.send(data)));
        return true;
      },
    },
  );
  const { port } = front.endpoint;
  return { front, port, origin: `127.0.0.1:${port}`, [Symbol.asyncDispose]: () => front.close(0) };
}

async function echoHttp2(session: ClientHttp2Session, path: string, body: Buffer | string): Promise<[number, Buffer]> {
  const stream = session.request({ ":method": "POST", ":path": path });
  stream.end(body);
  const [headers] = (await once(stream, "response")) as [{ ":status": number }];
  const chunks: Buffer[] = [];
  for await (const chunk of stream) chunks.push(chunk as Buffer);
  return [headers[":status"], Buffer.concat(chunks)];
}

async function closeSession(session: ClientHttp2Session): Promise<void> {
  const closed = once(session, "close");
  session.close();
  await closed;
}

/** Everything the server sends on this raw connection until it closes. */
async function untilClosed(socket: Socket): Promise<string> {
  const chunks: Buffer[] = [];
  socket.on("data", (chunk: Buffer) => chunks.push(chunk));
  socket.on("error", () => {});
  socket.on("end", () => socket.end());
  await new Promise((resolve) => socket.once("close", resolve));
  return Buffer.concat(chunks).toString("latin1");
}

async function openRaw(port: number): Promise<Socket> {
  const socket = connectTcp({ host: "127.0.0.1", port, allowHalfOpen: true });
  await once(socket, "connect");
  return socket;
}

async function echoWebSocket(url: string, options: WebSocket.ClientOptions = {}): Promise<string> {
  const ws = new WebSocket(url, options);
  await once(ws, "open");
  ws.send("over the relay");
  const [data] = (await once(ws, "message")) as [Buffer];
  const closed = once(ws, "close");
  ws.close();
  await closed;
  return data.toString();
}

async function fetchText(url: string): Promise<[number, string]> {
  const response = await fetch(url);
  return [response.status, await response.text()];
}

async function until(what: string, condition: () => boolean): Promise<void> {
  for (let i = 0; i < 400; i++) {
    if (condition()) return;
    await new Promise((resolve) => setTimeout(resolve, 5));
  }
  assert.fail(`did not happen within 2 s: ${what}`);
}

test("HTTP/2 with prior knowledge, HTTP/1.1 and WebSocket are served on one plaintext port", async () => {
  await using opened = await openFront();
  const { origin } = opened;
  const session = connectHttp2(`http://${origin}`);
  const large = Buffer.alloc(1_500_000, 7);
  assert.deepEqual(await echoHttp2(session, "/echo", "small"), [200, Buffer.from("small")]);
  assert.deepEqual(await echoHttp2(session, "/echo?query", large), [200, large]);
  assert.equal((await echoHttp2(session, "/nothing", "x"))[0], 404);
  assert.deepEqual(await fetchText(`http://${origin}/nothing`), [404, "not found\n"]);
  const posted = await fetch(`http://${origin}/echo`, { method: "POST", body: large });
  assert.deepEqual(Buffer.from(await posted.arrayBuffer()), large);
  assert.equal(await echoWebSocket(`ws://${origin}/relay`), "over the relay");
  await closeSession(session);
});

test("TLS with ALPN h2, TLS with HTTP/1.1, TLS WebSocket and plaintext are served on one port", async () => {
  await using opened = await openFront({ tls: material });
  const { origin, port } = opened;
  const session = connectHttp2(`https://${origin}`, { ca: material.cert });
  assert.deepEqual(await echoHttp2(session, "/echo", "sealed"), [200, Buffer.from("sealed")]);
  assert.equal((session.socket as TLSSocket).alpnProtocol, "h2");
  const [response] = (await once(
    httpsRequest({ host: "127.0.0.1", port, path: "/nothing", ca: material.cert, agent: false }).end(),
    "response",
  )) as [{ statusCode: number; resume(): void }];
  response.resume();
  assert.equal(response.statusCode, 404);
  assert.equal(await echoWebSocket(`wss://${origin}/relay`, { ca: material.cert }), "over the relay");
  const plain = connectHttp2(`http://${origin}`);
  assert.deepEqual(await echoHttp2(plain, "/echo", "open"), [200, Buffer.from("open")]);
  assert.equal(await echoWebSocket(`ws://${origin}/relay`), "over the relay");
  await closeSession(session);
  await closeSession(plain);
});

test("an opening that arrives byte by byte is understood for each protocol", async () => {
  await using opened = await openFront({ tls: material });
  const { port } = opened;
  const drip = async (socket: Socket, text: string): Promise<void> => {
    socket.setNoDelay(true);
    for (const byte of Buffer.from(text, "latin1")) {
      socket.write(Uint8Array.of(byte));
      await new Promise((resolve) => setImmediate(resolve));
    }
  };
  const http1 = await openRaw(port);
  const answered = untilClosed(http1);
  await drip(http1, "POST /echo HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\nConnection: close\r\n\r\nhello");
  assert.match(await answered, /^HTTP\/1\.1 200 OK[\s\S]*hello$/);
  const h2 = await openRaw(port);
  const settings = once(h2, "data");
  await drip(h2, "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0");
  const [frame] = (await settings) as [Buffer];
  assert.equal(frame[3], 4, "the first frame of a server is SETTINGS");
  h2.destroy();
});

test("a TLS client of a server without a certificate is dropped at once", async () => {
  await using opened = await openFront();
  const { front, port } = opened;
  const client = connectTls({ host: "127.0.0.1", port, rejectUnauthorized: false });
  await assert.rejects(once(client, "secureConnect"));
  assert.equal(front.stats.tlsFailures, 1);
});

test("garbage is answered 400 or dropped, and the port goes on serving", async () => {
  await using opened = await openFront({ tls: material });
  const { front, port, origin } = opened;
  const outcomes: string[] = [];
  for (const bytes of [
    Buffer.from("\0\0\0\0garbage\r\n\r\n"),
    Buffer.from("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\nthis is no frame, this is no frame"),
    Buffer.from("\x16\x03\x01\xff\xffthis is no client hello", "latin1"),
    Buffer.from("GET / HTTP/1.1\r\nHost: a\r\nContent-Length: -1\r\n\r\n"),
    Buffer.alloc(100_000, "GET /"),
  ]) {
    const socket = await openRaw(port);
    const answered = untilClosed(socket);
    socket.end(bytes);
    outcomes.push((await answered).slice(0, 12));
  }
  assert.deepEqual(
    outcomes.map((text) => text === "HTTP/1.1 400" || text === "HTTP/1.1 431"),
    [true, false, false, true, true],
    outcomes.join("|"),
  );
  assert.deepEqual(await fetchText(`http://${origin}/nothing`), [404, "not found\n"]);
  await until("all are gone", () => front.stats.connections <= 1);
});

test("a connection that stays silent or stops inside its opening is closed after the deadline", async () => {
  const clock = new ManualClock();
  await using opened = await openFront({ clock, tls: material });
  const { front, port } = opened;
  const openings = [
    "",
    "P",
    "PRI * HTTP/2.0\r\n",
    "\x16",
    "\x16\x03\x01\x02\0\x01",
    "GET /echo HTTP/1.1\r\nHost: x\r\n",
  ];
  const sockets = await Promise.all(openings.map(() => openRaw(port)));
  const closings = sockets.map((socket) => untilClosed(socket));
  for (const [index, socket] of sockets.entries()) socket.write(Buffer.from(openings[index]!, "latin1"));
  await until("accepted", () => front.stats.accepted === openings.length);
  await new Promise((resolve) => setTimeout(resolve, 50));
  clock.advance(9_999);
  assert.equal(front.stats.connections, openings.length);
  clock.advance(1);
  await Promise.all(closings);
  assert.equal(front.stats.openingTimeouts, openings.length);
  await until("all gone", () => front.stats.connections === 0);
});

test("a connection that ends inside its opening is closed and forgotten", async () => {
  await using opened = await openFront({ tls: material });
  const { front, port } = opened;
  for (const bytes of ["", "PRI", "\x16\x03\x01\x02\0\x01", "GET / HT"]) {
    const socket = await openRaw(port);
    const closing = untilClosed(socket);
    socket.end(Buffer.from(bytes, "latin1"));
    await closing;
  }
  const reset = await openRaw(port);
  reset.write("PRI");
  reset.resetAndDestroy();
  await until("all gone", () => front.stats.connections === 0);
});

test("an HTTP/1.1 client may end its side before it reads the answer", async () => {
  await using opened = await openFront();
  const { port } = opened;
  const socket = await openRaw(port);
  const answered = untilClosed(socket);
  socket.end("POST /echo HTTP/1.1\r\nHost: x\r\nContent-Length: 4\r\n\r\nhalf");
  assert.match(await answered, /half$/);
});

test("an HTTP/2 client that ends its side is gone", async () => {
  await using opened = await openFront();
  const { front, port } = opened;
  const socket = await openRaw(port);
  const closing = untilClosed(socket);
  socket.write("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0");
  await until("session", () => front.stats.sessions === 1);
  socket.end();
  await closing;
  assert.equal(front.stats.sessions, 0);
});

test("a source over its limit of unproven connections is refused, and proven ones do not count", async () => {
  await using opened = await openFront({ limits: { maxUnprovenPerSource: 4 } });
  const { front, port, origin } = opened;
  const session = connectHttp2(`http://${origin}`);
  await echoHttp2(session, "/echo", "proven");
  const silent = await Promise.all(Array.from({ length: 4 }, () => openRaw(port)));
  await until("accepted", () => front.stats.connections === 5);
  assert.equal(await untilClosed(await openRaw(port)), "");
  assert.equal(front.stats.refusedBySourceLimit, 1);
  assert.deepEqual(await echoHttp2(session, "/echo", "still"), [200, Buffer.from("still")]);
  for (const socket of silent) socket.destroy();
  await until("room again", () => front.stats.connections === 1);
  assert.equal(await echoWebSocket(`ws://${origin}/relay`), "over the relay");
  await closeSession(session);
});

test("every HTTP/2 connection is pinged and one that does not answer is dropped by the second ping", async () => {
  const clock = new ManualClock();
  await using opened = await openFront({ clock });
  const { front, port, origin } = opened;
  const living = connectHttp2(`http://${origin}`);
  const call = living.request({ ":path": "/hang" });
  call.on("error", () => {});
  let pings = 0;
  living.on("ping", () => pings++);
  const deaf = await openRaw(port);
  const closing = untilClosed(deaf);
  // A session with an open call on /hang, as a stream of a laptop that fell asleep.
  deaf.write("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0");
  deaf.write(
    Buffer.from([0, 0, 12, 1, 5, 0, 0, 0, 1, 0x82, 0x86, 0x41, 1, 0x78, 0x44, 5, 0x2f, 0x68, 0x61, 0x6e, 0x67]),
  );
  await until("both calls", () => front.stats.sessions === 2 && !living.connecting && !call.pending);
  await new Promise((resolve) => setTimeout(resolve, 50));
  clock.advance(25_000);
  await until("first ping", () => pings === 1);
  await new Promise((resolve) => setTimeout(resolve, 50));
  clock.advance(25_000);
  await closing;
  await until("second ping", () => pings === 2);
  assert.equal(front.stats.deadSessions, 1);
  assert.equal(front.stats.sessions, 1);
  living.destroy();
});

test("an open call keeps its connection for ever, and one without calls is closed after the idle limit", async () => {
  const clock = new ManualClock();
  await using opened = await openFront({ clock, limits: { http2IdleMs: 100_000 } });
  const { front, origin } = opened;
  const busy = connectHttp2(`http://${origin}`);
  busy.request({ ":path": "/hang" }).on("error", () => {});
  const idle = connectHttp2(`http://${origin}`);
  await echoHttp2(idle, "/echo", "once");
  const idleClosed = once(idle, "close");
  let pings = 0;
  busy.on("ping", () => pings++);
  for (let round = 1; round <= 40; round++) {
    clock.advance(25_000);
    await until(`ping ${round}`, () => pings === round);
    await new Promise((resolve) => setTimeout(resolve, 2));
  }
  await idleClosed;
  assert.equal(busy.closed, false);
  assert.equal(front.stats.sessions, 1);
  busy.destroy();
});

test("PINGs of a client are answered however often they come", async () => {
  await using opened = await openFront();
  const { origin } = opened;
  const session = connectHttp2(`http://${origin}`);
  await once(session, "connect");
  for (let i = 0; i < 50; i++)
    await new Promise<void>((resolve, reject) => session.ping((error) => (error ? reject(error) : resolve())));
  assert.equal(session.closed, false);
  await closeSession(session);
});

test("a new certificate is used for new connections, an unusable one is refused and the old one kept", async () => {
  await using opened = await openFront({ tls: material });
  const { front, port } = opened;
  const commonName = async (): Promise<string | string[] | undefined> => {
    const client = connectTls({ host: "127.0.0.1", port, rejectUnauthorized: false, ALPNProtocols: ["h2"] });
    await once(client, "secureConnect");
    const name = client.getPeerCertificate().subject.CN;
    client.destroy();
    return name;
  };
  assert.equal(await commonName(), "first");
  front.reloadTls(selfSigned("second"));
  assert.equal(await commonName(), "second");
  assert.throws(() => front.reloadTls({ cert: "nonsense", key: "nonsense" }), { code: "tls-material" });
  assert.throws(() => front.reloadTls({ cert: selfSigned("third").cert, key: material.key }), { code: "tls-material" });
  assert.equal(await commonName(), "second");
});

test("a taken port and a foreign address are refused with a line that names them", async () => {
  await using opened = await openFront();
  const { port } = opened;
  const open = (address: string, at: number): Promise<Front> =>
    createFront(
      { clock: systemClock, log: silentLogger },
      { listen: { address: parseIp(address), port: at } },
      { request: () => false, isEndless: () => false, upgrade: () => false },
    );
  await assert.rejects(open("127.0.0.1", port), {
    code: "listen-taken",
    message: new RegExp(`127\\.0\\.0\\.1:${port}`),
  });
  await assert.rejects(open("192.0.2.77", 33073), { code: "listen-address", message: /192\.0\.2\.77:33073/ });
});

test("an upgrade outside the relay's path is answered 404, and h2c by upgrade as the plain request it is", async () => {
  await using opened = await openFront();
  const { port, origin } = opened;
  const ws = new WebSocket(`ws://${origin}/other`);
  const [, response] = (await once(ws, "unexpected-response")) as [unknown, { statusCode: number }];
  assert.equal(response.statusCode, 404);
  ws.on("error", () => {});
  ws.terminate();
  const request = get({
    host: "127.0.0.1",
    port,
    path: "/nothing",
    headers: { Connection: "Upgrade", Upgrade: "h2c" },
  });
  const [plain] = (await once(request, "response")) as [{ statusCode: number; resume(): void }];
  plain.resume();
  assert.equal(plain.statusCode, 404);
});

test("a failing handler answers 500 and the connection lives on", async () => {
  await using opened = await openFront();
  const { origin } = opened;
  const session = connectHttp2(`http://${origin}`);
  assert.equal((await echoHttp2(session, "/throw", ""))[0], 500);
  assert.equal((await echoHttp2(session, "/echo", ""))[0], 200);
  await closeSession(session);
});

test("closing ends what is open, within the grace time, and is idempotent", async () => {
  const { front, port, origin } = await openFront({ tls: material });
  const busy = connectHttp2(`http://${origin}`);
  busy.on("error", () => {});
  busy.request({ ":path": "/hang" }).on("error", () => {});
  const ws = new WebSocket(`ws://${origin}/relay`);
  ws.on("error", () => {});
  await once(ws, "open");
  const silent = await openRaw(port);
  const silentClosed = untilClosed(silent);
  await until("all there", () => front.stats.sessions === 1 && front.stats.connections === 3);
  await Promise.all([front.close(20), front.close(20), once(busy, "close"), once(ws, "close"), silentClosed]);
  assert.equal(front.stats.connections, 0);
  await assert.rejects(once(connectTcp({ host: "127.0.0.1", port }), "connect"), { code: "ECONNREFUSED" });
});
