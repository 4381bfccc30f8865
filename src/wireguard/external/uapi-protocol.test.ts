import assert from "node:assert/strict";
import { describe, it } from "node:test";
import fc from "fast-check";
import { parseEndpoint, parsePrefix } from "#base/ip.ts";
import { PresharedKey, PrivateKey, PublicKey } from "#base/keys.ts";
import type { PeerChange } from "./parts.ts";
import {
  encodeGet,
  encodeListenPort,
  encodeNothing,
  encodePeerChanges,
  encodePrivateKey,
  peerChangeBytes,
  readEndpoint,
  type UapiReply,
  UapiReplyReader,
} from "./uapi-protocol.ts";

const KEY = PublicKey.fromBytes(new Uint8Array(32).fill(0xab));
const OTHER = PublicKey.fromBytes(new Uint8Array(32).fill(0x01));
const [HEX, OTHER_HEX] = ["ab".repeat(32), "01".repeat(32)];

const textOf = (bytes: Uint8Array): string => Buffer.from(bytes).toString("latin1");

function read(text: string, pieceBytes = text.length): UapiReply | undefined {
  const reader = new UapiReplyReader();
  for (let at = 0; at < text.length; at += pieceBytes) {
    const reply = reader.push(Buffer.from(text.slice(at, at + pieceBytes), "latin1"));
    if (reply) return reply;
  }
  return undefined;
}

describe("a request of the configuration protocol", () => {
  it("asks for everything", () => {
    assert.equal(textOf(encodeGet()), "get=1\n\n");
  });

  it("changes nothing", () => {
    assert.equal(textOf(encodeNothing()), "set=1\n\n");
  });

  it("is made anew each time, as it is wiped once sent", () => {
    encodeGet().fill(0);
    assert.equal(textOf(encodeGet()), "get=1\n\n");
  });

  it("sets key and port", () => {
    const key = PrivateKey.fromBytes(new Uint8Array(32).fill(0x40));
    assert.equal(textOf(encodePrivateKey(key)), `set=1\nprivate_key=${"40".repeat(32)}\n\n`);
    assert.equal(textOf(encodeListenPort(51820)), "set=1\nlisten_port=51820\n\n");
  });

  it("says of a peer what was given, and of its allowed IPs that they replace", () => {
    const presharedKey = PresharedKey.parse(Buffer.alloc(32, 0x0f).toString("base64"));
    const request = encodePeerChanges([
      {
        key: KEY,
        updateOnly: true,
        endpoint: parseEndpoint("[2001:db8::1]:7"),
        allowedIps: [parsePrefix("10.0.0.1/32"), parsePrefix("fd00::/64")],
        presharedKey,
        keepalive: 25,
      },
      { key: OTHER, presharedKey: null, allowedIps: [] },
      { key: KEY, remove: true },
      { key: OTHER, keepalive: 0 },
    ]);
    assert.equal(
      textOf(request),
      [
        "set=1",
        `public_key=${HEX}`,
        "update_only=true",
        `preshared_key=${"0f".repeat(32)}`,
        "endpoint=[2001:db8::1]:7",
        "replace_allowed_ips=true",
        "allowed_ip=10.0.0.1/32",
        "allowed_ip=fd00::/64",
        "persistent_keepalive_interval=25",
        `public_key=${OTHER_HEX}`,
        `preshared_key=${"00".repeat(32)}`,
        "replace_allowed_ips=true",
        `public_key=${HEX}`,
        "remove=true",
        `public_key=${OTHER_HEX}`,
        "persistent_keepalive_interval=0",
        "\n",
      ].join("\n"),
    );
  });

  it("never needs more room than was said", () => {
    const longest: PeerChange = {
      key: KEY,
      updateOnly: true,
      endpoint: parseEndpoint("[2001:db8:1111:2222:3333:4444:5555:6666]:65535"),
      allowedIps: [parsePrefix("2001:db8:1111:2222:3333:4444:5555:6666/128"), parsePrefix("255.255.255.255/32")],
      presharedKey: PresharedKey.parse(Buffer.alloc(32, 0xff).toString("base64")),
      keepalive: 65_535,
    };
    for (const peer of [longest, { key: KEY, remove: true } as const])
      assert.ok(encodePeerChanges([peer]).length <= peerChangeBytes(peer));
  });
});

describe("a reply of the configuration protocol", () => {
  const told = [
    `private_key=${"77".repeat(32)}`,
    "listen_port=51820",
    "fwmark=1",
    `public_key=${HEX}`,
    `preshared_key=${"88".repeat(32)}`,
    "protocol_version=1",
    "endpoint=[fe80::1%eth0]:4000",
    "last_handshake_time_sec=1700000000",
    "last_handshake_time_nsec=250000000",
    "tx_bytes=148",
    "rx_bytes=9007199254740991",
    "persistent_keepalive_interval=0",
    "allowed_ip=10.0.0.1/32",
    `public_key=${OTHER_HEX}`,
    "last_handshake_time_sec=0",
    "last_handshake_time_nsec=0",
    "tx_bytes=0",
    "rx_bytes=0",
    "errno=0",
    "",
    "",
  ].join("\n");

  it("tells of each peer, however it is cut into pieces", () => {
    for (let pieceBytes = 1; pieceBytes <= told.length; pieceBytes += pieceBytes < 80 ? 1 : 97) {
      const reply = read(told, pieceBytes);
      assert.equal(reply?.errno, 0);
      assert.equal(reply.reading.listenPort, 51820);
      assert.deepEqual(
        [...reply.reading.peers],
        [
          [
            KEY,
            {
              endpoint: parseEndpoint("[fe80::1]:4000"),
              rxBytes: 9007199254740991,
              txBytes: 148,
              lastHandshake: 1_700_000_000_250,
            },
          ],
          [OTHER, { endpoint: undefined, rxBytes: 0, txBytes: 0, lastHandshake: 0 }],
        ],
      );
    }
  });

  it("has the error's number, which some devices give with a minus", () => {
    assert.equal(read("errno=-98\n\n")?.errno, 98);
    assert.equal(read("errno=98\n\n")?.errno, 98);
    assert.equal(read("errno=0\n"), undefined, "the empty line is missing");
  });

  it("leaves nothing of itself in the pieces that it was read from", () => {
    const reader = new UapiReplyReader();
    const pieces = [told.slice(0, 40), told.slice(40)].map((text) => Buffer.from(text, "latin1"));
    assert.ok(pieces.map((piece) => reader.push(piece)).at(-1));
    for (const piece of pieces) assert.deepEqual(piece, Buffer.alloc(piece.length));
  });

  it("is read without an endpoint where the device names none that is one", () => {
    for (const text of ["", "(none)", "example.org:1", "1.2.3.4", "1.2.3.4:99999"])
      assert.equal(readEndpoint(text), undefined, text);
  });

  it("is refused with a code, or waited for, whatever comes", () => {
    fc.assert(
      fc.property(
        fc.array(fc.oneof(fc.string(), fc.constantFrom(...told.split("\n"), "public_key=", "errno=", "rx_bytes=-"))),
        (lines) => {
          try {
            read(`${lines.join("\n")}\n\n`);
          } catch (error) {
            assert.equal((error as { code?: string }).code, "control-failed", String(error));
          }
        },
      ),
    );
    assert.throws(() => read("x".repeat(10_000)), { code: "control-failed" });
  });
});
