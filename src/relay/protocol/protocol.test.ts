import assert from "node:assert/strict";
import { createHmac } from "node:crypto";
import { test } from "node:test";
import fc from "fast-check";
import { PrivateKey } from "#base/keys.ts";
import { encodeRelayToken, relayTokenKey, verifyRelayToken } from "#base/relay-token.ts";
import vectors from "../../../test/vectors/relay.json" with { type: "json" };
import {
  CLOSE_MESSAGE,
  encodeAuth,
  encodeAuthResponse,
  encodePeerList,
  encodeTransport,
  HEALTH_CHECK_MESSAGE,
  isHandshake,
  parseRelayMessage,
  RELAY_MESSAGE_MAX_BYTES,
  RelayMessageError,
  RelayType,
  TOKEN_MAX_BYTES,
  TRANSPORT_PAYLOAD_MAX_BYTES,
} from "./messages.ts";
import { HEALTH_PROBE_ID, PeerId } from "./peer-id.ts";
import { parseRelayUrl, RelayUrlError } from "./relay-url.ts";

const hex = (bytes: Uint8Array): string => Buffer.from(bytes).toString("hex");
const bytesOf = (text: string): Buffer => Buffer.from(text, "hex");
const keyA = PrivateKey.fromBytes(bytesOf(vectors.keys.a.privateHex)).publicKey;
const keyB = PrivateKey.fromBytes(bytesOf(vectors.keys.b.privateHex)).publicKey;
const idA = PeerId.of(keyA);
const idB = PeerId.of(keyB);

test("13.1 to 13.5: peer IDs", () => {
  assert.equal(keyA, vectors.keys.a.public);
  assert.equal(keyB, vectors.keys.b.public);
  assert.equal(hex(PeerId.toBytes(idA)), vectors.keys.a.idHex);
  assert.equal(hex(PeerId.toBytes(idB)), vectors.keys.b.idHex);
  assert.equal(PeerId.format(idA), vectors.keys.a.idText);
  assert.equal(PeerId.format(idB), vectors.keys.b.idText);
  assert.equal(hex(PeerId.toBytes(HEALTH_PROBE_ID)), vectors.healthProbeIdHex);
  assert.equal(PeerId.read(bytesOf(`ff${vectors.keys.a.idHex}ff`), 1), idA);
});

test("13.6: A is the controller, by the text of its key", () => {
  assert.ok(keyA > keyB);
});

test("13.9, 13.12 to 13.15: messages are encoded byte for byte and read back", () => {
  const token = encodeRelayToken(vectors.token);
  const payload = bytesOf(vectors.payload);
  assert.equal(hex(HEALTH_CHECK_MESSAGE), vectors.healthCheck);
  assert.equal(hex(CLOSE_MESSAGE), vectors.close);
  assert.equal(hex(encodeAuth(idA, token)), vectors.auth);
  assert.equal(hex(encodeAuthResponse(vectors.instanceUrl)), vectors.authResponse);
  assert.equal(hex(encodeTransport(idB, payload)), vectors.transportUp);
  assert.equal(hex(encodeTransport(idA, payload)), vectors.transportDown);
  assert.deepEqual(encodePeerList(RelayType.subscribe, [idB]).map(hex), [vectors.subscribeB]);
  assert.deepEqual(encodePeerList(RelayType.unsubscribe, [idA, idB]).map(hex), [vectors.unsubscribeAB]);
  assert.deepEqual(encodePeerList(RelayType.peersOnline, [idB]).map(hex), [vectors.onlineB]);
  assert.deepEqual(encodePeerList(RelayType.peersWentOffline, [idB]).map(hex), [vectors.offlineB]);

  const parse = (text: string): unknown => parseRelayMessage(bytesOf(text));
  assert.deepEqual(parse(vectors.healthCheck), { kind: "health-check" });
  assert.deepEqual(parse(vectors.close), { kind: "close" });
  assert.deepEqual(parse(`${vectors.close}00`), { kind: "close" });
  assert.deepEqual(parse(vectors.auth), { kind: "auth", peer: idA, token: Buffer.from(token) });
  assert.deepEqual(parse(vectors.authResponse), { kind: "auth-response", instanceUrl: vectors.instanceUrl });
  assert.deepEqual(parse(vectors.transportDown), { kind: "transport", peer: idA, payload });
  assert.deepEqual(parse(vectors.unsubscribeAB), { kind: "peer-list", type: RelayType.unsubscribe, peers: [idA, idB] });
});

