import assert from "node:assert/strict";
import { test } from "node:test";
import { create } from "@bufbuild/protobuf";
import fc from "fast-check";
import { AddressError, formatPrefix } from "#base/ip.ts";
import { PrivateKey } from "#base/keys.ts";
import { relayTokenKey, verifyRelayToken } from "#base/relay-token.ts";
import { EncryptedMessageSchema, LoginRequestSchema, SyncResponseSchema } from "#gen/management_pb.ts";
import { decodeCompactPrefix, encodeCompactPrefix } from "./compact-prefix.ts";
import { dnsLabelOf } from "./dns-label.ts";
import { EnvelopeError, openMessage, sealBytes, senderOf } from "./envelope.ts";

const server = PrivateKey.generate();
const agent = PrivateKey.generate();

test("whatever bytes are sealed as a message, opening ends with a message or an EnvelopeError", () => {
  fc.assert(
    fc.property(
      fc.uint8Array({ maxLength: 200 }),
      fc.constantFrom(LoginRequestSchema, SyncResponseSchema),
      (bytes, schema) => {
        try {
          openMessage(schema, sealBytes(bytes, server.publicKey, agent), agent.publicKey, server);
        } catch (error) {
          assert.ok(error instanceof EnvelopeError && error.code === "message-malformed", String(error));
        }
      },
    ),
  );
});

test("whatever sender and body an envelope claims, it is opened or refused by an EnvelopeError", () => {
  const sender = fc.oneof(
    fc.string(),
    fc.base64String({ minLength: 44, maxLength: 44 }),
    fc.uint8Array({ minLength: 32, maxLength: 32 }).map((bytes) => Buffer.from(bytes).toString("base64")),
  );
  fc.assert(
    fc.property(sender, fc.uint8Array({ maxLength: 100 }), (wgPubKey, body) => {
      const envelope = create(EncryptedMessageSchema, { wgPubKey, body });
      assert.throws(() => openMessage(LoginRequestSchema, envelope, senderOf(envelope), server), EnvelopeError);
    }),
  );
});

test("a compact prefix that decodes encodes to the same prefix; nothing but AddressError is thrown", () => {
  fc.assert(
    fc.property(fc.uint8Array({ maxLength: 20 }), (bytes) => {
      try {
        const prefix = decodeCompactPrefix(bytes);
        assert.equal(formatPrefix(decodeCompactPrefix(encodeCompactPrefix(prefix))), formatPrefix(prefix));
      } catch (error) {
        assert.ok(error instanceof AddressError, String(error));
      }
    }),
  );
});

test("every host name gives a label that DNS can carry", () => {
  fc.assert(
    fc.property(fc.string({ unit: "binary", maxLength: 100 }), (hostname) => {
      assert.match(dnsLabelOf(hostname), /^[a-z0-9-]{1,59}$/);
    }),
  );
});

test("no token makes the relay's check throw, and none of these is valid", () => {
  const key = relayTokenKey("secret");
  fc.assert(
    fc.property(fc.uint8Array({ maxLength: 80 }), (token) => {
      assert.notEqual(verifyRelayToken(key, token, 1_800_000_000).kind, "valid");
    }),
  );
});
