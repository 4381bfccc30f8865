import assert from "node:assert/strict";
import { test } from "node:test";
import { encodeUnixAddress } from "./unix-datagram.ts";

test("a path ends with a zero, an abstract name begins with one and has none at its end", () => {
  assert.deepEqual([...encodeUnixAddress("/a")!], [1, 0, 0x2f, 0x61, 0]);
  assert.deepEqual([...encodeUnixAddress("@ab")!], [1, 0, 0, 0x61, 0x62]);
});

test("what is neither, empty, holds a zero or is longer than the kernel's field is no address", () => {
  const longest = `/${"x".repeat(106)}`;
  assert.equal(encodeUnixAddress(longest)?.length, 110);
  for (const wrong of ["", "@", "/", "run/notify", "vsock:2:1234", "/a\0b", `${longest}x`, `@${"x".repeat(108)}`])
    assert.equal(encodeUnixAddress(wrong), undefined, JSON.stringify(wrong));
});