test("13.7, 13.8, 13.16, 13.18: the relay's verdict on tokens", () => {
  const key = relayTokenKey(vectors.secret);
  assert.equal(hex(key), vectors.hmacKeyHex);
  const now = Date.UTC(2026, 7, 1) / 1000;
  assert.equal(verifyRelayToken(key, encodeRelayToken(vectors.token), now).kind, "valid");
  for (const { payload, verdict } of vectors.tokenVerdicts) {
    const signature = createHmac("sha256", key).update(payload).digest();
    const token = Buffer.concat([Buffer.of(1), signature, Buffer.from(payload)]);
    assert.equal(verifyRelayToken(key, token, now).kind, verdict, payload);
    for (const algorithm of [0, 2]) {
      token[0] = algorithm;
      assert.notEqual(verifyRelayToken(key, token, now).kind, "valid");
    }
  }
  const probe = parseRelayMessage(bytesOf(vectors.healthProbeAuth));
  assert.ok(probe.kind === "auth");
  assert.equal(probe.peer, HEALTH_PROBE_ID);
  assert.equal(verifyRelayToken(key, probe.token, now).kind, "bad-signature");
});

test("13.19: limits", () => {
  assert.equal(encodeAuth(idA, new Uint8Array(170)).length, 212);
  assert.throws(
    () => encodeAuth(idA, new Uint8Array(TOKEN_MAX_BYTES + 1)),
    (error) => error instanceof RelayMessageError && error.code === "relay-token-too-long",
  );
  const ids = Array.from({ length: 245 }, (_, i) => PeerId.ofText(String(i)));
  const lists = encodePeerList(RelayType.subscribe, ids);
  assert.deepEqual(
    lists.map(({ length }) => length),
    [8786, 38],
  );
  assert.deepEqual(encodePeerList(RelayType.subscribe, []), []);
  assert.equal(encodeTransport(idA, new Uint8Array(TRANSPORT_PAYLOAD_MAX_BYTES)).length, RELAY_MESSAGE_MAX_BYTES);
  assert.throws(() => encodeTransport(idA, new Uint8Array(TRANSPORT_PAYLOAD_MAX_BYTES + 1)), RelayMessageError);
  assert.throws(() => encodeAuthResponse(""), RelayMessageError);
  assert.deepEqual(parseRelayMessage(bytesOf("0108")), { kind: "peer-list", type: 8, peers: [] });
  assert.deepEqual(parseRelayMessage(bytesOf("010800")), { kind: "malformed", type: 8 });
});

test("bad input is told apart as section 3 has it", () => {
  const kindOf = (text: string): string => parseRelayMessage(bytesOf(text)).kind;
  for (const text of ["", "01", "0203", "0005"]) assert.equal(kindOf(text), "foreign", text);
  for (const text of ["0100", "0101", "0102", "010c", "0180", "01ff"]) assert.equal(kindOf(text), "unknown", text);
  assert.equal(kindOf(vectors.transportUp.slice(0, 2 * 37)), "malformed");
  assert.equal(kindOf(vectors.transportUp.slice(0, 2 * 38)), "transport");
  assert.equal(kindOf(vectors.auth.slice(0, 2 * 41)), "malformed");
  assert.equal(kindOf(vectors.auth.replace("2112a442", "2112a443")), "malformed");
  assert.equal(kindOf("0107"), "malformed");
});

test("WireGuard handshakes are told from data by their first byte", () => {
  assert.deepEqual(
    [0, 1, 2, 3, 4, 255].map((type) => isHandshake(Buffer.of(type))),
    [false, true, true, true, false, false],
  );
  assert.equal(isHandshake(Buffer.alloc(0)), false);
});

test("relay addresses are read with and without port and path, and nothing else is", () => {
  assert.deepEqual(parseRelayUrl("rel://host"), { tls: false, host: "host", port: 80, serverName: "host" });
  assert.deepEqual(parseRelayUrl("rels://host"), { tls: true, host: "host", port: 443, serverName: "host" });
  assert.deepEqual(parseRelayUrl("rels://a.b:33080/relay"), {
    tls: true,
    host: "a.b",
    port: 33080,
    serverName: "a.b",
  });
  assert.deepEqual(parseRelayUrl("rel://[2001:db8::1]:81"), { tls: false, host: "2001:db8::1", port: 81 });
  assert.deepEqual(parseRelayUrl("rels://192.0.2.1"), { tls: true, host: "192.0.2.1", port: 443 });
  for (const url of [
    "",
    "host:80",
    "http://host",
    "rel://",
    "rel://host:0",
    "rel://host:99999",
    "rel://u@host",
    "rel:// x",
  ])
    assert.throws(() => parseRelayUrl(url), RelayUrlError, url);
});

test("random bytes never throw", () => {
  const prefixed = fc.tuple(fc.integer({ min: 0, max: 13 }), fc.uint8Array({ maxLength: 300 }));
  fc.assert(
    fc.property(prefixed, fc.boolean(), ([type, rest], wellFormed) => {
      parseRelayMessage(wellFormed ? Buffer.concat([Buffer.of(1, type), rest]) : rest);
    }),
    { interruptAfterTimeLimit: 2000, numRuns: 50_000 },
  );
});
