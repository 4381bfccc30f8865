import assert from "node:assert/strict";
import { test } from "node:test";
import { create, fromBinary, toBinary } from "@bufbuild/protobuf";
import fc from "fast-check";
import { encodeMessage } from "#base/flagged-messages.ts";
import { parseIp } from "#base/ip.ts";
import { PrivateKey } from "#base/keys.ts";
import {
  Body_Type,
  BodySchema,
  EncryptedMessageSchema,
  type PerchNat_Mapping,
  type PerchNat_Udp,
} from "#gen/signal_pb.ts";
import vectors from "../../../test/vectors/signal.json" with { type: "json" };
import { decodeGrpcMessage, encodeGrpcMessage, GrpcFrameReader, GrpcWireError } from "./grpc-wire.ts";
import {
  createCredentials,
  createGoIdleBody,
  createOfferBody,
  formatCredentials,
  parseCredentials,
  parseOfferBody,
  SessionId,
} from "./offer.ts";
import { openMessage, parseEncryptedMessage, SealedMessageError, sealMessage } from "./sealed-message.ts";

const sender = PrivateKey.parse(vectors.sealed.senderPrivate);
const recipient = PrivateKey.parse(vectors.sealed.recipientPrivate);

test("A.1: a GO_IDLE is sealed byte for byte and opens as coming from its sender", () => {
  assert.equal(sender.publicKey, vectors.sealed.senderPublic);
  const body = createGoIdleBody();
  assert.equal(Buffer.from(toBinary(BodySchema, body)).toString("hex"), vectors.sealed.bodyPlain);
  const sealed = sealMessage(body, recipient.publicKey, sender, Buffer.from(vectors.sealed.nonce, "hex"));
  const message = parseEncryptedMessage(sealed);
  assert.ok(message);
  assert.equal(Buffer.from(message.body).toString("hex"), vectors.sealed.body);
  assert.equal(message.key, vectors.sealed.senderPublic);
  assert.equal(message.remoteKey, vectors.sealed.recipientPublic);
  const opened = openMessage(message, recipient);
  assert.equal(opened.from, sender.publicKey);
  assert.equal(opened.body.type, Body_Type.GO_IDLE);
  assert.equal(Buffer.from(opened.nonce, "latin1").toString("hex"), vectors.sealed.nonce);
});

test("A.2: an OFFER is encoded byte for byte and read back", () => {
  const { ufrag, password, listenPort, version, relayInstanceUrl, relayAddress, sessionId, hex } = vectors.offer;
  const offer = {
    credentials: { ufrag, password },
    sessionId: sessionId as SessionId,
    listenPort,
    version,
    relay: { instanceUrl: relayInstanceUrl, address: parseIp(relayAddress) },
  };
  const bytes = toBinary(BodySchema, createOfferBody("offer", offer));
  assert.equal(Buffer.from(bytes).toString("hex"), hex);
  assert.deepEqual(parseOfferBody(fromBinary(BodySchema, bytes)), offer);
});

test("credentials need exactly one colon; an empty half means that the sender does without ICE", () => {
  assert.deepEqual(parseCredentials("a:b"), { ufrag: "a", password: "b" });
  for (const payload of [":", "a:", ":b"]) assert.equal(parseCredentials(payload), "none", payload);
  for (const payload of ["", "ab", "a:b:c", "::"]) assert.equal(parseCredentials(payload), "malformed", payload);
  const longest = "x".repeat(256);
  assert.deepEqual(parseCredentials(`${longest}:${longest}`), { ufrag: longest, password: longest });
  for (const payload of [`x${longest}:b`, `a:x${longest}`]) assert.equal(parseCredentials(payload), "malformed");
  assert.equal(formatCredentials(undefined), ":");
  const { ufrag, password } = createCredentials();
  assert.match(ufrag, /^[a-zA-Z]{16}$/);
  assert.match(password, /^[a-zA-Z]{32}$/);
});

test("a relay-only offer carries a lone colon and no session id", () => {
  const body = createOfferBody("answer", { listenPort: 1, version: "x", sessionId: SessionId.create() });
  assert.equal(body.type, Body_Type.ANSWER);
  assert.equal(body.payload, ":");
  assert.equal(body.sessionId, undefined);
  assert.ok(body.rosenpassConfig);
});

test("a Perch agent's offer carries candidates in a field that stock agents skip", () => {
  const perch = { candidates: ["1 1 udp 1 192.0.2.1 5 typ host"] };
  const offer = { listenPort: 1, version: "x", perch };
  assert.deepEqual(parseOfferBody(createOfferBody("offer", offer)), offer);
});

