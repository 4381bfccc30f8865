import assert from "node:assert/strict";
import { createHmac } from "node:crypto";
import { describe, test } from "node:test";
import { type Endpoint, formatEndpoint, parseEndpoint } from "#base/ip.ts";
import { type Clock, ManualClock, type Timer } from "#base/time.ts";
import { type Candidate, candidatePriority } from "./candidate.ts";
import { IceAgent, type IceAgentEvents, type IceAgentOptions } from "./ice-agent.ts";
import {
  encodeStun,
  parseStun,
  type StunFields,
  type StunMessage,
  TransactionId,
  verifyStunIntegrity,
} from "./stun-message.ts";
import { MAX_REMOTE_REFLEXIVE } from "./timing.ts";

const LOCAL = { ufrag: "localufrag", pwd: "local-password-of-some-length" };
const REMOTE = { ufrag: "remoteufrag", pwd: "remote-password-of-some-length" };
const here = parseEndpoint("192.0.2.1:51820");

/** A machine that can be suspended: time passes and no timer fires on the way. */
class SuspendableClock implements Clock {
  readonly awake = new ManualClock();
  #suspended = 0;

  now(): number {
    return this.awake.now() + this.#suspended;
  }

  wall(): number {
    return this.awake.wall() + this.#suspended;
  }

  after(delay: number, callback: () => void): Timer {
    return this.awake.after(delay, callback);
  }

  get pending(): number {
    return this.awake.pending;
  }

  advance(by: number): void {
    this.awake.advance(by);
  }

  suspend(by: number): void {
    this.#suspended += by;
  }
}

interface Sent {
  readonly at: number;
  readonly message: StunMessage;
  readonly to: Endpoint;
  readonly from: Endpoint | undefined;
}

function candidate(endpoint: string, extra: Partial<Candidate> = {}): Candidate {
  const type = extra.type ?? "host";
  const priority = candidatePriority(type);
  return {
    foundation: "1",
    component: 1,
    transport: "udp",
    priority,
    endpoint: parseEndpoint(endpoint),
    type,
    ...extra,
  };
}

function setUp(options: Partial<IceAgentOptions> = {}) {
  const clock = new SuspendableClock();
  const sent: Sent[] = [];
  const agent = new IceAgent(
    {
      clock,
      send: (datagram, to, from) => void sent.push({ at: clock.now(), message: parseStun(datagram)!, to, from }),
    },
    { role: "controlling", localUfrag: LOCAL.ufrag, localPwd: LOCAL.pwd, tieBreaker: 7n, ...options },
  );
  const events: { name: string; payload: unknown }[] = [];
  for (const name of ["selected", "lost", "failed"] as const satisfies readonly (keyof IceAgentEvents)[])
    agent.events.on(name, (payload) => void events.push({ name, payload }));
  agent.addLocalCandidate(candidate("192.0.2.1:51820", { cid: "LOCALCID" }));

  /** A check by the remote. */
  const ask = (from: string, fields: Partial<StunFields> = {}, password = LOCAL.pwd): void => {
    const request: StunFields = {
      class: "request",
      transactionId: TransactionId.create(),
      username: `${LOCAL.ufrag}:${REMOTE.ufrag}`,
      priority: candidatePriority("prflx"),
      ice: { role: "controlled", tieBreaker: 1n },
      ...fields,
    };
    agent.receive(parseStun(encodeStun(request, { password }))!, parseEndpoint(from), here);
  };
  const checksTo = (to: string): Sent[] =>
    sent.filter(({ message, to: target }) => message.class === "request" && formatEndpoint(target) === to);
  /** The remote answers the newest check to one of its endpoints. */
  const reply = (to: string, fields: Partial<StunFields> = {}, password = REMOTE.pwd, from = to): void => {
    const { transactionId } = checksTo(to).at(-1)!.message;
    const answer: StunFields = { class: "success", transactionId, xorMappedAddress: here, ...fields };
    agent.receive(parseStun(encodeStun(answer, { password }))!, parseEndpoint(from), here);
  };
  const selectedEndpoints = (): string[] =>
    events
      .filter(({ name }) => name === "selected")
      .map(({ payload }) => formatEndpoint((payload as { endpoint: Endpoint }).endpoint));
  return { clock, sent, agent, events, ask, reply, checksTo, selectedEndpoints };
}

