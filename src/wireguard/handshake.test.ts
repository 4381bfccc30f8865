import assert from "node:assert/strict";
import { createCipheriv } from "node:crypto";
import { readFileSync } from "node:fs";
import { describe, it } from "node:test";
import { inspect } from "node:util";
import fc from "fast-check";
import { PresharedKey, PrivateKey, PublicKey } from "#base/keys.ts";
import { hash } from "./blake2s.ts";
import { CookieChecker, CookieJar } from "./cookie.ts";
import {
  acceptInitiation,
  consumeResponse,
  createInitiation,
  createResponse,
  readInitiation,
  type SessionKeys,
} from "./handshake.ts";
import { INITIAL_CHAINING_KEY, INITIAL_HASH, LocalIdentity, RemoteIdentity } from "./identity.ts";
import { kdf1, kdf2, kdf3 } from "./kdf.ts";
import { INITIATION, RESPONSE } from "./messages.ts";
import { ephemeralFrom, exchange, generateEphemeral } from "./x25519.ts";

const vectors = JSON.parse(readFileSync(new URL("../../test/vectors/wireguard.json", import.meta.url), "utf8")) as {
  handshake: Record<string, string> & { initiatorIndex: number; responderIndex: number };
  transport: Record<string, string>;
  cookie: Record<string, string>;
};
const v = vectors.handshake;
const bytes = (hex: string | undefined): Uint8Array => new Uint8Array(Buffer.from(hex!, "hex"));
const hex = (data: Uint8Array): string => Buffer.from(data).toString("hex");
const privateKey = (text: string | undefined): PrivateKey => PrivateKey.fromBytes(bytes(text));

const initiator = new LocalIdentity(privateKey(v.initiatorPrivate));
const responder = new LocalIdentity(privateKey(v.responderPrivate));
const presharedKey = PresharedKey.parse(Buffer.from(bytes(v.presharedKey)).toString("base64"));

const toResponder = () => RemoteIdentity.create(initiator, responder.publicBytes)!;
const toInitiator = () => RemoteIdentity.create(responder, initiator.publicBytes)!;

const vectorInitiation = () =>
  createInitiation(initiator, toResponder(), {
    ephemeral: ephemeralFrom(privateKey(v.initiatorEphemeralPrivate)),
    localIndex: v.initiatorIndex,
    timestamp: bytes(v.timestamp),
  })!;

/** A whole handshake with random keys. */
function handshake(psk: PresharedKey | undefined): { initiatorKeys: SessionKeys; responderKeys: SessionKeys } {
  const sent = createInitiation(initiator, toResponder(), {
    ephemeral: generateEphemeral(),
    localIndex: 7,
    timestamp: bytes(v.timestamp),
  })!;
  const received = acceptInitiation(readInitiation(responder, sent.message)!, toInitiator())!;
  const answer = createResponse(toInitiator(), received, {
    ephemeral: generateEphemeral(),
    localIndex: 8,
    presharedKey: psk,
  })!;
  return { initiatorKeys: consumeResponse(initiator, sent, answer.message, psk)!, responderKeys: answer.keys };
}

/** The AEAD of transport messages, from node:crypto, to check the vectors' last step. */
function transport(keys: SessionKeys, counter: number, plaintext: Uint8Array): string {
  const nonce = Buffer.alloc(12);
  nonce.writeUInt32LE(counter, 4);
  const cipher = createCipheriv("chacha20-poly1305", keys.sendKey, nonce, { authTagLength: 16 });
  const header = Buffer.alloc(16);
  header[0] = 4;
  header.writeUInt32LE(keys.remoteIndex, 4);
  header.writeUInt32LE(counter, 8);
  return Buffer.concat([header, cipher.update(plaintext), cipher.final(), cipher.getAuthTag()]).toString("hex");
}

