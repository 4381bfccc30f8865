import assert from "node:assert/strict";
import { execFile } from "node:child_process";
import { createSocket, type Socket } from "node:dgram";
import { connect, createServer } from "node:net";
import { after, before, beforeEach, describe, test } from "node:test";
import { promisify } from "node:util";
import { type Answer, decode, encode, type Packet } from "dns-packet";
import fc from "fast-check";
import { type Endpoint, type IpAddress, parseIp, parsePrefix } from "#base/ip.ts";
import { PrivateKey, type PublicKey } from "#base/keys.ts";
import { silentLogger } from "#base/log.ts";
import { ManualClock, systemClock } from "#base/time.ts";
import { DnsResponder, type Knowledge } from "./dns-responder.ts";
import { CONNECTIONS_MAX, DnsServer } from "./dns-server.ts";
import type { DomainName } from "./domain-name.ts";
import { Forwarder, SERVER_PATIENCE } from "./forwarder.ts";
import { NameTable } from "./name-table.ts";
import { BURST, REFILL } from "./name-wakes.ts";
import { createAuthorities } from "./resolve.ts";

const run = promisify(execFile);
const LOOPBACK = parseIp("127.0.0.1");
const [bob, crowd] = [PrivateKey.generate().publicKey, PrivateKey.generate().publicKey];
const domain = "perch.internal" as DomainName;
const overlay = [parsePrefix("100.64.0.0/16")];
const groups = (servers: readonly Endpoint[]) => [
  { servers, primary: false, domains: ["corp.example" as DomainName], search: false },
];

function knowledge(given: Partial<Knowledge> = {}, servers: readonly Endpoint[] = []): Knowledge {
  return {
    authorities: createAuthorities({ zones: [], groups: groups(servers) }, domain, overlay),
    self: "me.perch.internal" as DomainName,
    serial: 7,
    fallback: [],
    ownAddresses: new Set([LOOPBACK, parseIp("100.64.0.1")]),
    tunnelNetworks: overlay,
    wakes: true,
    ...given,
  };
}

function makeTable(): NameTable {
  const table = new NameTable();
  table.putPeer({ key: bob, fqdn: "bob.perch.internal", addresses: [parseIp("100.64.0.2")] });
  // So many addresses that they fit neither 512 nor 1,232 bytes.
  const addresses = Array.from({ length: 60 }, (_, i) => parseIp(`100.64.9.${i}`));
  table.putPeer({ key: crowd, fqdn: "crowd.perch.internal", addresses });
  return table;
}

const query = (name: string, type = "A", more: Partial<Packet> = {}): Buffer =>
  encode({ type: "query", id: 77, flags: 0x0100, questions: [{ name, type: type as "A" }], ...more });
const rcodeOf = (reply: Uint8Array | undefined): number | undefined => reply && reply[3]! & 15;