describe("checks", () => {
  test("the first check leaves in the call that makes the pair, with everything ICE and stock agents want", () => {
    const { agent, sent } = setUp();
    agent.setRemoteCredentials(REMOTE);
    agent.addRemoteCandidate(candidate("198.51.100.2:51820", { cid: "REMOTECID", ufrag: REMOTE.ufrag }));
    assert.equal(sent.length, 1);
    const { message, to } = sent[0]!;
    assert.deepEqual(to, parseEndpoint("198.51.100.2:51820"));
    assert.equal(message.username, "remoteufrag:localufrag");
    assert.equal(message.priority, 1862270975);
    assert.deepEqual(message.ice, { role: "controlling", tieBreaker: 7n });
    assert.equal(message.useCandidate, false);
    assert.equal(message.candidateIds, "LOCALCID:REMOTECID");
    assert.ok(verifyStunIntegrity(message, REMOTE.pwd) && message.hasFingerprint);
    assert.ok(message.transactionId.startsWith(agent.transactionTag));
    agent.close();
  });

  test("a candidate without id gets checks without the stock attribute", () => {
    const { agent, sent } = setUp();
    agent.setRemoteCredentials(REMOTE);
    agent.addRemoteCandidate(candidate("198.51.100.2:51820"));
    assert.equal(sent[0]?.message.candidateIds, undefined);
    agent.close();
  });

  test("many candidates at once: three checks immediately, then one every 5 ms, the best first", () => {
    const { clock, agent, sent } = setUp();
    const types = ["relay", "srflx", "host", "host", "host", "srflx"] as const;
    types.forEach((type, i) => {
      agent.addRemoteCandidate(candidate(`198.51.100.${i}:1000`, { type }));
    });
    assert.equal(sent.length, 0, "nothing before the credentials");
    agent.setRemoteCredentials(REMOTE);
    clock.advance(40);
    assert.deepEqual(
      sent.map(({ at }) => at),
      [0, 0, 0, 5, 10, 15],
    );
    const order = sent.map(({ to }) => types[Number(to.address.split(".")[3])]);
    assert.deepEqual(order, ["host", "host", "host", "srflx", "srflx", "relay"]);
    agent.close();
  });

  test("an unanswered pair is checked fast, then slower, and given up after ten seconds", () => {
    const { clock, agent, sent, events } = setUp();
    agent.setRemoteCredentials(REMOTE);
    agent.addRemoteCandidate(candidate("198.51.100.2:51820"));
    clock.advance(20_000);
    const times = sent.map(({ at }) => at);
    assert.deepEqual(times.slice(0, 7), [0, 50, 150, 350, 750, 1550, 2350]);
    assert.ok(times.at(-1)! < 10_000);
    assert.deepEqual(events, [{ name: "failed", payload: { reason: "no-answer" } }]);
    assert.equal(clock.pending, 0);
  });

  test("without any candidate it fails after ten seconds and says so", () => {
    const { clock, agent, events } = setUp();
    agent.setRemoteCredentials(REMOTE);
    clock.advance(10_000);
    assert.deepEqual(events, [{ name: "failed", payload: { reason: "no-remote-candidate" } }]);
    assert.equal(agent.state, "failed");
  });

  test("one timer at most is armed at any moment", () => {
    const { clock, agent, reply } = setUp();
    agent.setRemoteCredentials(REMOTE);
    for (let i = 1; i < 9; i++) agent.addRemoteCandidate(candidate(`198.51.100.${i}:1000`));
    for (let i = 0; i < 100; i++) {
      clock.advance(37);
      if (i === 9) reply("198.51.100.4:1000");
      assert.equal(clock.pending, 1);
    }
    agent.close();
    assert.equal(clock.pending, 0);
  });

  test("overlay, loopback, multicast and unspecified addresses are never checked", () => {
    const { agent, sent } = setUp({ isForbidden: (address) => address.startsWith("100.64.") });
    agent.setRemoteCredentials(REMOTE);
    for (const endpoint of ["100.64.0.7:1", "127.0.0.1:22", "[::1]:22", "224.0.0.1:1", "[ff02::1]:1", "0.0.0.0:1"])
      agent.addRemoteCandidate(candidate(endpoint));
    agent.addRemoteCandidate(candidate("198.51.100.3:1", { component: 2 }));
    assert.equal(sent.length, 0);
    assert.equal(agent.counters().get("candidate-unusable"), 7);
    agent.close();
  });

  test("a received reflexive candidate with id also stands for a forward of the WireGuard port", () => {
    const { clock, agent, sent } = setUp();
    agent.setRemoteCredentials(REMOTE);
    const related = parseEndpoint("10.0.0.5:51820");
    agent.addRemoteCandidate(candidate("198.51.100.2:40000", { type: "srflx", cid: "X", related }));
    agent.addRemoteCandidate(candidate("198.51.100.3:40000", { type: "srflx", related }));
    clock.advance(20);
    const targets = new Set(sent.map(({ to }) => formatEndpoint(to)));
    assert.deepEqual([...targets], ["198.51.100.2:40000", "198.51.100.2:51820", "198.51.100.3:40000"]);
    agent.close();
  });

  test("a candidate of another session waits for the credentials of that session", () => {
    const { agent, checksTo } = setUp();
    agent.setRemoteCredentials(REMOTE);
    agent.addRemoteCandidate(candidate("198.51.100.2:1", { ufrag: "nextsession" }));
    assert.equal(checksTo("198.51.100.2:1").length, 0);
    agent.setRemoteCredentials({ ufrag: "nextsession", pwd: "another" });
    assert.equal(checksTo("198.51.100.2:1").length, 1);
    agent.close();
  });
});

