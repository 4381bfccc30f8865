import assert from "node:assert/strict";
import { readFileSync } from "node:fs";
import { test } from "node:test";
import { PrivateKey, PublicKey } from "./keys.ts";
import { BOX_OVERHEAD_BYTES, BoxError, openBox, sealBox, sharedKey } from "./nacl-box.ts";

const vectors = JSON.parse(readFileSync(new URL("../../test/vectors/management.json", import.meta.url), "utf8"));
const hex = (text: string): Uint8Array => new Uint8Array(Buffer.from(text, "hex"));
const toHex = (bytes: Uint8Array): string => Buffer.from(bytes).toString("hex");

const server = PrivateKey.fromBytes(hex(vectors.keys.serverPrivate));
const agent = PrivateKey.fromBytes(hex(vectors.keys.agentPrivate));

test("the keys of section 8.1 lead to its public keys, X25519 secret and box key on both sides", () => {
  assert.equal(server.publicKey, vectors.keys.serverPublicBase64);
  assert.equal(agent.publicKey, vectors.keys.agentPublicBase64);
  assert.equal(toHex(PublicKey.toBytes(server.publicKey)), vectors.keys.serverPublic);
  assert.equal(toHex(agent.sharedSecret(PublicKey.toBytes(server.publicKey))), vectors.keys.x25519Shared);
  assert.equal(toHex(sharedKey(server.publicKey, agent)), vectors.keys.boxKey);
  assert.equal(toHex(sharedKey(agent.publicKey, server)), vectors.keys.boxKey);
});

test("an empty payload seals to the 40 bytes of section 8.2 and opens again", () => {
  const body = sealBox(new Uint8Array(0), server.publicKey, agent, hex(vectors.emptyPayload.nonce));
  assert.equal(toHex(body), vectors.emptyPayload.body);
  assert.equal(openBox(body, agent.publicKey, server).length, 0);
});

test("the login request of section 8.3 and the config message of section 8.6 seal byte for byte", () => {
  const login = sealBox(hex(vectors.loginRequest.plaintext), server.publicKey, agent, hex(vectors.loginRequest.nonce));
  assert.equal(toHex(login), vectors.loginRequest.body);
  assert.equal(toHex(openBox(login, agent.publicKey, server)), vectors.loginRequest.plaintext);
  const config = sealBox(hex(vectors.configOnly.plaintext), agent.publicKey, server, hex(vectors.configOnly.nonce));
  assert.equal(toHex(config), vectors.configOnly.body);
  assert.equal(toHex(openBox(config, server.publicKey, agent)), vectors.configOnly.plaintext);
});

test("two seals of the same text differ, because the nonce is random", () => {
  const text = hex("00112233");
  const one = sealBox(text, server.publicKey, agent);
  assert.notEqual(toHex(one), toHex(sealBox(text, server.publicKey, agent)));
  assert.equal(one.length, text.length + BOX_OVERHEAD_BYTES);
});

test("a body that is too short, changed in any byte, or from another key does not open", () => {
  const body = sealBox(hex("cafe"), server.publicKey, agent);
  for (let length = 0; length < BOX_OVERHEAD_BYTES; length++)
    assert.throws(() => openBox(body.subarray(0, length), agent.publicKey, server), boxError("box-truncated"));
  for (let i = 0; i < body.length; i++) {
    const changed = body.slice();
    changed[i]! ^= 1;
    assert.throws(() => openBox(changed, agent.publicKey, server), boxError("box-forged"));
  }
  assert.throws(() => openBox(body, PrivateKey.generate().publicKey, server), boxError("box-forged"));
});

test("a low-order public key and a nonce of another length are refused", () => {
  const zero = PublicKey.fromBytes(new Uint8Array(32));
  assert.throws(() => sealBox(hex("00"), zero, agent), boxError("box-key-degenerate"));
  assert.throws(() => openBox(new Uint8Array(64), zero, agent), boxError("box-key-degenerate"));
  assert.throws(() => sealBox(hex("00"), server.publicKey, agent, new Uint8Array(23)), boxError("box-nonce"));
});

function boxError(code: BoxError["code"]): (error: unknown) => boolean {
  return (error) => error instanceof BoxError && error.code === code;
}