describe("a name server for this machine", { timeout: 15_000 }, () => {
  let clock: ManualClock;
  let woken: string[];
  let asleep: Set<PublicKey>;
  let asked: Uint8Array[];
  let responder: DnsResponder;
  const ask = (message: Uint8Array, from: IpAddress = LOOPBACK): Promise<Uint8Array | undefined> =>
    responder.answer(message, from, false);

  beforeEach(() => {
    clock = new ManualClock();
    woken = [];
    asked = [];
    asleep = new Set([bob]);
    responder = new DnsResponder(
      {
        clock,
        table: makeTable(),
        forwarder: {
          ask: async (message) => {
            asked.push(message);
            return undefined;
          },
        },
        wake: (key, name, act) => {
          if (act) woken.push(name);
          return asleep.has(key);
        },
      },
      knowledge(),
    );
  });

  test("the question comes back letter for letter, with its ID and flags", async () => {
    const reply = await ask(query("BoB.perch.INTERNAL"));
    const packet = decode(Buffer.from(reply!));
    assert.equal(packet.id, 77);
    assert.equal(packet.questions![0]!.name, "BoB.perch.INTERNAL");
    assert.deepEqual({ aa: packet.flag_aa, rd: packet.flag_rd, ra: packet.flag_ra }, { aa: true, rd: true, ra: true });
    assert.deepEqual(
      packet.answers!.map((each) => "data" in each && each.data),
      ["100.64.0.2"],
    );
  });

  test("a question wakes who sleeps, and so many at once but no more", async () => {
    await ask(query("bob.perch.internal"));
    assert.deepEqual(woken, ["bob.perch.internal"]);
    await ask(query("bob.perch.internal", "AAAA"));
    await ask(query("2.0.64.100.in-addr.arpa", "PTR"));
    assert.equal(woken.length, 1, "no address was given, or none was asked for");
    for (let i = 0; i < BURST + 5; i++) await ask(query("bob.perch.internal"));
    assert.equal(woken.length, BURST);
    clock.advance(REFILL);
    await ask(query("bob.perch.internal"));
    assert.equal(woken.length, BURST + 1);
    assert.equal(responder.counters.get("dns-wakes-limited"), 6);
    asleep.clear();
    await ask(query("bob.perch.internal"));
    responder.knowledge = knowledge({ wakes: false });
    asleep.add(bob);
    await ask(query("bob.perch.internal"));
    assert.equal(woken.length, BURST + 1);
  });

  test("only this machine is answered", async () => {
    assert.equal(await ask(query("bob.perch.internal"), parseIp("100.64.0.9")), undefined);
    assert.equal(responder.counters.get("drop-dns-foreign"), 1);
    // Its own address, and containers on it.
    for (const from of ["100.64.0.1", "172.17.0.2"])
      assert.equal(rcodeOf(await ask(query("bob.perch.internal"), parseIp(from))), 0);
  });

  test("what is no question is counted and dropped", async () => {
    const good = query("bob.perch.internal");
    const response = Buffer.from(good);
    response[2]! |= 0x80;
    const two = Buffer.from(good);
    two.writeUInt16BE(2, 4);
    const pointer = Buffer.concat([good.subarray(0, 12), Buffer.from([0xc0, 0, 0, 1, 0, 1])]);
    const bad = [new Uint8Array(), good.subarray(0, 11), good.subarray(0, 20), response, two, pointer];
    for (const message of bad) assert.equal(await ask(message), undefined);
    assert.equal(responder.counters.get("drop-dns-malformed"), bad.length);
    assert.equal(responder.counters.get("dns-questions"), 0);
  });

  test("other operations, classes and versions of EDNS are refused as the RFCs say", async () => {
    const notify = query("bob.perch.internal");
    notify[2]! |= 4 << 3;
    assert.equal(rcodeOf(await ask(notify)), 4);
    const chaos = query("version.bind", "TXT");
    chaos.writeUInt16BE(3, chaos.length - 2);
    assert.equal(rcodeOf(await ask(chaos)), 5);
    const opt: Answer = {
      type: "OPT",
      name: ".",
      udpPayloadSize: 1232,
      extendedRcode: 0,
      ednsVersion: 1,
      flags: 0,
      flag_do: false,
      options: [],
    };
    const reply = decode(Buffer.from((await ask(query("bob.perch.internal", "A", { additionals: [opt] })))!));
    const found = reply.additionals![0]!;
    assert.equal(found.type === "OPT" && found.extendedRcode, 1, "BADVERS");
  });

  test("any bytes are answered or dropped, never thrown at, and what is answered can be read", async () => {
    const seed = query("bob.perch.internal", "A");
    const bytes = fc.oneof(
      fc.uint8Array({ maxLength: 80 }),
      fc.array(fc.tuple(fc.nat(seed.length - 1), fc.nat(255)), { maxLength: 6 }).map((changes) => {
        const message = Uint8Array.from(seed);
        for (const [at, value] of changes) message[at] = value;
        return message;
      }),
    );
    await fc.assert(
      fc.asyncProperty(bytes, async (message) => {
        const reply = await ask(message);
        if (reply) decode(Buffer.from(reply));
      }),
      { numRuns: 3000 },
    );
  });

  test("a question that nobody answers is a failure, not silence", async () => {
    responder.knowledge = knowledge({}, [{ address: LOOPBACK, port: 9 }]);
    assert.equal(rcodeOf(await ask(query("www.corp.example"))), 2);
    assert.equal(asked.length, 1);
    assert.equal(rcodeOf(await ask(query("example.org"))), 5, "nobody to ask");
    assert.equal(responder.counters.get("dns-unanswered"), 1);
  });
});

