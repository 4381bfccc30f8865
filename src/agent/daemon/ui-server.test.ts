import assert from "node:assert/strict";
import { mkdirSync, mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { type IncomingHttpHeaders, request } from "node:http";
import { connect, createServer, type Socket } from "node:net";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { test } from "node:test";
import { silentLogger } from "#base/log.ts";
import { ManualClock } from "#base/time.ts";
import { FakeAgent } from "./testing/fake-agent.ts";
import { SECURITY_HEADERS } from "./ui-gate.ts";
import { type UiLink, UiServer, type UiServerOptions } from "./ui-server.ts";
import { SESSION_IDLE, SESSION_LIFE, TOKEN_LIFE } from "./ui-sessions.ts";

const WATCH = "/perch.daemon.v1.Daemon/WatchStatus";

interface Answer {
  readonly status: number;
  readonly headers: IncomingHttpHeaders;
  readonly body: string;
}

interface Served extends AsyncDisposable {
  readonly ui: UiServer;
  readonly clock: ManualClock;
  /** Calls that got through to the API. */
  readonly calls: string[];
  readonly link: UiLink;
  readonly host: string;
  readonly send: (method: string, path: string, headers?: Record<string, string>, body?: string) => Promise<Answer>;
  /** Opens a session with a new link; the headers of a call in it. */
  readonly signIn: () => Promise<Record<string, string>>;
}

async function served(options: UiServerOptions = {}): Promise<Served> {
  const folder = mkdtempSync(join(tmpdir(), "perch-ui-test-"));
  mkdirSync(join(folder, "assets"));
  writeFileSync(join(folder, "index.html"), "<!doctype html><title>the page</title>");
  writeFileSync(join(folder, "assets/page.js"), "export {};");
  writeFileSync(join(folder, "secret.env"), "not a file of a page");
  const clock = new ManualClock();
  const calls: string[] = [];
  const ui = new UiServer(
    {
      agent: new FakeAgent([]),
      clock,
      log: silentLogger,
      api: () => (incoming, response) => {
        calls.push(incoming.url ?? "");
        // A stream that lasts.
        response.writeHead(200).write("first part");
      },
    },
    { folder, ...options },
  );
  const link = await ui.open(0);
  const host = `127.0.0.1:${ui.port}`;
  const send: Served["send"] = (method, path, headers = {}, body = "") =>
    new Promise((resolve, reject) => {
      const outgoing = request(
        { host: "127.0.0.1", port: ui.port, method, path, headers, agent: false },
        (incoming) => {
          let text = "";
          const answer = (): void => {
            incoming.destroy();
            resolve({ status: incoming.statusCode!, headers: incoming.headers, body: text });
          };
          incoming.setEncoding("utf8").on("data", (part: string) => {
            text += part;
            if (text === "first part") answer();
          });
          incoming.once("end", answer);
        },
      );
      outgoing.once("error", reject);
      outgoing.end(body);
    });
  return {
    ui,
    clock,
    calls,
    link,
    host,
    send,
    async signIn() {
      const { url } = await ui.open(0);
      const { headers, body } = await send("POST", "/session", { host, origin: `http://${host}` }, tokenOf(url));
      const cookie = headers["set-cookie"]![0]!.split(";")[0]!;
      return { host, origin: `http://${host}`, cookie, "x-perch-page": JSON.parse(body).pageKey };
    },
    async [Symbol.asyncDispose]() {
      await ui.close();
      rmSync(folder, { recursive: true });
    },
  };
}

function tokenOf(url: string): string {
  return new URL(url).hash.slice("#token=".length);
}

test("the page is served with headers that keep everything foreign out, and nothing secret in it", async () => {
  await using at = await served();
  for (const path of ["/", "/index.html", "/assets/page.js", "/?anything"]) {
    const { status, headers, body } = await at.send("GET", path);
    assert.equal(status, 200, path);
    for (const [name, value] of Object.entries(SECURITY_HEADERS))
      assert.equal(headers[name], value, `${path}: ${name}`);
    assert.ok(!body.includes(tokenOf(at.link.url)));
  }
  assert.doesNotMatch(SECURITY_HEADERS["content-security-policy"]!, /unsafe|http|\*/);
  const refused = await at.send("GET", "/nothing");
  assert.equal(refused.headers["x-content-type-options"], "nosniff", "on refusals too");
});

test("a token opens one session: a wrong one, a used one and an expired one do not", async () => {
  await using at = await served();
  const from = { host: at.host, origin: `http://${at.host}` };
  assert.equal((await at.send("POST", "/session", from, "wrong")).status, 401);
  assert.equal((await at.send("POST", "/session", from, "")).status, 401);
  const token = tokenOf(at.link.url);
  const first = await at.send("POST", "/session", from, token);
  assert.equal(first.status, 200);
  assert.match(first.headers["set-cookie"]![0]!, /^perch-ui-\d+=[\w-]{43}; Path=\/; HttpOnly; SameSite=Strict$/);
  assert.ok(!first.body.includes(first.headers["set-cookie"]![0]!.split(/[=;]/)[1]!), "the cookie is for no script");
  assert.equal((await at.send("POST", "/session", from, token)).status, 401);
  const late = await at.ui.open(0);
  at.clock.advance(TOKEN_LIFE);
  assert.equal((await at.send("POST", "/session", from, tokenOf(late.url))).status, 401);
});

test("a call without cookie, without page key, or with those of two sessions is refused", async () => {
  await using at = await served();
  const [one, other] = [await at.signIn(), await at.signIn()];
  const { cookie: _, ...withoutCookie } = one;
  const { "x-perch-page": __, ...withoutKey } = one;
  assert.equal((await at.send("POST", WATCH, withoutCookie)).status, 401);
  assert.equal((await at.send("POST", WATCH, withoutKey)).status, 401);
  assert.equal((await at.send("POST", WATCH, { ...one, cookie: other.cookie! })).status, 401);
  assert.equal((await at.send("POST", WATCH, { ...one, cookie: "perch-ui-1=x" })).status, 401);
  assert.deepEqual(at.calls, []);
  assert.equal((await at.send("POST", WATCH, one)).status, 200);
  assert.equal((await at.send("POST", WATCH, { ...one, cookie: `a=b; ${one.cookie}; c=d` })).status, 200);
  assert.deepEqual(at.calls, [WATCH, WATCH]);
});

test("another Host is refused for everything, as DNS rebinding would send it", async () => {
  await using at = await served();
  const pass = await at.signIn();
  const port = at.ui.port;
  for (const host of [
    "evil.test",
    `evil.test:${port}`,
    `localhost:${port}`,
    "127.0.0.1",
    "127.0.0.1:1",
    `[::2]:${port}`,
  ]) {
    assert.equal((await at.send("GET", "/", { host })).status, 403, `GET ${host}`);
    assert.equal(
      (await at.send("POST", WATCH, { ...pass, host, origin: `http://${host}` })).status,
      403,
      `call ${host}`,
    );
    const { url } = await at.ui.open(0);
    assert.equal((await at.send("POST", "/session", { host, origin: `http://${host}` }, tokenOf(url))).status, 403);
  }
  assert.deepEqual(at.calls, []);
});

test("another Origin, or none, is refused for everything that is not a file", async () => {
  await using at = await served();
  const pass = await at.signIn();
  const { origin: _, ...none } = pass;
  const foreign = [
    "null",
    "http://evil.test",
    `https://${at.host}`,
    `http://${at.host}.evil.test`,
    "http://127.0.0.1:1",
  ];
  for (const headers of [none, ...foreign.map((origin) => ({ ...pass, origin }))]) {
    assert.equal((await at.send("POST", WATCH, headers)).status, 403);
    const { url } = await at.ui.open(0);
    assert.equal((await at.send("POST", "/session", headers, tokenOf(url))).status, 403);
  }
  for (const site of ["cross-site", "same-site", "none"])
    assert.equal((await at.send("POST", WATCH, { ...pass, "sec-fetch-site": site })).status, 403);
  assert.equal((await at.send("POST", WATCH, { ...pass, "sec-fetch-site": "same-origin" })).status, 200);
  const preflight = await at.send("OPTIONS", WATCH, { host: at.host, origin: "http://evil.test" });
  assert.equal(preflight.status, 405);
  assert.equal(preflight.headers["access-control-allow-origin"], undefined);
});

test("the page may not call what is not its business: registration, settings, more links", async () => {
  await using at = await served();
  const pass = await at.signIn();
  for (const call of ["Up", "Login", "Down", "Deregister", "OpenUi", "SetLogLevel", "Capture", "Nothing"])
    assert.equal((await at.send("POST", `/perch.daemon.v1.Daemon/${call}`, pass)).status, 404, call);
  assert.deepEqual(at.calls, []);
});

test("no path leads out of the page's folder", async () => {
  await using at = await served();
  for (const path of [
    "/../../package.json",
    "/..%2f..%2fpackage.json",
    "/assets/../../../../../../etc/passwd",
    "/assets/..%5c..%5cindex.html",
    "//etc/passwd",
    "/assets",
    "/assets/",
    "/secret.env",
    "/%00",
    "/__proto__",
    "http://127.0.0.1/etc/passwd",
  ]) {
    const { status } = await at.send("GET", path);
    assert.equal(status, 404, path);
  }
});

test("what is too large is refused: head, token, and more connections than the bound", async () => {
  await using at = await served({ connectionsMax: 3 });
  const from = { host: at.host, origin: `http://${at.host}` };
  assert.equal((await at.send("GET", "/", { "x-padding": "x".repeat(20_000) })).status, 431);
  assert.equal((await at.send("POST", "/session", from, "x".repeat(2000))).status, 413);
  const sockets = await Promise.all(Array.from({ length: 3 }, () => connected(at.ui.port!)));
  const fourth = connect(at.ui.port!, "127.0.0.1");
  fourth.on("error", () => {});
  await new Promise((resolve) => fourth.once("close", resolve));
  for (const socket of sockets) {
    assert.equal(socket.closed, false);
    socket.destroy();
  }
});

test("a connection that says nothing is closed", async () => {
  await using at = await served({ headPatience: 200 });
  const socket = await connected(at.ui.port!);
  socket.resume();
  await new Promise((resolve) => socket.once("close", resolve));
});

test("a session's stream ends with the session, and the last one leaves nobody listening", async () => {
  await using at = await served();
  const pass = await at.signIn();
  const stream = streamOf(at, pass);
  await stream.began;
  const { port } = at.ui;
  at.clock.advance(SESSION_IDLE);
  assert.equal(at.ui.port, port, "who watches is not idle");
  at.clock.advance(SESSION_LIFE);
  await stream.ended;
  await until(() => at.ui.port === undefined);
  await assert.rejects(connected(port!), /ECONNREFUSED/);
  const again = await at.ui.open(0);
  assert.match(again.url, /^http:\/\/127\.0\.0\.1:\d+\/#token=[\w-]{43}$/);
});

test("a link that nobody opens is served until it expires", async () => {
  await using at = await served();
  assert.equal(at.link.expiresAt, at.clock.wall() + TOKEN_LIFE);
  at.clock.advance(TOKEN_LIFE);
  await until(() => at.ui.port === undefined);
  assert.equal(at.clock.pending, 0);
});

test("closing ends streams, refuses new links and leaves no timer", async () => {
  await using at = await served();
  const stream = streamOf(at, await at.signIn());
  await stream.began;
  await Promise.all([at.ui.close(), at.ui.close()]);
  await stream.ended;
  assert.equal(at.clock.pending, 0);
  await assert.rejects(at.ui.open(0), { code: "superseded" });
});

test("a port that is taken, another one than the one in use, and a missing page are told", async () => {
  await using at = await served();
  const other = at.ui.port === 50_000 ? 50_001 : 50_000;
  await assert.rejects(at.ui.open(other), { code: "value-invalid", message: /is served on port \d+ already/ });
  assert.equal((await at.ui.open(at.ui.port!)).url.includes(`:${at.ui.port}/`), true);
  const taken = createServer().listen(0, "127.0.0.1");
  await new Promise((resolve) => taken.once("listening", resolve));
  const deps = { agent: new FakeAgent([]), clock: at.clock, log: silentLogger, api: () => () => {} };
  await using second = new UiServer(deps);
  await using third = new UiServer(deps, { folder: "/nonexistent" });
  const { port } = taken.address() as { port: number };
  await assert.rejects(second.open(port), { code: "ui-listen" });
  assert.ok((await second.open(0)).url, "a failure leaves it usable");
  await assert.rejects(third.open(0), { code: "daemon-path" });
  taken.close();
});

function streamOf(at: Served, headers: Record<string, string>): { began: Promise<void>; ended: Promise<void> } {
  const began = Promise.withResolvers<void>();
  const ended = Promise.withResolvers<void>();
  const options = { host: "127.0.0.1", port: at.ui.port, method: "POST", path: WATCH, headers, agent: false };
  const outgoing = request(options, (incoming) => {
    incoming.once("data", () => began.resolve());
    incoming.on("error", () => {}).once("close", () => ended.resolve());
  });
  outgoing.on("error", () => ended.resolve()).end();
  return { began: began.promise, ended: ended.promise };
}

function connected(port: number): Promise<Socket> {
  return new Promise((resolve, reject) => {
    const socket = connect(port, "127.0.0.1", () => resolve(socket));
    socket.on("error", reject);
  });
}

async function until(condition: () => boolean): Promise<void> {
  for (let turn = 0; turn < 1000; turn++) {
    if (condition()) return;
    await new Promise((resolve) => setTimeout(resolve, 5));
  }
  assert.fail("it did not happen");
}
