import assert from "node:assert/strict";
import { BlockList } from "node:net";
import { describe, test } from "node:test";
import fc from "fast-check";
import {
  formatEndpoint,
  formatPrefix,
  type IpAddress,
  ipFromBytes,
  ipToBytes,
  isHostPrefix,
  isV6,
  maskPrefix,
  parseEndpoint,
  parseIp,
  parsePrefix,
  prefixContains,
  sameEndpoint,
} from "./ip.ts";

const v4Bytes = fc.uint8Array({ minLength: 4, maxLength: 4 });
/** 16 bytes with runs of zero groups, which is where the text form is hard. */
const v6Bytes = fc
  .array(fc.oneof({ weight: 2, arbitrary: fc.constant(0) }, { weight: 1, arbitrary: fc.nat(0xffff) }), {
    minLength: 8,
    maxLength: 8,
  })
  .map((groups) => Uint8Array.from(groups.flatMap((group) => [group >> 8, group & 0xff])));
const anyBytes = fc.oneof(v4Bytes, v6Bytes);
const anyAddress: fc.Arbitrary<IpAddress> = anyBytes.map(ipFromBytes);

const isMapped = (bytes: Uint8Array): boolean =>
  bytes.length === 16 && Buffer.from(bytes.subarray(0, 12)).equals(Buffer.from("00000000000000000000ffff", "hex"));

describe("addresses", () => {
  for (const [text, canonical, because] of [
    ["2001:0db8::0001", "2001:db8::1", "4.1 leading zeros"],
    ["2001:db8:0:0:0:0:2:1", "2001:db8::2:1", "4.2.1 shorten as much as possible"],
    ["2001:db8:0:1:1:1:1:1", "2001:db8:0:1:1:1:1:1", "4.2.2 one group of zeros stays"],
    ["2001:db8::1:1:1:1:1", "2001:db8:0:1:1:1:1:1", "4.2.2 also when it came shortened"],
    ["2001:0:0:1:0:0:0:1", "2001:0:0:1::1", "4.2.3 the longest run"],
    ["2001:db8:0:0:1:0:0:1", "2001:db8::1:0:0:1", "4.2.3 the first of two"],
    ["2001:DB8::ABCD", "2001:db8::abcd", "4.3 lower case"],
    ["::ffff:192.0.2.1", "192.0.2.1", "an IPv4-mapped address is IPv4"],
    ["::FFFF:C000:201", "192.0.2.1", "also in hexadecimal"],
    ["64:ff9b::192.0.2.33", "64:ff9b::c000:221", "dotted quad elsewhere is bits"],
    ["::", "::", "all zero"],
    ["::1", "::1", "loopback"],
    ["1::", "1::", "zeros at the end"],
    ["0:0:0:0:0:0:0:0", "::", "zeros in full"],
  ] as const)
    test(`${text} is written ${canonical} (RFC 5952: ${because})`, () => {
      assert.equal(parseIp(text), canonical);
    });

  test("what is not an address is refused with the text, cut to a length", () => {
    const bad = [
      "",
      "1.2.3",
      "1.2.3.4.5",
      "256.1.1.1",
      "1.2.3.04",
      "fe80::1%eth0",
      "[::1]",
      "1::2::3",
      "1:2:3",
      "::g",
      " 1.2.3.4",
    ];
    for (const text of bad) assert.throws(() => parseIp(text), { code: "address-malformed" }, text);
    assert.throws(
      () => parseIp("x".repeat(10_000)),
      (error: Error) => error.message.length < 200,
    );
  });

  test("every address survives text and bytes, and equal addresses have equal text", () => {
    fc.assert(
      fc.property(anyBytes, (bytes) => {
        const address = ipFromBytes(bytes);
        assert.equal(parseIp(address), address);
        assert.equal(isV6(address), bytes.length === 16 && !isMapped(bytes));
        assert.deepEqual(ipToBytes(address), isMapped(bytes) ? bytes.subarray(12) : bytes);
      }),
    );
  });

  test("the text of IPv6 is what the URL standard's serializer writes", () => {
    fc.assert(
      fc.property(v6Bytes, (bytes) => {
        if (isMapped(bytes)) return;
        const full = (Buffer.from(bytes).toString("hex").match(/.{4}/g) ?? []).join(":");
        assert.equal(parseIp(full), new URL(`http://[${full}]`).hostname.slice(1, -1));
      }),
    );
  });

  test("a wrong number of bytes is refused", () => {
    for (const length of [0, 3, 5, 15, 17])
      assert.throws(() => ipFromBytes(new Uint8Array(length)), {
        code: "address-malformed",
        message: new RegExp(`${length}`),
      });
  });
});

