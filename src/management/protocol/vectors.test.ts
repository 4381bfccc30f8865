import assert from "node:assert/strict";
import { readFileSync } from "node:fs";
import { test } from "node:test";
import { create, type DescMessage, type MessageShape, toBinary } from "@bufbuild/protobuf";
import { formatPrefix, parsePrefix } from "#base/ip.ts";
import { PrivateKey } from "#base/keys.ts";
import { createRelayToken } from "#base/relay-token.ts";
import {
  EmptySchema,
  EncryptedMessageSchema,
  FirewallRuleSchema,
  LoginRequestSchema,
  NetbirdConfigSchema,
  PeerCapability,
  PeerConfigSchema,
  RuleAction,
  RuleDirection,
  RuleProtocol,
  SyncResponseSchema,
} from "#gen/management_pb.ts";
import { decodeCompactPrefix, encodeCompactPrefix } from "./compact-prefix.ts";
import { EnvelopeError, openMessage, sealMessage, senderOf } from "./envelope.ts";
import { noSessionDeadline } from "./no-session-deadline.ts";
import { hashSetupKey } from "./setup-key.ts";

const vectors = JSON.parse(readFileSync(new URL("../../../test/vectors/management.json", import.meta.url), "utf8"));
const hex = (text: string): Uint8Array => new Uint8Array(Buffer.from(text, "hex"));
const toHex = (bytes: Uint8Array): string => Buffer.from(bytes).toString("hex");
const encode = <Desc extends DescMessage>(schema: Desc, message: MessageShape<Desc>): string =>
  toHex(toBinary(schema, message));
const text = (value: string): Uint8Array => new TextEncoder().encode(value);

const server = PrivateKey.fromBytes(hex(vectors.keys.serverPrivate));
const agent = PrivateKey.fromBytes(hex(vectors.keys.agentPrivate));

test("8.2: an empty message makes the envelope and the gRPC frame", () => {
  const envelope = sealMessage(
    EmptySchema,
    create(EmptySchema),
    server.publicKey,
    agent,
    hex(vectors.emptyPayload.nonce),
  );
  assert.equal(toHex(envelope.body), vectors.emptyPayload.body);
  const message = toBinary(EncryptedMessageSchema, envelope);
  assert.equal(`00${message.length.toString(16).padStart(8, "0")}${toHex(message)}`, vectors.emptyPayload.grpcFrame);
  assert.equal(senderOf(envelope), agent.publicKey);
  openMessage(EmptySchema, envelope, agent.publicKey, server);
});

test("8.3: the login request encodes and seals byte for byte", () => {
  const request = create(LoginRequestSchema, {
    setupKey: vectors.small.setupKey,
    meta: {
      hostname: "perch-1",
      goOS: "linux",
      kernel: "Linux",
      core: "24.04",
      platform: "x86_64",
      OS: "Ubuntu",
      netbirdVersion: "0.65.0",
      kernelVersion: "6.8.0",
      OSVersion: "24.04",
      networkAddresses: [{ netIP: "192.0.2.10/24", mac: "02:00:00:00:00:01" }],
      environment: {},
      flags: {},
      capabilities: [PeerCapability.PeerCapabilitySourcePrefixes, PeerCapability.PeerCapabilityIPv6Overlay],
    },
    peerKeys: { sshPubKey: text("ssh-ed25519 AAAA"), wgPubKey: text(agent.publicKey) },
  });
  assert.equal(encode(LoginRequestSchema, request), vectors.loginRequest.plaintext);
  const envelope = sealMessage(LoginRequestSchema, request, server.publicKey, agent, hex(vectors.loginRequest.nonce));
  assert.equal(toHex(envelope.body), vectors.loginRequest.body);
  assert.deepEqual(openMessage(LoginRequestSchema, envelope, agent.publicKey, server), request);
});

test("8.6: a config-only answer with the relay token encodes and seals byte for byte", () => {
  const token = createRelayToken(vectors.relayToken.secret, vectors.relayToken.expiresAt);
  const response = create(SyncResponseSchema, {
    netbirdConfig: create(NetbirdConfigSchema, {
      relay: { urls: [vectors.configOnly.url], tokenPayload: token.payload, tokenSignature: token.signatureBase64 },
    }),
  });
  assert.equal(encode(SyncResponseSchema, response), vectors.configOnly.plaintext);
  const envelope = sealMessage(SyncResponseSchema, response, agent.publicKey, server, hex(vectors.configOnly.nonce));
  assert.equal(toHex(envelope.body), vectors.configOnly.body);
});

