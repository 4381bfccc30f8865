import assert from "node:assert/strict";
import { test } from "node:test";
import fc from "fast-check";
import { FrameReader } from "./frame-reader.ts";

const MAX_BYTES = 8820;

/** A frame as a client sends it. */
function frame(payload: Uint8Array, { first = 0x82, masked = true, key = [0x11, 0x22, 0x33, 0x44] } = {}): Buffer {
  const { length } = payload;
  const long = length < 126 ? [length] : [126, length >> 8, length & 0xff];
  long[0]! |= masked ? 0x80 : 0;
  const body = Buffer.from(payload);
  if (masked) for (let i = 0; i < length; i++) body[i]! ^= key[i & 3]!;
  return Buffer.concat([Buffer.from([first, ...long, ...(masked ? key : [])]), body]);
}

/** What came out, in order; pieces for the library that follow each other are joined. */
function read(chunks: readonly Buffer[]): { readonly kind: "message" | "other"; readonly bytes: string }[] {
  const out: { kind: "message" | "other"; bytes: string }[] = [];
  const reader = new FrameReader(
    {
      deliver: (message) => void out.push({ kind: "message", bytes: message.toString("hex") }),
      other: (bytes) => {
        const last = out.at(-1);
        if (last?.kind === "other") last.bytes += bytes.toString("hex");
        else out.push({ kind: "other", bytes: bytes.toString("hex") });
      },
    },
    MAX_BYTES,
  );
  for (const chunk of chunks) reader.push(chunk);
  return out;
}

const hex = (bytes: Uint8Array): string => Buffer.from(bytes).toString("hex");

test("plain frames are unmasked, of every length a message may have", () => {
  for (const length of [0, 1, 3, 4, 5, 125, 126, 127, 1350, MAX_BYTES]) {
    const payload = Buffer.alloc(length, "perch");
    assert.deepEqual(read([frame(payload)]), [{ kind: "message", bytes: hex(payload) }], String(length));
  }
});

test("all other frames go on untouched: control, text, unmasked, reserved bits, too long", () => {
  const others = [
    frame(Buffer.from("ping"), { first: 0x89 }),
    frame(Buffer.from([3, 232]), { first: 0x88 }),
    frame(Buffer.from("text"), { first: 0x81 }),
    frame(Buffer.from("plain"), { masked: false }),
    frame(Buffer.from("packed"), { first: 0xc2 }),
    frame(Buffer.alloc(MAX_BYTES + 1)),
  ];
  for (const other of others) {
    assert.deepEqual(read([Buffer.concat([frame(Buffer.from("a")), other, frame(Buffer.from("b"))])]), [
      { kind: "message", bytes: hex(Buffer.from("a")) },
      { kind: "other", bytes: hex(other) },
      { kind: "message", bytes: hex(Buffer.from("b")) },
    ]);
  }
});

test("a fragmented message goes on with all that comes before its end", () => {
  const begin = frame(Buffer.from("be"), { first: 0x02 });
  const wrong = frame(Buffer.from("a binary frame has no place here"));
  const ping = frame(Buffer.from("ping"), { first: 0x89 });
  const middle = frame(Buffer.from("gi"), { first: 0x00 });
  const end = frame(Buffer.from("n"), { first: 0x80 });
  const bytes = [begin, ping, middle, end];
  assert.deepEqual(read([Buffer.concat([...bytes, frame(Buffer.from("x"))])]), [
    { kind: "other", bytes: hex(Buffer.concat(bytes)) },
    { kind: "message", bytes: hex(Buffer.from("x")) },
  ]);
  assert.deepEqual(read([begin, wrong]), [{ kind: "other", bytes: hex(Buffer.concat([begin, wrong])) }]);
});

test("after a frame with a length of 64 bits everything goes on", () => {
  const huge = Buffer.from([0x82, 0xff, 0, 0, 0, 1, 0, 0, 0, 0, 1, 2, 3, 4]);
  const next = frame(Buffer.from("x"));
  assert.deepEqual(read([huge, next]), [{ kind: "other", bytes: hex(Buffer.concat([huge, next])) }]);
});

test("frames come out the same wherever the stream is cut", () => {
  const oneFrame = fc.record({
    payload: fc.oneof(fc.uint8Array({ maxLength: 300 }), fc.constant(new Uint8Array(8000).fill(7))),
    first: fc.constantFrom(0x82, 0x82, 0x82, 0x89, 0x8a),
    key: fc.tuple(fc.nat(255), fc.nat(255), fc.nat(255), fc.nat(255)),
  });
  fc.assert(
    fc.property(fc.array(oneFrame, { maxLength: 8 }), fc.array(fc.nat(20_000), { maxLength: 12 }), (frames, cuts) => {
      const wire = frames.map(({ payload, first, key }) =>
        frame(first === 0x82 ? payload : payload.subarray(0, 125), { first, key }),
      );
      const stream = Buffer.concat(wire);
      const ends = [...new Set([...cuts.filter((cut) => cut < stream.length), stream.length])].sort((a, b) => a - b);
      const chunks = ends.map((end, index) => Buffer.from(stream.subarray(ends[index - 1] ?? 0, end)));
      const messages = read(chunks).filter(({ kind }) => kind === "message");
      const others = read(ends.map((end, index) => Buffer.from(stream.subarray(ends[index - 1] ?? 0, end))));
      assert.deepEqual(
        messages.map(({ bytes }) => bytes),
        frames.filter(({ first }) => first === 0x82).map(({ payload }) => hex(payload)),
      );
      assert.equal(
        others
          .filter(({ kind }) => kind === "other")
          .map(({ bytes }) => bytes)
          .join(""),
        wire
          .filter((_, index) => frames[index]!.first !== 0x82)
          .map(hex)
          .join(""),
      );
    }),
  );
});