test("a Perch agent tells what it knows of its NAT, numbers of a later version are unknown", () => {
  const nat = { mapping: "endpoint-dependent", udp: "works" } as const;
  const offer = { listenPort: 1, version: "x", perch: { candidates: [], nat } };
  const body = createOfferBody("offer", offer);
  assert.deepEqual(parseOfferBody(body), offer);
  body.perch!.nat!.mapping = 77 as PerchNat_Mapping;
  body.perch!.nat!.udp = 9 as PerchNat_Udp;
  assert.deepEqual(parseOfferBody(body)?.perch?.nat, { mapping: "unknown", udp: "unknown" });
});

test("optional fields of a wrong length are left out", () => {
  const offer = parseOfferBody(
    create(BodySchema, {
      payload: "a:b",
      sessionId: new Uint8Array(6),
      relayServerAddress: "rel://x",
      relayServerIP: new Uint8Array(5),
      wgListenPort: 70000,
    }),
  );
  assert.deepEqual(offer, {
    credentials: { ufrag: "a", password: "b" },
    listenPort: 0,
    version: "",
    relay: { instanceUrl: "rel://x" },
  });
  assert.equal(parseOfferBody(create(BodySchema, { payload: "no colon" })), undefined);
});

test("a message that is forged, for others or garbage is refused with its own code", () => {
  const sealed = fromBinary(EncryptedMessageSchema, sealMessage(createGoIdleBody(), recipient.publicKey, sender));
  const codeOf = (change: object): string => {
    try {
      openMessage({ ...sealed, ...change }, recipient);
      return "opened";
    } catch (error) {
      return error instanceof SealedMessageError ? error.code : String(error);
    }
  };
  assert.equal(codeOf({}), "opened");
  assert.equal(codeOf({ remoteKey: sender.publicKey }), "signal-message-not-ours");
  assert.equal(codeOf({ key: "?" }), "signal-message-malformed");
  assert.equal(codeOf({ key: recipient.publicKey }), "signal-message-forged");
  assert.equal(codeOf({ body: sealed.body.subarray(0, 20) }), "signal-message-forged");
  assert.equal(codeOf({ key: Buffer.alloc(32).toString("base64") }), "signal-message-forged");
});

test("frames are found however the bytes are cut", () => {
  const payloads = fc.array(fc.uint8Array({ maxLength: 40 }), { maxLength: 8 });
  fc.assert(
    fc.property(payloads, fc.integer({ min: 1, max: 17 }), (messages, step) => {
      const bytes = Buffer.concat(messages.map(encodeMessage));
      const reader = new GrpcFrameReader(64);
      const found: Uint8Array[] = [];
      for (let at = 0; at < bytes.length; at += step) found.push(...reader.push(bytes.subarray(at, at + step)));
      assert.deepEqual(
        found.map((message) => Buffer.from(message).toString("hex")),
        messages.map((message) => Buffer.from(message).toString("hex")),
      );
    }),
  );
});

test("a message over the limit and a compressed one are refused before they are collected", () => {
  const over = new GrpcFrameReader(10);
  assert.throws(
    () => over.push(Buffer.from("000000000b", "hex")),
    (error) => error instanceof GrpcWireError && error.code === "grpc-message-too-large",
  );
  const compressed = new GrpcFrameReader(10);
  assert.throws(
    () => compressed.push(Buffer.from("0100000001", "hex")),
    (error) => error instanceof GrpcWireError && error.code === "grpc-compressed",
  );
});

test("status texts survive percent-encoding", () => {
  for (const text of ["plain", "100% ü\n", ""]) assert.equal(decodeGrpcMessage(encodeGrpcMessage(text)), text);
  assert.equal(encodeGrpcMessage("a%ü"), "a%25%C3%BC");
  assert.equal(decodeGrpcMessage("%zz"), "%zz");
});

test("random bytes never get an exception other than the documented ones", () => {
  fc.assert(
    fc.property(fc.uint8Array({ maxLength: 100 }), (bytes) => {
      const message = parseEncryptedMessage(bytes);
      if (!message) return;
      try {
        openMessage(message, recipient);
      } catch (error) {
        assert.ok(error instanceof SealedMessageError);
      }
    }),
    { interruptAfterTimeLimit: 2000, numRuns: 20_000 },
  );
});