/** A name server of somebody else, as little as it takes. */
async function upstream(
  answer: (message: Buffer) => Buffer | undefined,
): Promise<{ endpoint: Endpoint; socket: Socket; asked: Buffer[] } & Disposable> {
  const socket = createSocket("udp4");
  const asked: Buffer[] = [];
  socket.on("message", (message, from) => {
    asked.push(message);
    const reply = answer(message);
    if (reply) socket.send(reply, from.port, from.address);
  });
  await new Promise<void>((resolve) => socket.bind(0, "127.0.0.1", resolve));
  return {
    endpoint: { address: LOOPBACK, port: socket.address().port },
    socket,
    asked,
    [Symbol.dispose]: () => void socket.close(),
  };
}

const reply = (message: Buffer, rcode = 0, data = "10.1.2.3"): Buffer => {
  const { id, questions = [] } = decode(message);
  const answers: Answer[] = rcode === 0 ? [{ type: "A", name: questions[0]!.name, ttl: 5, data }] : [];
  return encode({ type: "response", id: id!, flags: rcode, questions, answers });
};

describe("other name servers", { timeout: 15_000 }, () => {
  test("the answer carries the asker's ID, and servers see another one", async () => {
    using server = await upstream((message) => reply(message));
    const forwarder = new Forwarder(systemClock);
    const found = decode(Buffer.from((await forwarder.ask(query("www.corp.example"), [server.endpoint], false))!));
    assert.equal(found.id, 77);
    assert.equal(forwarder.inFlight, 0);
  });

  test("who does not answer, fails or refuses is followed by the next; the one that helped is asked first from then on", async () => {
    using refusing = await upstream((message) => reply(message, 5));
    using good = await upstream((message) => reply(message));
    const closed = await upstream(() => undefined);
    closed[Symbol.dispose]();
    const forwarder = new Forwarder(systemClock);
    const servers = [closed.endpoint, refusing.endpoint, good.endpoint];
    for (let i = 0; i < 2; i++)
      assert.equal(rcodeOf(await forwarder.ask(query("www.corp.example"), servers, false)), 0);
    assert.deepEqual([refusing.asked.length, good.asked.length], [1, 2]);
    // When all refuse, their refusal is the answer.
    assert.equal(rcodeOf(await forwarder.ask(query("x.corp.example"), [refusing.endpoint], false)), 5);
  });

  test("forged answers are ignored: another ID, another question, no answer at all", async () => {
    using server = await upstream((message) => {
      const wrongId = reply(message);
      wrongId.writeUInt16BE((message.readUInt16BE(0) + 1) & 0xffff, 0);
      const wrongName = reply(query("evil.example"));
      wrongName.writeUInt16BE(message.readUInt16BE(0), 0);
      for (const forged of [wrongId, wrongName, message, Buffer.alloc(3)])
        server.socket.send(forged, ...sender(server.socket));
      return reply(message);
    });
    let last: { port: number; address: string } | undefined;
    server.socket.prependListener("message", (_, from) => {
      last = from;
    });
    const sender = (_: Socket): [number, string] => [last!.port, last!.address];
    const found = await new Forwarder(systemClock).ask(query("www.corp.example"), [server.endpoint], false);
    assert.equal(decode(Buffer.from(found!)).questions![0]!.name, "www.corp.example");
  });

  test("a silent server costs its time and no more, and the end ends what is under way", async () => {
    using silent = await upstream(() => undefined);
    const clock = new ManualClock();
    const forwarder = new Forwarder(clock);
    const waiting = forwarder.ask(query("www.corp.example"), [silent.endpoint], false);
    await new Promise((resolve) => silent.socket.once("message", resolve));
    clock.advance(SERVER_PATIENCE);
    assert.equal(await waiting, undefined);
    assert.equal(clock.pending, 0);
    const other = forwarder.ask(query("www.corp.example"), [silent.endpoint], false);
    forwarder.close();
    assert.equal(await other, undefined);
    assert.equal(forwarder.inFlight, 0);
  });

  test("over TCP the answer comes whole, however it is cut", async () => {
    const server = createServer((socket) => {
      socket.once("data", (data) => {
        const message = reply(data.subarray(2));
        const length = Buffer.from([message.length >> 8, message.length & 255]);
        socket.write(length.subarray(0, 1));
        setTimeout(() => socket.write(Buffer.concat([length.subarray(1), message.subarray(0, 9)])), 10);
        setTimeout(() => socket.end(message.subarray(9)), 20);
      });
    });
    await new Promise<void>((resolve) => server.listen(0, "127.0.0.1", resolve));
    const { port } = server.address() as { port: number };
    const found = await new Forwarder(systemClock).ask(query("www.corp.example"), [{ address: LOOPBACK, port }], true);
    assert.equal(rcodeOf(found), 0);
    await new Promise((resolve) => server.close(resolve));
  });
});