describe("answers", () => {
  test("a check is answered before the credentials are known, from where it arrived, with the ids turned round", () => {
    const { clock, sent, ask } = setUp();
    ask("198.51.100.2:4444", { candidateIds: "THEIRS:OURS" });
    assert.equal(sent.length, 1);
    const { message, to, from } = sent[0]!;
    assert.equal(message.class, "success");
    assert.deepEqual([to, from], [parseEndpoint("198.51.100.2:4444"), here]);
    assert.deepEqual(message.xorMappedAddress, parseEndpoint("198.51.100.2:4444"));
    assert.equal(message.candidateIds, "OURS:THEIRS");
    assert.ok(verifyStunIntegrity(message, LOCAL.pwd) && message.hasFingerprint);
    assert.equal(clock.pending, 0);
  });

  test("checks with a wrong password or another ufrag are counted and not answered", () => {
    const { agent, sent, ask } = setUp();
    ask("198.51.100.2:4444", {}, "wrong");
    ask("198.51.100.2:4444", { username: "somebody:else" });
    assert.equal(sent.length, 0);
    assert.equal(agent.counters().get("request-wrong-integrity"), 1);
    assert.equal(agent.counters().get("request-wrong-ufrag"), 1);
  });

  test("what comes through the overlay itself is not heard", () => {
    const { agent, sent, ask } = setUp({
      isForbidden: (address) => address === "100.64.0.7" || address === here.address,
    });
    ask("100.64.0.7:4444");
    ask("198.51.100.2:4444");
    assert.equal(sent.length, 0);
    assert.equal(agent.counters().get("forbidden-address"), 2);
  });

  test("a remote that claims our role is answered all the same", () => {
    const { sent, ask } = setUp();
    ask("198.51.100.2:4444", { ice: { role: "controlling", tieBreaker: 2n ** 63n } });
    assert.equal(sent[0]?.message.class, "success");
  });

  test("an attribute that must be understood and is not brings error 420 with its number", () => {
    const { agent, sent } = setUp();
    const username = `${LOCAL.ufrag}:them`;
    const transactionId = TransactionId.create();
    const request = Buffer.from(
      encodeStun(
        { class: "request", transactionId, software: "abc", username },
        { password: LOCAL.pwd, fingerprint: false },
      ),
    );
    // SOFTWARE, the first attribute, becomes a type nobody knows; the signature is the last 20 bytes.
    request.writeUInt16BE(0x7abc, 20);
    const unsigned = parseStun(Buffer.from(request))!;
    createHmac("sha1", LOCAL.pwd)
      .update(request.subarray(0, request.length - 24))
      .digest()
      .copy(request, request.length - 20);
    const from = parseEndpoint("198.51.100.2:4444");
    agent.receive(unsigned, from);
    assert.equal(sent.length, 0);
    agent.receive(parseStun(request)!, from);
    assert.deepEqual([sent[0]?.message.class, sent[0]?.message.error?.code], ["error", 420]);
    assert.deepEqual(sent[0]?.message.unknownAttributes, [0x7abc]);
    assert.equal(agent.pairs().length, 0);
  });

  test("a flood of checks from many sources makes a bounded number of pairs", () => {
    const { agent, ask } = setUp();
    agent.setRemoteCredentials(REMOTE);
    for (let port = 1; port <= 200; port++) ask(`198.51.100.2:${port}`);
    assert.equal(agent.pairs().length, MAX_REMOTE_REFLEXIVE);
    agent.close();
  });

  test("a check of an older session of the remote is answered but teaches nothing", () => {
    const { agent, sent, ask } = setUp();
    agent.setRemoteCredentials(REMOTE);
    ask("198.51.100.2:4444", { username: `${LOCAL.ufrag}:oldufrag` });
    assert.equal(sent.length, 1);
    assert.equal(sent[0]?.message.class, "success");
    assert.equal(agent.pairs().length, 0);
    agent.close();
  });

  test("an inbound check makes ours leave at once, to a new address too", () => {
    const { agent, ask, checksTo } = setUp();
    agent.setRemoteCredentials(REMOTE);
    ask("198.51.100.2:4444", { candidateIds: "THEIRS:LOCALCID" });
    assert.equal(checksTo("198.51.100.2:4444").length, 1);
    assert.equal(checksTo("198.51.100.2:4444")[0]?.message.candidateIds, "LOCALCID:THEIRS");
    assert.equal(agent.pairs()[0]?.remote.type, "prflx");
    agent.close();
  });

  test("a forged answer, one from elsewhere and one to no check of ours prove nothing", () => {
    const { agent, events, reply } = setUp();
    agent.setRemoteCredentials(REMOTE);
    agent.addRemoteCandidate(candidate("198.51.100.2:1"));
    reply("198.51.100.2:1", {}, "wrong");
    reply("198.51.100.2:1", {}, REMOTE.pwd, "198.51.100.9:1");
    reply("198.51.100.2:1", { transactionId: TransactionId.create() });
    reply("198.51.100.2:1", { class: "error", error: { code: 487, reason: "Role Conflict" } });
    assert.deepEqual(events, []);
    assert.equal(agent.counters().get("answer-wrong-integrity"), 1);
    assert.equal(agent.counters().get("answer-unexpected"), 2);
    assert.equal(agent.counters().get("error-487"), 1);
    reply("198.51.100.2:1");
    assert.equal(agent.state, "selected");
    agent.close();
  });
});

