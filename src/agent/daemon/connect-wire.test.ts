import assert from "node:assert/strict";
import { test } from "node:test";
import { toBinary } from "@bufbuild/protobuf";
import fc from "fast-check";
import { encodeMessage } from "#base/flagged-messages.ts";
import { ErrorDetailSchema } from "#gen/daemon_pb.ts";
import { type Envelope, EnvelopeReader, MESSAGE_MAX_BYTES, parseError, RemoteError } from "./connect-wire.ts";
import { DaemonError } from "./daemon-error.ts";

const bytesOf = (text: string): Buffer => Buffer.from(text);

/** What the reader makes of `stream` when it arrives in pieces of these sizes, in turn. */
function readIn(stream: Buffer, sizes: readonly number[]): Envelope[] {
  const reader = new EnvelopeReader();
  const found: Envelope[] = [];
  for (let at = 0, turn = 0; at < stream.length; turn++) {
    const size = sizes[turn % sizes.length]!;
    found.push(...reader.push(stream.subarray(at, at + size)));
    at += size;
  }
  return found;
}

function endEnvelope(json: string): Buffer {
  const envelope = encodeMessage(bytesOf(json));
  envelope[0] = 2;
  return envelope;
}

test("messages come out as they went in, however the stream is cut", () => {
  const messages = fc.array(fc.uint8Array({ maxLength: 300 }), { maxLength: 12 });
  const sizes = fc.array(fc.integer({ min: 1, max: 400 }), { minLength: 1, maxLength: 6 });
  fc.assert(
    fc.property(messages, sizes, (sent, cuts) => {
      const stream = Buffer.concat([...sent.map(encodeMessage), endEnvelope("{}")]);
      const found = readIn(stream, cuts);
      assert.deepEqual(found.pop(), { kind: "end", error: undefined });
      assert.deepEqual(
        found.map((envelope) => envelope.kind === "message" && Buffer.from(envelope.bytes).toString("hex")),
        sent.map((bytes) => Buffer.from(bytes).toString("hex")),
      );
    }),
  );
});

test("an end may carry the error of the call, with the daemon's own code", () => {
  const value = Buffer.from(
    toBinary(ErrorDetailSchema, { $typeName: "perch.daemon.v1.ErrorDetail", code: "peer-unknown", retryable: true }),
  ).toString("base64");
  const json = (details: unknown): string => JSON.stringify({ code: "not_found", message: "no peer", details });
  const known = parseError(
    bytesOf(
      json([
        { type: "google.rpc.X", value: "AA" },
        { type: ErrorDetailSchema.typeName, value },
      ]),
    ),
  );
  assert.ok(known instanceof RemoteError);
  assert.deepEqual([known.code, known.message, known.retryable], ["peer-unknown", "no peer", true]);
  const [end] = readIn(endEnvelope(`{"error":${json([])}}`), [1000]);
  assert.ok(end?.kind === "end" && end.error instanceof DaemonError);
  assert.deepEqual([end.error.code, end.error.message], ["daemon-lost", "no peer"]);
});

test("what is not Connect is refused: another flag, too long a message, an end that is not JSON", () => {
  const compressed = encodeMessage(bytesOf("x"));
  compressed[0] = 1;
  assert.throws(() => readIn(compressed, [100]), /^DaemonError: the flags of an envelope are 0 or 2, got 1$/);
  const long = encodeMessage(bytesOf("x"));
  long.writeUInt32BE(MESSAGE_MAX_BYTES + 1, 1);
  assert.throws(() => readIn(long, [100]), /a message is at most 67108864 bytes, got 67108865/);
  for (const json of ["", "[", "null", '"x"', '{"error":1}'])
    assert.throws(() => readIn(endEnvelope(json), [100]), Error, json);
});
