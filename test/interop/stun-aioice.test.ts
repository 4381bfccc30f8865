import assert from "node:assert/strict";
import { test } from "node:test";
import { parseIp } from "#base/ip.ts";
import { silentLogger } from "#base/log.ts";
import { encodeStun, parseStun, TransactionId, verifyStunFingerprint, verifyStunIntegrity } from "#ice/stun-message.ts";
import { StunServer } from "#ice/stun-server.ts";
import { missingPython, startJudge } from "./python.ts";

const skip = missingPython({ aioice: "python3-aioice" }) ?? false;

test("aioice reads our checks and accepts their integrity and fingerprint", { skip }, async () => {
  const transactionId = TransactionId.create();
  const message = encodeStun(
    {
      class: "request",
      transactionId,
      username: "remote:local",
      priority: 0x6e0001ff,
      useCandidate: true,
      ice: { role: "controlling", tieBreaker: 2n ** 63n + 5n },
    },
    { password: "the password" },
  );
  await using judge = startJudge("stun_judge.py", "parse", Buffer.from(message).toString("hex"), "the password");
  const { attributes, ...rest } = (await judge.next()) as { attributes: Record<string, unknown> };
  assert.deepEqual(rest, { method: "BINDING", class: "REQUEST", transaction: transactionId });
  assert.equal(attributes.USERNAME, "remote:local");
  assert.equal(attributes.PRIORITY, 0x6e0001ff);
  assert.ok("USE-CANDIDATE" in attributes);
  assert.ok("ICE-CONTROLLING" in attributes);
});

test("aioice reads our answers and errors", { skip }, async () => {
  const transactionId = TransactionId.create();
  for (const address of ["192.0.2.7", "2001:db8::7"]) {
    const success = encodeStun(
      { class: "success", transactionId, xorMappedAddress: { address: parseIp(address), port: 4321 } },
      { password: "p" },
    );
    await using judge = startJudge("stun_judge.py", "parse", Buffer.from(success).toString("hex"), "p");
    const { attributes } = (await judge.next()) as { attributes: Record<string, unknown> };
    assert.deepEqual(attributes["XOR-MAPPED-ADDRESS"], [address, 4321]);
  }
  const error = encodeStun(
    { class: "error", transactionId, error: { code: 487, reason: "Role Conflict" } },
    { password: "p" },
  );
  await using judge = startJudge("stun_judge.py", "parse", Buffer.from(error).toString("hex"), "p");
  const answer = (await judge.next()) as { class: string; attributes: Record<string, unknown> };
  assert.equal(answer.class, "ERROR");
  assert.deepEqual(answer.attributes["ERROR-CODE"], [487, "Role Conflict"]);
});

test("we read what aioice writes and accept its integrity and fingerprint", { skip }, async () => {
  await using judge = startJudge("stun_judge.py", "encode", "the password");
  const message = parseStun(Buffer.from(String(await judge.next()), "hex"));
  assert.ok(message);
  assert.equal(message.username, "remote:local");
  assert.equal(message.priority, 1845501695);
  assert.deepEqual(message.ice, { role: "controlled", tieBreaker: 0x0102030405060708n });
  assert.ok(message.useCandidate);
  assert.ok(verifyStunIntegrity(message, "the password"));
  assert.ok(!verifyStunIntegrity(message, "another"));
  assert.ok(verifyStunFingerprint(message));
});

test("aioice learns its address from our responder over IPv4 and IPv6", { skip }, async () => {
  await using server = new StunServer({ log: silentLogger }, { listen: [{ address: parseIp("::"), port: 0 }] });
  await server.start();
  for (const host of ["127.0.0.1", "::1"]) {
    await using judge = startJudge("stun_judge.py", "ask", host, String(server.addresses[0]!.port));
    const { mapped, own, names, ...rest } = (await judge.next()) as Record<string, unknown>;
    assert.deepEqual(rest, { class: "RESPONSE" });
    assert.deepEqual(names, ["FINGERPRINT", "XOR-MAPPED-ADDRESS"]);
    assert.deepEqual(mapped, own);
  }
});