describe("the vectors of the reference", () => {
  it("give the public keys", () => {
    assert.equal(hex(initiator.publicBytes), v.initiatorPublic);
    assert.equal(hex(responder.publicBytes), v.responderPublic);
    assert.equal(hex(ephemeralFrom(privateKey(v.initiatorEphemeralPrivate)).publicBytes), v.initiatorEphemeralPublic);
    assert.equal(hex(ephemeralFrom(privateKey(v.responderEphemeralPrivate)).publicBytes), v.responderEphemeralPublic);
  });

  it("give every chaining key and hash on the way", () => {
    assert.equal(hex(INITIAL_CHAINING_KEY), v.initialChainingKey);
    assert.equal(hex(INITIAL_HASH), v.initialHash);
    const ephemeral = ephemeralFrom(privateKey(v.initiatorEphemeralPrivate));
    const remote = toResponder();
    const start = kdf1(INITIAL_CHAINING_KEY, ephemeral.publicBytes);
    assert.equal(hex(start), v.chainingKeyAfterEphemeral);
    const [middle, staticKey] = kdf2(start, exchange(ephemeral.privateKey, remote.publicKey)!);
    assert.equal(hex(middle), v.chainingKeyAfterEphemeralStatic);
    assert.equal(hex(staticKey), v.staticKey);
    const [last, timestampKey] = kdf2(middle, remote.staticSecret);
    assert.equal(hex(last), v.chainingKeyAfterStaticStatic);
    assert.equal(hex(timestampKey), v.timestampKey);
    const [final, temporary, emptyKey] = kdf3(bytes(v.chainingKeyBeforePresharedKey), bytes(v.presharedKey));
    assert.equal(hex(final), v.chainingKeyFinal);
    assert.equal(hex(temporary), v.temporaryAfterPresharedKey);
    assert.equal(hex(emptyKey), v.emptyKey);
    const sealedStatic = bytes(v.initiation).subarray(INITIATION.static, INITIATION.timestamp);
    const beforeStatic = hash(remote.startHash, ephemeral.publicBytes);
    assert.equal(hex(hash(beforeStatic, sealedStatic)), v.hashAfterStatic);
  });

  it("give the initiation", () => {
    const sent = vectorInitiation();
    assert.equal(hex(sent.message), v.initiation);
    assert.equal(hex(sent.transcript.hash), v.hashAfterTimestamp);
    assert.equal(hex(sent.transcript.chainingKey), v.chainingKeyAfterStaticStatic);
  });

  it("give the response and both transport keys in both roles", () => {
    const sent = vectorInitiation();
    const claim = readInitiation(responder, bytes(v.initiation))!;
    assert.equal(hex(claim.staticBytes), v.initiatorPublic);
    assert.equal(hex(claim.transcript.hash), v.hashAfterStatic);
    const received = acceptInitiation(claim, toInitiator())!;
    assert.equal(hex(received.timestamp), v.timestamp);
    assert.equal(hex(received.transcript.hash), v.hashAfterTimestamp);
    const answer = createResponse(toInitiator(), received, {
      ephemeral: ephemeralFrom(privateKey(v.responderEphemeralPrivate)),
      localIndex: v.responderIndex,
      presharedKey,
    })!;
    assert.equal(hex(answer.message), v.response);
    assert.equal(hex(answer.keys.sendKey), v.initiatorReceiveKey);
    assert.equal(hex(answer.keys.receiveKey), v.initiatorSendKey);
    const keys = consumeResponse(initiator, sent, bytes(v.response), presharedKey)!;
    assert.equal(hex(keys.sendKey), v.initiatorSendKey);
    assert.equal(hex(keys.receiveKey), v.initiatorReceiveKey);
    assert.equal(keys.remoteIndex, v.responderIndex);
    assert.equal(transport(keys, 0, new Uint8Array(0)), vectors.transport.keepaliveCounter0);
    const padded = new Uint8Array(32);
    padded.set(bytes(vectors.transport.innerPacket));
    assert.equal(transport(keys, 1, padded), vectors.transport.dataCounter1);
  });

  it("give the cookie reply, the cookie in it and the mac2 made with it", () => {
    const c = vectors.cookie;
    const checker = new CookieChecker(responder, (size) => bytes(size === 32 ? c.secret : c.nonce));
    const reply = checker.createReply(bytes(v.initiation), bytes(c.source), 0);
    assert.equal(hex(reply), c.reply);
    const jar = new CookieJar();
    const message = bytes(v.initiation);
    jar.stamp(message, 0);
    assert.equal(jar.consumeReply(toResponder(), reply, 0), true);
    jar.stamp(message, 1);
    assert.equal(hex(message.subarray(INITIATION.mac2)), c.mac2);
    assert.equal(checker.isMac2Valid(message, bytes(c.source), 1), true);
  });
});

