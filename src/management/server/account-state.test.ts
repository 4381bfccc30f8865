import assert from "node:assert/strict";
import { test } from "node:test";
import fc from "fast-check";
import { parseIp, parsePrefix } from "#base/ip.ts";
import type { PublicKey } from "#base/keys.ts";
import { testMeta } from "../test-server.ts";
import { AccountState, DIRECTION_IN, DIRECTION_OUT } from "./account-state.ts";
import type { Account, Peer, PolicyRule } from "./model.ts";

function newPeer(name: string, groups: readonly string[] = []): Peer {
  const number = [...name].reduce((sum, character) => sum + character.charCodeAt(0), 0);
  return {
    id: name,
    key: name as PublicKey,
    name,
    dnsLabel: name,
    extraLabels: [],
    address: parseIp(`100.77.${number >> 8}.${number & 0xff}`),
    address6: parseIp(`fd00::${number.toString(16)}`),
    ipv6Usable: true,
    ephemeral: false,
    groups,
    sshPublicKey: new Uint8Array(0),
    meta: testMeta(name),
    createdAt: 0,
  };
}

function newRule(fields: Partial<PolicyRule>): PolicyRule {
  return {
    id: "rule",
    bidirectional: false,
    action: "accept",
    protocol: "all",
    ports: [],
    sources: [],
    destinations: [],
    ...fields,
  };
}

function newState(rules: readonly PolicyRule[], peers: readonly Peer[]): AccountState {
  const account: Account = {
    id: "account",
    domain: "",
    network: parsePrefix("100.77.0.0/16"),
    network6: parsePrefix("fd00::/64"),
    lazy: true,
    serial: 5,
    groups: [{ id: "all", name: "All", isAll: true }],
    rules,
    peers,
  };
  return new AccountState(account, "perch.internal");
}

/** `name>` may be reached, `name<` may come in. */
function seenBy(state: AccountState, receiver: Peer): readonly string[] {
  return state
    .visibleTo(receiver)
    .rules.flatMap(({ peer, directions }) => [
      ...(directions & DIRECTION_OUT ? [`${peer.name}>`] : []),
      ...(directions & DIRECTION_IN ? [`${peer.name}<`] : []),
    ])
    .sort();
}

const client = newPeer("client", ["clients"]);
const web = newPeer("web", ["servers"]);
const db = newPeer("db", ["servers"]);
const stranger = newPeer("stranger");
const everyone = [client, web, db, stranger];

test("5.5: a one-way rule shows each side the other, and lets traffic in at the destination alone", () => {
  const state = newState([newRule({ sources: ["clients"], destinations: ["servers"] })], everyone);
  assert.deepEqual(seenBy(state, client), ["db>", "web>"]);
  assert.deepEqual(seenBy(state, web), ["client<"]);
  assert.deepEqual(seenBy(state, stranger), []);
  assert.deepEqual(
    state.visibleTo(web).peers.map((peer) => peer.name),
    ["client"],
  );
});

test("5.5: a two-way rule adds the mirrored direction", () => {
  const state = newState([newRule({ sources: ["clients"], destinations: ["servers"], bidirectional: true })], everyone);
  assert.deepEqual(seenBy(state, client), ["db<", "db>", "web<", "web>"]);
  assert.deepEqual(seenBy(state, web), ["client<", "client>"]);
});

test("5.5: All reaches every peer but the receiver itself, and several rules name a peer once", () => {
  const rules = [
    newRule({ id: "a", sources: ["all"], destinations: ["all"], bidirectional: true }),
    newRule({ id: "b", sources: ["clients"], destinations: ["servers"] }),
  ];
  const state = newState(rules, everyone);
  assert.deepEqual(
    state.visibleTo(client).peers.map((peer) => peer.name),
    ["web", "db", "stranger"],
  );
  assert.deepEqual(seenBy(state, stranger), ["client<", "client>", "db<", "db>", "web<", "web>"]);
});

test("the serial never goes back, whatever order answers of the store come in", () => {
  const state = newState([], everyone);
  state.put(web, 9);
  state.put(db, 7);
  assert.equal(state.serial, 9);
  state.setLazy(false, 8);
  state.remove(db.key, 3);
  assert.equal(state.serial, 9);
});

test("who sees whom is mutual and agrees with areConnected, under any rules", () => {
  const groups = ["all", "g0", "g1", "g2"];
  const someGroups = fc.subarray(groups);
  const rules = fc.array(
    fc.record({ sources: someGroups, destinations: someGroups, bidirectional: fc.boolean() }).map(newRule),
    { maxLength: 4 },
  );
  const memberships = fc.array(fc.subarray(groups.slice(1)), { minLength: 2, maxLength: 6 });
  fc.assert(
    fc.property(rules, memberships, (someRules, someMemberships) => {
      const peers = someMemberships.map((member, i) => newPeer(`p${i}`, member));
      const state = newState(
        someRules.map((rule, i) => ({ ...rule, id: String(i) })),
        peers,
      );
      for (const a of peers) {
        const seen = new Set(state.visibleTo(a).peers);
        assert.ok(!seen.has(a));
        for (const b of peers) {
          if (a === b) continue;
          assert.equal(seen.has(b), state.areConnected(a, b));
          assert.equal(seen.has(b), state.visibleTo(b).peers.includes(a));
          // What one side may send, the other side lets in.
          assert.equal(seenBy(state, a).includes(`${b.name}>`), seenBy(state, b).includes(`${a.name}<`));
        }
      }
    }),
  );
});

test("what a rule allows with everybody and what the rest of it allows with one peer is what it allows with that peer", () => {
  const groups = fc.subarray(["all", "red", "blue"], { minLength: 1 });
  const rule = fc.record({ sources: groups, destinations: groups, bidirectional: fc.boolean() });
  const own = fc.subarray(["red", "blue"]);
  fc.assert(
    fc.property(rule, own, own, (fields, mine, theirs) => {
      const [receiver, peer] = [newPeer("a", mine), newPeer("b", theirs)];
      const state = newState([newRule(fields)], [receiver, peer]);
      const between = state.rulesBetween(receiver, peer)[0]?.directions ?? 0;
      const forAll = state.rulesForAll(receiver).values().next().value ?? 0;
      assert.equal(forAll & ~between, 0, "nobody gets more than the rule allows");
      // A stranger in no group but the built-in one gets exactly that.
      const stranger = newPeer("c");
      assert.equal(state.rulesBetween(receiver, stranger)[0]?.directions ?? 0, forAll);
    }),
  );
});