describe("mapped addresses", () => {
  test("an authentic answer names how the remote sees us, a forged one or one from elsewhere does not", () => {
    const { agent, reply } = setUp();
    const seen: string[] = [];
    agent.events.on("mapped", ({ remote, mapped }) => seen.push(`${formatEndpoint(remote)} ${formatEndpoint(mapped)}`));
    agent.setRemoteCredentials(REMOTE);
    agent.addRemoteCandidate(candidate("198.51.100.2:1"));
    const xorMappedAddress = parseEndpoint("203.0.113.5:4000");
    reply("198.51.100.2:1", { xorMappedAddress }, "wrong");
    reply("198.51.100.2:1", { xorMappedAddress }, REMOTE.pwd, "198.51.100.9:1");
    assert.deepEqual(seen, []);
    reply("198.51.100.2:1", { xorMappedAddress });
    assert.deepEqual(seen, ["198.51.100.2:1 203.0.113.5:4000"]);
    agent.close();
  });
});

describe("nomination", () => {
  test("the controlling side uses the first answered pair and nominates it in the same turn", () => {
    const { clock, agent, sent, events, reply } = setUp();
    agent.setRemoteCredentials(REMOTE);
    agent.addRemoteCandidate(candidate("198.51.100.2:1"));
    clock.advance(30);
    reply("198.51.100.2:1");
    assert.equal(sent.at(-1)?.message.useCandidate, true);
    const [selected] = events;
    assert.equal(selected?.name, "selected");
    const payload = selected!.payload as IceAgentEvents["selected"];
    assert.deepEqual([payload.rtt, payload.local.type, payload.nominated], [30, "host", true]);
    agent.close();
  });

  test("the local candidate is told from the mapped address, an unknown one is peer-reflexive", () => {
    const { agent, events, reply } = setUp();
    agent.setRemoteCredentials(REMOTE);
    agent.addRemoteCandidate(candidate("198.51.100.2:1"));
    reply("198.51.100.2:1", { xorMappedAddress: parseEndpoint("203.0.113.5:4000") });
    const { local } = events[0]!.payload as IceAgentEvents["selected"];
    assert.equal(local.type, "prflx");
    assert.deepEqual([local.endpoint, local.related], [parseEndpoint("203.0.113.5:4000"), here]);
    agent.close();
  });

  test("an unanswered nomination is repeated; a stock remote is told no more once it answered", () => {
    for (const stock of [true, false]) {
      const { clock, agent, checksTo, reply } = setUp({ stock });
      agent.setRemoteCredentials(REMOTE);
      agent.addRemoteCandidate(candidate("198.51.100.2:1"));
      reply("198.51.100.2:1");
      clock.advance(400);
      const nominations = checksTo("198.51.100.2:1").filter(({ message }) => message.useCandidate);
      assert.ok(nominations.length >= 3, `${nominations.length}`);
      reply("198.51.100.2:1");
      clock.advance(2_050);
      assert.equal(checksTo("198.51.100.2:1").at(-1)?.message.useCandidate, !stock);
      agent.close();
    }
  });

  test("with a stock remote a way through a NAT waits shortly for one without, then is taken", () => {
    const { clock, agent, reply, selectedEndpoints } = setUp({ stock: true });
    agent.setRemoteCredentials(REMOTE);
    agent.addRemoteCandidate(candidate("10.0.0.5:1"));
    agent.addRemoteCandidate(candidate("198.51.100.2:1", { type: "srflx" }));
    reply("198.51.100.2:1");
    clock.advance(149);
    assert.deepEqual(selectedEndpoints(), []);
    clock.advance(1);
    assert.deepEqual(selectedEndpoints(), ["198.51.100.2:1"]);
    reply("10.0.0.5:1");
    clock.advance(3_000);
    assert.deepEqual(selectedEndpoints(), ["198.51.100.2:1"], "no second nomination");
    agent.close();
  });

  test("the remote's TURN server is used only when nothing else answers for two seconds", () => {
    const { clock, agent, reply, selectedEndpoints } = setUp();
    agent.setRemoteCredentials(REMOTE);
    agent.addRemoteCandidate(candidate("198.51.100.9:1", { type: "relay" }));
    reply("198.51.100.9:1");
    clock.advance(1_999);
    assert.deepEqual(selectedEndpoints(), []);
    clock.advance(1);
    assert.deepEqual(selectedEndpoints(), ["198.51.100.9:1"]);
    agent.close();
  });

  test("controlled by a stock remote: nominated pairs only, the one of higher priority when there are several", () => {
    const { agent, ask, reply, selectedEndpoints } = setUp({ role: "controlled", stock: true });
    agent.setRemoteCredentials(REMOTE);
    agent.addRemoteCandidate(candidate("198.51.100.2:1", { type: "srflx" }));
    agent.addRemoteCandidate(candidate("10.0.0.5:1"));
    reply("198.51.100.2:1");
    reply("10.0.0.5:1");
    assert.deepEqual(selectedEndpoints(), []);
    ask("198.51.100.2:1", { useCandidate: true });
    assert.deepEqual(selectedEndpoints(), ["198.51.100.2:1"]);
    ask("10.0.0.5:1", { useCandidate: true });
    ask("198.51.100.2:1", { useCandidate: true });
    assert.deepEqual(selectedEndpoints(), ["198.51.100.2:1", "10.0.0.5:1"]);
    agent.close();
  });

  test("controlled by Perch: the first working pair at once, then whatever is nominated last", () => {
    const { agent, ask, reply, events, selectedEndpoints } = setUp({ role: "controlled" });
    agent.setRemoteCredentials(REMOTE);
    agent.addRemoteCandidate(candidate("198.51.100.2:1", { type: "srflx" }));
    agent.addRemoteCandidate(candidate("10.0.0.5:1"));
    reply("10.0.0.5:1");
    assert.equal((events[0]!.payload as IceAgentEvents["selected"]).nominated, false);
    reply("198.51.100.2:1");
    ask("10.0.0.5:1", { useCandidate: true });
    ask("198.51.100.2:1", { useCandidate: true });
    ask("198.51.100.2:1", { useCandidate: true });
    assert.deepEqual(selectedEndpoints(), ["10.0.0.5:1", "198.51.100.2:1"]);
    agent.close();
  });

  test("a nomination that comes before our own answer is remembered until it arrives", () => {
    const { agent, ask, reply, selectedEndpoints } = setUp({ role: "controlled", stock: true });
    ask("198.51.100.2:1", { useCandidate: true });
    ask("198.51.100.2:1");
    agent.setRemoteCredentials(REMOTE);
    assert.deepEqual(selectedEndpoints(), []);
    reply("198.51.100.2:1");
    assert.deepEqual(selectedEndpoints(), ["198.51.100.2:1"]);
    agent.close();
  });
});

