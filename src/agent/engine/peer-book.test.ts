import assert from "node:assert/strict";
import { test } from "node:test";
import { create } from "@bufbuild/protobuf";
import fc from "fast-check";
import { parsePrefix } from "#base/ip.ts";
import { PublicKey } from "#base/keys.ts";
import { PerchMapPartSchema, type RemotePeerConfig, RemotePeerConfigSchema } from "#gen/management_pb.ts";
import { createDifference, type MapDifference, PeerBook } from "./peer-book.ts";

const keyOf = (index: number): PublicKey => PublicKey.fromBytes(new Uint8Array(32).fill(index));
const OWN = keyOf(255);

function remote(
  index: number,
  more: { fqdn?: string; allowedIps?: string[]; agentVersion?: string } = {},
): RemotePeerConfig {
  return create(RemotePeerConfigSchema, {
    wgPubKey: keyOf(index),
    fqdn: `peer-${index}.perch.test`,
    allowedIps: [`100.64.0.${index}/32`, `fd00::${index.toString(16)}/128`],
    agentVersion: "0.76.0",
    ...more,
  });
}

function replace(book: PeerBook, remotes: readonly RemotePeerConfig[]): MapDifference {
  const difference = createDifference();
  book.replace(remotes, difference);
  return difference;
}

function part(
  book: PeerBook,
  init: { reset?: boolean; more?: boolean; peers?: RemotePeerConfig[]; removed?: number[] },
) {
  const difference = createDifference();
  const { reset = false, more = false, peers = [], removed = [] } = init;
  const message = create(PerchMapPartSchema, {
    reset,
    more,
    peers: peers.map((peer) => ({ peer })),
    removed: removed.map((index) => PublicKey.toBytes(keyOf(index))),
  });
  book.applyPart(message, difference);
  return difference;
}

const summary = ({ removed, changed, added }: MapDifference) => ({
  removed: [...removed],
  changed: changed.map(({ key }) => key),
  added: added.map(({ key }) => key),
});
const NOTHING = { removed: [], changed: [], added: [] };

test("the same list again changes nothing and keeps every object", () => {
  const book = new PeerBook(OWN);
  replace(book, [remote(1), remote(2)]);
  const before = [...book.peers.values()];
  assert.deepEqual(summary(replace(book, [remote(2), remote(1)])), NOTHING);
  assert.deepEqual([...book.peers.values()], before);
  for (const [i, info] of [...book.peers.values()].entries()) assert.equal(info, before[i]);
});

test("another way to write the same prefix is no change", () => {
  const book = new PeerBook(OWN);
  replace(book, [remote(1)]);
  const info = book.peers.get(keyOf(1));
  assert.deepEqual(summary(replace(book, [remote(1, { allowedIps: ["100.64.0.1", "FD00:0::1/128"] })])), NOTHING);
  assert.equal(book.peers.get(keyOf(1)), info);
});

test("what changed of a peer is seen: name, version, addresses, their number", () => {
  for (const change of [
    { fqdn: "other.perch.test" },
    { agentVersion: "0.40.0" },
    { allowedIps: ["100.64.0.9/32", "fd00::1/128"] },
    { allowedIps: ["100.64.0.1/32"] },
    { allowedIps: ["100.64.0.1/31", "fd00::1/128"] },
    { allowedIps: ["100.64.0.1/32", "fd00::1/12"] },
  ]) {
    const book = new PeerBook(OWN);
    replace(book, [remote(1), remote(2)]);
    const difference = replace(book, [remote(1, change), remote(2)]);
    assert.deepEqual(summary(difference), { ...NOTHING, changed: [keyOf(1)] }, JSON.stringify(change));
  }
});

test("a bad entry is left out and named; ours is no peer; one named twice counts as it was named first", () => {
  const book = new PeerBook(OWN);
  const difference = replace(book, [
    remote(1, { allowedIps: ["100.64.0.400/32"] }),
    remote(255),
    remote(2),
    remote(2, { fqdn: "second.perch.test" }),
  ]);
  assert.deepEqual(summary(difference), { ...NOTHING, added: [keyOf(2)] });
  assert.match(difference.problems.join(), /peer-1\.perch\.test: not an IP address/);
  assert.equal(book.peers.get(keyOf(2))?.fqdn, "peer-2.perch.test");
});