describe("prefixes", () => {
  const anyPrefix = anyAddress.chain((address) => fc.nat(isV6(address) ? 128 : 32).map((bits) => ({ address, bits })));

  /** The address's bits as text: slow and obviously right. */
  const bitsOf = (address: IpAddress): string =>
    [...ipToBytes(address)].map((byte) => byte.toString(2).padStart(8, "0")).join("");

  test("containment is that the leading bits are the same text", () => {
    const near = anyPrefix.chain((prefix) =>
      fc.tuple(
        fc.constant(prefix),
        // An address that differs from the prefix in one bit, or anywhere: both answers occur often.
        fc.oneof(
          anyAddress,
          fc.nat(ipToBytes(prefix.address).length * 8 - 1).map((bit) => {
            const bytes = ipToBytes(prefix.address);
            bytes[bit >> 3]! ^= 0x80 >> (bit & 7);
            return ipFromBytes(bytes);
          }),
        ),
      ),
    );
    fc.assert(
      fc.property(near, ([prefix, address]) => {
        const model =
          isV6(prefix.address) === isV6(address) &&
          bitsOf(prefix.address).slice(0, prefix.bits) === bitsOf(address).slice(0, prefix.bits);
        assert.equal(prefixContains(prefix, address), model);
      }),
    );
  });

  test("containment agrees with node's own BlockList", () => {
    fc.assert(
      fc.property(anyPrefix, anyAddress, (prefix, address) => {
        if (isV6(prefix.address) !== isV6(address) || prefix.bits === 0) return;
        const list = new BlockList();
        list.addSubnet(prefix.address, prefix.bits, isV6(prefix.address) ? "ipv6" : "ipv4");
        assert.equal(prefixContains(prefix, address), list.check(address, isV6(address) ? "ipv6" : "ipv4"));
      }),
    );
  });

  test("a masked prefix keeps the leading bits and clears the rest", () => {
    fc.assert(
      fc.property(anyPrefix, (prefix) => {
        const masked = maskPrefix(prefix);
        const bits = bitsOf(prefix.address);
        assert.equal(bitsOf(masked.address), bits.slice(0, prefix.bits).padEnd(bits.length, "0"));
        assert.equal(masked.bits, prefix.bits);
      }),
    );
  });

  test("every prefix survives its text, with its host bits", () => {
    fc.assert(
      fc.property(anyPrefix, (prefix) => {
        assert.deepEqual(parsePrefix(formatPrefix(prefix)), prefix);
      }),
    );
  });

  test("an address without a length is a host prefix", () => {
    assert.deepEqual(parsePrefix("192.0.2.1"), { address: "192.0.2.1", bits: 32 });
    assert.deepEqual(parsePrefix("2001:db8::1"), { address: "2001:db8::1", bits: 128 });
    assert.ok(isHostPrefix(parsePrefix("2001:db8::1/128")));
    assert.ok(!isHostPrefix(parsePrefix("2001:db8::1/32")));
  });

  test("a length outside the family is refused with the limit", () => {
    for (const text of ["192.0.2.1/33", "192.0.2.1/-1", "192.0.2.1/", "192.0.2.1/x", "192.0.2.1/1e1"])
      assert.throws(() => parsePrefix(text), { code: "prefix-malformed", message: /32/ }, text);
    assert.throws(() => parsePrefix("2001:db8::/129"), { code: "prefix-malformed", message: /128/ });
  });
});

describe("endpoints", () => {
  test("every endpoint survives its text", () => {
    fc.assert(
      fc.property(anyAddress, fc.nat(65535), (address, port) => {
        const endpoint = { address, port };
        const parsed = parseEndpoint(formatEndpoint(endpoint));
        assert.deepEqual(parsed, endpoint);
        assert.ok(sameEndpoint(parsed, endpoint));
        assert.ok(!sameEndpoint(parsed, { address, port: port ^ 1 }));
      }),
    );
  });

  test("what is not ADDRESS:PORT is refused", () => {
    for (const text of ["1.2.3.4", "1.2.3.4:", "1.2.3.4:65536", "1.2.3.4:-1", "::1:80", "[::1]", ":80", "1.2.3.4:80 "])
      assert.throws(() => parseEndpoint(text), { code: "endpoint-malformed" }, text);
    assert.throws(() => parseEndpoint("example.org:80"), { code: "address-malformed" });
  });

  test("no endpoint equals none only", () => {
    assert.ok(sameEndpoint(undefined, undefined));
    assert.ok(!sameEndpoint(parseEndpoint("1.2.3.4:5"), undefined));
  });
});