describe("the handshake", () => {
  for (const psk of [undefined, presharedKey]) {
    it(`ends in mirrored keys ${psk ? "with" : "without"} a preshared key`, () => {
      const { initiatorKeys, responderKeys } = handshake(psk);
      assert.deepEqual(initiatorKeys.sendKey, responderKeys.receiveKey);
      assert.deepEqual(initiatorKeys.receiveKey, responderKeys.sendKey);
      assert.notDeepEqual(initiatorKeys.sendKey, initiatorKeys.receiveKey);
      assert.equal(initiatorKeys.remoteIndex, responderKeys.localIndex);
      assert.equal(initiatorKeys.localIndex, responderKeys.remoteIndex);
    });
  }

  it("fails when the preshared keys differ, and the initiation stays good for the right answer", () => {
    const sent = vectorInitiation();
    assert.equal(consumeResponse(initiator, sent, bytes(v.response), undefined), undefined);
    assert.ok(consumeResponse(initiator, sent, bytes(v.response), presharedKey));
  });

  it("refuses an initiation with any byte under its seals changed", () => {
    fc.assert(
      fc.property(
        fc.integer({ min: INITIATION.ephemeral, max: INITIATION.mac1 - 1 }),
        fc.integer({ min: 1, max: 255 }),
        (at, flip) => {
          const message = bytes(v.initiation);
          // The highest bit of an X25519 key is ignored by the exchange, but it is in the hash.
          message[at]! ^= flip;
          const claim = readInitiation(responder, message);
          assert.ok(!claim || !acceptInitiation(claim, toInitiator()));
        },
      ),
    );
  });

  it("refuses a response with any byte under its seal changed", () => {
    const sent = vectorInitiation();
    fc.assert(
      fc.property(
        fc.integer({ min: RESPONSE.ephemeral, max: RESPONSE.mac1 - 1 }),
        fc.integer({ min: 1, max: 255 }),
        (at, flip) => {
          const message = bytes(v.response);
          message[at]! ^= flip;
          assert.equal(consumeResponse(initiator, sent, message, presharedKey), undefined);
        },
      ),
    );
  });

  it("refuses an initiation that is meant for somebody else, and one by somebody who only knows a peer's public key", () => {
    const stranger = new LocalIdentity(PrivateKey.generate());
    assert.equal(readInitiation(stranger, bytes(v.initiation)), undefined);
    // A stranger can name the peer's key in the first half (it is sealed to us with an ephemeral key), not in the second.
    const claim = readInitiation(responder, bytes(v.initiation))!;
    const wrong = RemoteIdentity.create(responder, stranger.publicBytes)!;
    assert.equal(acceptInitiation(claim, wrong), undefined);
  });

  it("refuses degenerate keys", () => {
    assert.equal(RemoteIdentity.create(initiator, new Uint8Array(32)), undefined);
    const message = bytes(v.initiation);
    message.fill(0, INITIATION.ephemeral, INITIATION.static);
    assert.equal(readInitiation(responder, message), undefined);
    const response = bytes(v.response);
    response.fill(0, RESPONSE.ephemeral, RESPONSE.empty);
    assert.equal(consumeResponse(initiator, vectorInitiation(), response, presharedKey), undefined);
  });

  it("prints no secret", () => {
    const sent = vectorInitiation();
    const keys = consumeResponse(initiator, vectorInitiation(), bytes(v.response), presharedKey)!;
    const secrets = [sent.transcript.chainingKey, keys.sendKey, keys.receiveKey, toResponder().staticSecret];
    const shown = [sent, keys, toResponder(), initiator, presharedKey].flatMap((value) => [
      inspect(value, { depth: 9, showHidden: true }),
      JSON.stringify(value),
    ]);
    for (const secret of secrets) {
      for (const text of shown) {
        assert.ok(!text.includes(hex(secret)) && !text.includes(Buffer.from(secret).toString("base64")));
        const numbers = [...secret.subarray(0, 8)];
        for (const form of [numbers.join(", "), numbers.join(","), numbers.map((n, i) => `"${i}":${n}`).join(",")])
          assert.ok(!text.includes(form));
      }
    }
  });

  it("leaves zeros where keys were", () => {
    const sent = vectorInitiation();
    const { chainingKey, hash: h } = sent.transcript;
    const keys = consumeResponse(initiator, sent, bytes(v.response), presharedKey)!;
    assert.ok([...chainingKey, ...h].every((byte) => byte === 0));
    const { sendKey, receiveKey } = keys;
    keys.wipe();
    assert.ok([...sendKey, ...receiveKey].every((byte) => byte === 0));
    const remote = toResponder();
    const { staticSecret } = remote;
    remote.wipe();
    assert.ok(staticSecret.every((byte) => byte === 0));
    assert.equal(PublicKey.fromBytes(initiator.publicBytes), initiator.publicKey);
  });
});
