import assert from "node:assert/strict";
import { describe, test } from "node:test";
import fc from "fast-check";
import { parseIp } from "#base/ip.ts";
import { errnoName } from "#net/errno.ts";
import { libc } from "#net/libc.ts";
import { assembleFilter, attachFilter } from "#net/socket-filter.ts";
import { COOKIE_REPLY_BYTES, INITIATION_BYTES, RESPONSE_BYTES } from "../../messages.ts";
import { encodeRawUdp, parseRawUdp, parseRawV4, type RawPiece, rawPieces } from "./raw-datagram.ts";
import { rawFilterV4 } from "./raw-filter.ts";

const PORT = 51820;
const AF_UNIX = 1;
const SOCK_DGRAM_NONBLOCK_CLOEXEC = 2 | 0x800 | 0x80000;

/** A WireGuard message of that outer form. */
function message(type: number, bytes: number): Buffer {
  const out = Buffer.alloc(bytes, 0xab);
  out.set([type, 0, 0, 0]);
  return out;
}

function stun(attributeBytes = 8): Buffer {
  const out = Buffer.alloc(20 + attributeBytes, 0x11);
  out.writeUInt16BE(0x0001, 0);
  out.writeUInt16BE(attributeBytes, 2);
  out.writeUInt32BE(0x2112a442, 4);
  return out;
}

interface PacketOptions {
  readonly source?: string;
  readonly port?: number;
  readonly headerWords?: number;
  /** Of the UDP header, when it lies. */
  readonly udpBytes?: number;
}

function packetV4(payload: Uint8Array, options: PacketOptions = {}): Buffer {
  const { source = "10.1.2.3", port = PORT, headerWords = 5, udpBytes } = options;
  const udp = encodeRawUdp({ source: 3478, destination: port }, payload, {
    source: parseIp(source),
    destination: parseIp("10.9.8.7"),
  });
  if (udpBytes !== undefined) new DataView(udp.buffer).setUint16(4, udpBytes);
  const header = Buffer.alloc(headerWords * 4, 1);
  header[0] = 0x40 | headerWords;
  header.writeUInt16BE(header.length + udp.length, 2);
  header[9] = 17;
  header.set(source.split(".").map(Number), 12);
  header.set([10, 9, 8, 7], 16);
  return Buffer.concat([header, udp]);
}

const kinds = (payload: Uint8Array): RawPiece["kind"][] => [...rawPieces(payload)].map(({ kind }) => kind);

describe("what a raw socket receives", () => {
  test("is taken apart with an IPv4 header of any length", () => {
    for (const headerWords of [5, 6, 15]) {
      const datagram = parseRawV4(packetV4(stun(), { headerWords }));
      assert.equal(datagram?.source, "10.1.2.3");
      assert.equal(datagram?.destination, "10.9.8.7");
      assert.deepEqual([datagram?.sourcePort, datagram?.destinationPort], [3478, PORT]);
      assert.deepEqual(Buffer.from(datagram!.payload), stun());
    }
  });

  test("is nothing when lengths do not fit", () => {
    const whole = packetV4(stun());
    for (let bytes = 0; bytes < whole.length; bytes++) assert.equal(parseRawV4(whole.subarray(0, bytes)), undefined);
    const shortHeader = packetV4(stun());
    shortHeader[0] = 0x44;
    assert.equal(parseRawV4(shortHeader), undefined);
    assert.equal(parseRawV4(packetV4(stun(), { udpBytes: 7 })), undefined);
    assert.equal(parseRawV4(packetV4(stun(), { udpBytes: 37 })), undefined);
    assert.equal(parseRawUdp(Buffer.alloc(7)), undefined);
  });

  test("may have bytes behind the UDP datagram, which are left out", () => {
    assert.equal(parseRawV4(packetV4(stun(), { udpBytes: 28 }))?.payload.length, 20);
    assert.equal(parseRawV4(Buffer.concat([packetV4(stun()), Buffer.alloc(6)]))?.payload.length, 28);
  });
});

describe("messages in a payload", () => {
  test("are STUN or handshakes, and data is neither, whatever its index says", () => {
    assert.deepEqual(kinds(stun()), ["stun"]);
    assert.deepEqual(kinds(stun(0)), ["stun"]);
    for (const [type, bytes] of [
      [1, INITIATION_BYTES],
      [2, RESPONSE_BYTES],
      [3, COOKIE_REPLY_BYTES],
    ] as const) {
      assert.deepEqual(kinds(message(type, bytes)), ["handshake"]);
      assert.deepEqual(kinds(message(type, bytes - 1)), []);
    }
    const data = message(4, 96);
    data.writeUInt32BE(0x2112a442, 4);
    assert.deepEqual(kinds(data), []);
    // 20 bytes are too few for WireGuard: a STUN success response of another method begins like a type.
    const short = stun(0);
    short.set([1, 0, 0, 0]);
    assert.deepEqual(kinds(short), ["stun"]);
    assert.deepEqual(kinds(Buffer.from([0x6e, 0x62])), []);
    assert.deepEqual(kinds(Buffer.alloc(0)), []);
  });

  test("come apart when the kernel merged them", () => {
    const [initiation, response] = [message(1, INITIATION_BYTES), message(2, RESPONSE_BYTES)];
    assert.deepEqual(kinds(Buffer.concat([initiation, initiation, stun()])), ["handshake", "handshake", "stun"]);
    assert.deepEqual(kinds(Buffer.concat([response, stun(20)])), ["handshake", "stun"]);
    assert.deepEqual(kinds(Buffer.concat([stun(), stun(), stun(4)])), ["stun", "stun", "stun"]);
  });
});