describe("keeping", () => {
  test("a process that slept asks again before it calls the path lost", () => {
    const { clock, agent, events, reply, checksTo } = setUp();
    agent.setRemoteCredentials(REMOTE);
    agent.addRemoteCandidate(candidate("198.51.100.2:1"));
    reply("198.51.100.2:1");
    reply("198.51.100.2:1");
    clock.suspend(3_600_000);
    const before = checksTo("198.51.100.2:1").length;
    clock.advance(2_100);
    assert.equal(agent.state, "selected");
    assert.equal(checksTo("198.51.100.2:1").length, before + 1);
    reply("198.51.100.2:1");
    clock.advance(1_000);
    assert.equal(agent.state, "selected");
    clock.suspend(3_600_000);
    clock.advance(2_000);
    assert.deepEqual(events.at(-1), { name: "lost", payload: { reason: "suspicion-confirmed" } });
  });

  test("a listener that closes the agent hears nothing more, and the rest of the turn is not run", () => {
    const { clock, agent, sent, events, reply } = setUp();
    agent.events.on("selected", () => agent.close());
    agent.setRemoteCredentials(REMOTE);
    agent.addRemoteCandidate(candidate("198.51.100.2:1"));
    reply("198.51.100.2:1");
    const before = sent.length;
    clock.advance(20_000);
    assert.equal(sent.length, before);
    assert.equal(events.length, 1);
    assert.equal(clock.pending, 0);
    assert.equal(agent.state, "closed");
  });
});