test("8.7: that there is no session deadline is said, by a message without fields", () => {
  const response = create(SyncResponseSchema, { sessionExpiresAt: noSessionDeadline() });
  assert.equal(encode(SyncResponseSchema, response), vectors.small.sessionCleared);
});

test("8.7: the setup key hash ignores the case of the key", () => {
  assert.equal(hashSetupKey(vectors.small.setupKey), vectors.small.setupKeyHash);
  assert.equal(hashSetupKey(vectors.small.setupKey.toLowerCase()), vectors.small.setupKeyHash);
});

test("8.7: compact prefixes in both directions", () => {
  for (const { text: prefix, bytes } of [vectors.small.prefixV4, vectors.small.prefixV6]) {
    assert.equal(toHex(encodeCompactPrefix(parsePrefix(prefix))), bytes);
    assert.equal(formatPrefix(decodeCompactPrefix(hex(bytes))), prefix);
  }
  assert.equal(toHex(encodeCompactPrefix(parsePrefix("0.0.0.0/0"))), "0000000000");
  assert.equal(toHex(encodeCompactPrefix(parsePrefix("::/0"))), "00".repeat(17));
  assert.equal(formatPrefix(decodeCompactPrefix(hex(`${"00".repeat(10)}ffff644d000680`))), "100.77.0.6/32");
  for (const bad of [
    "",
    "644d0006",
    "644d000621",
    "00".repeat(16),
    `${"00".repeat(16)}81`,
    `${"00".repeat(10)}ffff644d000610`,
  ])
    assert.throws(() => decodeCompactPrefix(hex(bad)), /prefix/);
});

test("8.7: a peer config and a firewall rule encode byte for byte", () => {
  const config = create(PeerConfigSchema, {
    address: "100.77.0.5/16",
    sshConfig: {},
    fqdn: "perch-1.perch.internal",
    LazyConnectionEnabled: true,
  });
  assert.equal(encode(PeerConfigSchema, config), vectors.small.peerConfig);
  const rule = create(FirewallRuleSchema, {
    PeerIP: "100.77.0.6",
    Direction: RuleDirection.IN,
    Action: RuleAction.ACCEPT,
    Protocol: RuleProtocol.ALL,
    PolicyID: text("rule1"),
    sourcePrefixes: [encodeCompactPrefix(parsePrefix("100.77.0.6/32"))],
  });
  assert.equal(encode(FirewallRuleSchema, rule), vectors.small.firewallRule);
});

test("an envelope with a bad sender, a bad body or another message inside is refused by name", () => {
  const good = sealMessage(EmptySchema, create(EmptySchema), server.publicKey, agent);
  const code = (run: () => unknown): string => {
    try {
      run();
    } catch (error) {
      if (error instanceof EnvelopeError) return error.code;
      throw error;
    }
    return "none";
  };
  for (const wgPubKey of ["", "AAAA", `${agent.publicKey} `, agent.publicKey.replace("=", "")])
    assert.equal(
      code(() => senderOf({ ...good, wgPubKey })),
      "sender-malformed",
    );
  assert.equal(
    code(() => openMessage(EmptySchema, good, server.publicKey, server)),
    "body-unopenable",
  );
  assert.equal(
    code(() => openMessage(EmptySchema, { ...good, body: new Uint8Array(39) }, agent.publicKey, server)),
    "body-unopenable",
  );
  const garbage = create(EncryptedMessageSchema, { body: hex("0a0a") });
  const wrapped = sealMessage(EncryptedMessageSchema, garbage, server.publicKey, agent);
  assert.equal(
    code(() => openMessage(LoginRequestSchema, wrapped, agent.publicKey, server)),
    "message-malformed",
  );
});

test("a sender key with stray padding bits is the same peer", () => {
  const canonical = agent.publicKey;
  const stray = `${canonical.slice(0, 42)}${String.fromCharCode(canonical.charCodeAt(42) + 1)}=`;
  assert.notEqual(stray, canonical);
  const envelope = sealMessage(EmptySchema, create(EmptySchema), server.publicKey, agent);
  assert.equal(senderOf({ ...envelope, wgPubKey: stray }), canonical);
});