test("a UDP header has the checksum of RFC 768, which is never 0", () => {
  const addresses = { source: parseIp("192.0.2.1"), destination: parseIp("198.51.100.2") };
  fc.assert(
    fc.property(fc.uint8Array({ maxLength: 60 }), fc.integer({ min: 1, max: 65535 }), (payload, source) => {
      const udp = encodeRawUdp({ source, destination: 53 }, payload, addresses);
      const sum = onesComplementSum([192, 0, 2, 1, 198, 51, 100, 2, 0, 17, udp.length >> 8, udp.length & 0xff, ...udp]);
      assert.equal(sum, 0xffff);
      assert.notEqual((udp[6]! << 8) | udp[7]!, 0);
    }),
  );
});

/** By the book: 16-bit words, carries added in. */
function onesComplementSum(bytes: readonly number[]): number {
  let sum = 0;
  for (let i = 0; i < bytes.length; i += 2) {
    sum += (bytes[i]! << 8) | (bytes[i + 1] ?? 0);
    if (sum > 0xffff) sum -= 0xffff;
  }
  return sum;
}

/** Runs the kernel's own filter machine on packets: a unix socket shows its filter what was sent, from the first byte on. */
class FilterProbe implements Disposable {
  readonly #in: number;
  readonly #out: number;

  constructor(port: number) {
    const pair = new Int32Array(2);
    assert.equal(libc().socketpair(AF_UNIX, SOCK_DGRAM_NONBLOCK_CLOEXEC, 0, pair), 0);
    [this.#in, this.#out] = [pair[0]!, pair[1]!];
    attachFilter(this.#out, assembleFilter(rawFilterV4(port)));
  }

  passes(packet: Uint8Array): boolean {
    const sent = libc().write(this.#in, packet, packet.length);
    // A filter that drops makes sending to a unix socket fail or vanish, as kernels like.
    if (sent < 0) assert.match(errnoName(libc().errno()), /EPERM|EAGAIN/);
    return libc().read(this.#out, Buffer.alloc(2048), 2048) > 0;
  }

  [Symbol.dispose](): void {
    libc().close(this.#in);
    libc().close(this.#out);
  }
}

describe("the kernel's filter for IPv4", { skip: process.platform === "linux" ? false : "needs Linux" }, () => {
  test("lets through what is for us, with a header of any length", () => {
    using probe = new FilterProbe(PORT);
    for (const headerWords of [5, 7, 15])
      for (const payload of [stun(), stun(0), message(1, 148), message(2, 92), message(3, 64)])
        assert.equal(probe.passes(packetV4(payload, { headerWords })), true);
  });

  test("drops data, other ports, this machine's own and what is too short", () => {
    using probe = new FilterProbe(PORT);
    const data = message(4, 96);
    data.writeUInt32BE(0x2112a442, 4);
    for (const packet of [
      packetV4(data),
      packetV4(message(1, 147)),
      packetV4(message(2, 91)),
      packetV4(message(3, 63)),
      packetV4(stun(), { port: PORT + 1 }),
      packetV4(stun(), { source: "127.0.0.1" }),
      packetV4(message(1, 148), { source: "127.9.9.9" }),
      packetV4(stun().subarray(0, 19)),
      packetV4(stun(), { udpBytes: 27 }),
      packetV4(Buffer.from("nb")),
      packetV4(Buffer.alloc(0)),
    ])
      assert.equal(probe.passes(packet), false);
  });

  test("agrees with the parser on whatever comes, when lengths are true", () => {
    using probe = new FilterProbe(PORT);
    const first = fc.constantFrom([1, 0, 0, 0], [2, 0, 0, 0], [3, 0, 0, 0], [4, 0, 0, 0], [0, 1, 0, 8], [1, 1, 0, 0]);
    const cookie = fc.constantFrom([0x21, 0x12, 0xa4, 0x42], [0x21, 0x12, 0xa4, 0x43]);
    const bytes = fc.oneof(fc.integer({ min: 0, max: 160 }), fc.constantFrom(20, 31, 32, 64, 92, 148));
    const payloads = fc
      .tuple(first, cookie, bytes)
      .map(([start, magic, length]) =>
        Buffer.from([...start, ...magic, ...new Array<number>(160).fill(9)]).subarray(0, length),
      );
    fc.assert(
      fc.property(payloads, fc.integer({ min: 5, max: 15 }), (payload, headerWords) => {
        const packet = packetV4(payload, { headerWords });
        const wanted = kinds(parseRawV4(packet)!.payload).length > 0;
        assert.equal(probe.passes(packet), wanted, payload.toString("hex"));
      }),
      { numRuns: 500 },
    );
  });
});

test("no bytes make the parser throw, or give what is not in them", () => {
  fc.assert(
    fc.property(fc.uint8Array({ maxLength: 400 }), (bytes) => {
      for (const datagram of [parseRawV4(bytes), parseRawUdp(bytes)]) {
        if (!datagram) continue;
        assert.ok(datagram.payload.length <= bytes.length - 8);
        const pieces = [...rawPieces(datagram.payload)];
        assert.ok(pieces.reduce((sum, piece) => sum + piece.bytes.length, 0) <= datagram.payload.length);
      }
    }),
    { numRuns: 1000 },
  );
  // Whole packets of which any byte is another.
  fc.assert(
    fc.property(fc.nat(), fc.nat({ max: 255 }), fc.constantFrom(stun(), message(1, 148)), (at, value, payload) => {
      const packet = packetV4(payload);
      packet[at % packet.length] = value;
      const datagram = parseRawV4(packet);
      if (datagram) for (const { bytes } of rawPieces(datagram.payload)) assert.ok(bytes.length <= packet.length - 28);
    }),
    { numRuns: 1000 },
  );
});