const hasDig = await run("dig", ["-v"]).then(
  () => true,
  () => false,
);

describe("dig asks over real sockets", { skip: !hasDig && "needs bind9-dnsutils" }, () => {
  let server: DnsServer;
  let elsewhere: Awaited<ReturnType<typeof upstream>>;

  before(async () => {
    elsewhere = await upstream((message) => reply(message));
    const table = makeTable();
    table.setRecords("zones", [
      { name: "out.perch.internal" as DomainName, type: "CNAME", data: "www.corp.example", ttl: 60 },
    ]);
    const forwarder = new Forwarder(systemClock);
    const responder = new DnsResponder(
      { clock: systemClock, table, forwarder, wake: () => false },
      knowledge({}, [elsewhere.endpoint]),
    );
    server = await DnsServer.listen(
      { address: LOOPBACK, port: 0 },
      (...message) => responder.answer(...message),
      silentLogger,
    );
  });
  after(async () => {
    await server?.close();
    elsewhere?.[Symbol.dispose]();
  });

  const dig = async (...args: string[]): Promise<string> =>
    (await run("dig", ["@127.0.0.1", "-p", String(server.endpoint.port), "+tries=1", "+time=2", ...args])).stdout;

  test("what does not fit in a datagram comes over TCP, which dig takes by itself", async () => {
    const short = await dig("+ignore", "+noedns", "crowd.perch.internal");
    assert.match(short, /flags: qr aa tc /);
    assert.match(short, /ANSWER: 0/);
    const whole = await dig("crowd.perch.internal");
    assert.match(whole, /ANSWER: 60/);
    assert.match(whole, /\(TCP\)|Truncated, retrying in TCP/);
    assert.match(await dig("+notcp", "+bufsize=4096", "+ignore", "crowd.perch.internal"), /udp: 1232/);
  });

  test("an alias that leads out is followed to its end", async () => {
    const found = await dig("out.perch.internal");
    assert.match(found, /out\.perch\.internal\.\s+60\s+IN\s+CNAME\s+www\.corp\.example\./);
    assert.match(found, /www\.corp\.example\.\s+5\s+IN\s+A\s+10\.1\.2\.3/);
  });

  test("domains of a group are asked for where the network says, unknown types included", async () => {
    assert.equal((await dig("+short", "www.corp.example")).trim(), "10.1.2.3");
    assert.match(await dig("HTTPS", "bob.perch.internal"), /status: NOERROR[\s\S]*ANSWER: 0, AUTHORITY: 1/);
    assert.match(await dig("TYPE64000", "bob.perch.internal"), /status: NOERROR[\s\S]*AUTHORITY: 1/);
  });

  test("questions in a row on one connection are all answered; more connections than are allowed are closed", async () => {
    const socket = connect(server.endpoint.port, "127.0.0.1");
    const message = query("bob.perch.internal");
    const framed = Buffer.concat([Uint8Array.of(0, message.length), message]);
    const count = 50;
    socket.end(Buffer.concat(Array.from({ length: count }, () => framed)));
    let bytes = 0;
    for await (const part of socket) bytes += (part as Buffer).length;
    assert.equal(bytes, count * (2 + message.length + 16 + "bob.perch.internal".length + 2 - 2));
    const idle = Array.from({ length: CONNECTIONS_MAX + 3 }, () => connect(server.endpoint.port, "127.0.0.1"));
    const ended = idle.map((each) => new Promise((resolve) => each.on("error", resolve).on("close", resolve)));
    await Promise.race(ended);
    for (const each of idle) each.destroy();
    await Promise.all(ended);
    assert.equal((await dig("+short", "+tcp", "bob.perch.internal")).trim(), "100.64.0.2");
  });
});