test("a peer whose new entry is bad goes", () => {
  const book = new PeerBook(OWN);
  replace(book, [remote(1), remote(2)]);
  const difference = part(book, { reset: true, peers: [remote(1), remote(2, { allowedIps: ["nonsense"] })] });
  assert.deepEqual(summary(difference), { ...NOTHING, removed: [keyOf(2)] });
});

test("routes belong to their peer's allowed IPs and come and go without its entry", () => {
  const book = new PeerBook(OWN);
  replace(book, [remote(1), remote(2)]);
  const route = parsePrefix("10.0.0.0/8");
  const given = createDifference();
  book.setRoutes(new Map([[keyOf(1), [route]]]), given);
  assert.deepEqual(summary(given), { ...NOTHING, changed: [keyOf(1)] });
  const info = book.peers.get(keyOf(1))!;
  assert.deepEqual(info.allowedIps.at(-1), route);
  assert.deepEqual(info.addresses, ["100.64.0.1", "fd00::1"]);
  assert.deepEqual(summary(replace(book, [remote(1), remote(2)])), NOTHING);
  const taken = createDifference();
  book.setRoutes(new Map([[keyOf(2), [route]]]), taken);
  assert.deepEqual(summary(taken), { ...NOTHING, changed: [keyOf(1), keyOf(2)] });
  assert.deepEqual(book.peers.get(keyOf(1))?.routes, []);
});

test("peers that are in no part of a whole map leave with its last part; a map that was broken off takes nobody away", () => {
  const book = new PeerBook(OWN);
  replace(book, [remote(1), remote(2), remote(3)]);
  assert.deepEqual(summary(part(book, { reset: true, more: true, peers: [remote(1)] })), NOTHING);
  // The stream broke; the next one begins anew.
  assert.deepEqual(summary(part(book, { reset: true, more: true, peers: [remote(2)] })), NOTHING);
  assert.deepEqual(summary(part(book, { peers: [remote(4)] })), {
    removed: [keyOf(1), keyOf(3)],
    changed: [],
    added: [keyOf(4)],
  });
  assert.deepEqual(summary(part(book, { removed: [2, 9], peers: [remote(5)] })), {
    removed: [keyOf(2)],
    changed: [],
    added: [keyOf(5)],
  });
});

test("whatever comes, whole lists or parts, the book holds what was said last", () => {
  const entry = fc.record({ index: fc.integer({ min: 1, max: 8 }), name: fc.constantFrom("a", "b") });
  const list = fc.uniqueArray(entry, { selector: ({ index }) => index });
  const toRemote = ({ index, name }: { index: number; name: string }) => remote(index, { fqdn: name });
  fc.assert(
    fc.property(fc.array(fc.record({ list, how: fc.constantFrom("replace", "reset", "parts", "change") })), (steps) => {
      const book = new PeerBook(OWN);
      const model = new Map<PublicKey, string>();
      const shadow = new Map<PublicKey, string>();
      for (const { list: entries, how } of steps) {
        const difference = createDifference();
        const remotes = entries.map(toRemote);
        if (how !== "change") model.clear();
        for (const { index, name } of entries) model.set(keyOf(index), name);
        if (how === "replace") book.replace(remotes, difference);
        else {
          const cut = how === "parts" ? remotes.length >> 1 : 0;
          const message = (peers: RemotePeerConfig[], reset: boolean, more: boolean) =>
            create(PerchMapPartSchema, { reset, more, peers: peers.map((peer) => ({ peer })) });
          const reset = how !== "change";
          if (cut > 0) book.applyPart(message(remotes.slice(0, cut), reset, true), difference);
          book.applyPart(message(remotes.slice(cut), reset && cut === 0, false), difference);
        }
        // Who only follows the differences comes to the same map.
        for (const key of difference.removed) assert.ok(shadow.delete(key));
        for (const info of difference.changed) assert.ok(shadow.has(info.key) && shadow.set(info.key, info.fqdn));
        for (const info of difference.added) assert.ok(!shadow.has(info.key) && shadow.set(info.key, info.fqdn));
        assert.deepEqual(new Map([...book.peers].map(([key, info]) => [key, info.fqdn])), model);
        assert.deepEqual(shadow, model);
      }
    }),
  );
});
