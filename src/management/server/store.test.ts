import assert from "node:assert/strict";
import { statSync, writeFileSync } from "node:fs";
import { DatabaseSync } from "node:sqlite";
import { test } from "node:test";
import { sql } from "kysely";
import { PrivateKey } from "#base/keys.ts";
import { ManualClock } from "#base/time.ts";
import { temporaryDirectory, testMeta } from "../test-server.ts";
import { createAdminToken, createSetupKey, listSetupKeys, revokeSetupKey, verifyAdminToken } from "./setup-keys.ts";
import { ManagementStore, type NewPeer } from "./store.ts";
import { StoreError } from "./store-error.ts";

const open = (clock = new ManualClock(), path = ":memory:"): Promise<ManagementStore> =>
  ManagementStore.open({ clock }, { path });

function newPeer(setupKey: string, hostname = "host", more: Partial<NewPeer> = {}): NewPeer {
  return {
    key: PrivateKey.generate().publicKey,
    setupKey,
    meta: testMeta(hostname),
    ipv6Usable: true,
    sshPublicKey: new Uint8Array(0),
    extraLabels: [],
    ...more,
  };
}

const refused = (code: StoreError["code"], pattern = /./) => {
  return (error: unknown) => error instanceof StoreError && error.code === code && pattern.test(error.message);
};

test("a one-off key admits one peer, however many come at the same moment", async () => {
  await using store = await open();
  const { key } = await createSetupKey(store, {});
  const results = await Promise.allSettled(Array.from({ length: 20 }, () => store.registerPeer(newPeer(key))));
  assert.equal(results.filter((result) => result.status === "fulfilled").length, 1);
  for (const result of results)
    if (result.status === "rejected") assert.ok(refused("setup-key-refused", /1 of 1/)(result.reason), result.reason);
  assert.equal((await store.loadAccount()).peers.length, 1);
  assert.equal((await listSetupKeys(store))[0]!.used, 1);
});

test("a limited key admits exactly as many peers as it says, through two connections to the same file", async () => {
  using directory = temporaryDirectory();
  const path = `${directory.path}/m.db`;
  await using one = await open(new ManualClock(), path);
  await using two = await open(new ManualClock(), path);
  const { key } = await createSetupKey(one, { reusable: true, usageLimit: 7 });
  const results = await Promise.allSettled(
    Array.from({ length: 20 }, (_, i) => (i % 2 ? one : two).registerPeer(newPeer(key, `h${i}`))),
  );
  assert.equal(results.filter((result) => result.status === "fulfilled").length, 7);
  const account = await two.loadAccount();
  assert.equal(account.peers.length, 7);
  assert.equal(account.serial, 7);
  assert.equal((await listSetupKeys(one))[0]!.state, "used-up");
});

test("registering the same key twice at once makes one peer and counts one use", async () => {
  await using store = await open();
  const { key } = await createSetupKey(store, { reusable: true });
  const peer = newPeer(key);
  const results = await Promise.allSettled([store.registerPeer(peer), store.registerPeer(peer)]);
  assert.deepEqual(results.map((result) => result.status).sort(), ["fulfilled", "rejected"]);
  assert.ok(results.some((result) => result.status === "rejected" && refused("peer-exists")(result.reason)));
  assert.equal((await listSetupKeys(store))[0]!.used, 1);
});

test("unknown, revoked and expired keys are refused with the reason; a key works in any case", async () => {
  const clock = new ManualClock();
  await using store = await open(clock);
  await assert.rejects(store.registerPeer(newPeer(crypto.randomUUID())), refused("setup-key-refused", /unknown/));
  const { key, info } = await createSetupKey(store, { reusable: true, expiresInMs: 1000 });
  await store.registerPeer(newPeer(key.toLowerCase()));
  clock.advance(999);
  await store.registerPeer(newPeer(key));
  clock.advance(1);
  await assert.rejects(store.registerPeer(newPeer(key)), refused("setup-key-refused", /expired at \d{4}-/));
  const second = await createSetupKey(store, { reusable: true });
  assert.equal((await revokeSetupKey(store, second.info.id)).state, "revoked");
  await assert.rejects(store.registerPeer(newPeer(second.key)), refused("setup-key-refused", /revoked/));
  assert.equal((await listSetupKeys(store)).find((entry) => entry.id === info.id)?.state, "expired");
});

test("a key is revoked by its beginning, its id or its whole text, and only when that names one", async () => {
  await using store = await open();
  const keys = await Promise.all(Array.from({ length: 20 }, () => createSetupKey(store, {})));
  await revokeSetupKey(store, keys[0]!.key.toLowerCase());
  await revokeSetupKey(store, keys[1]!.key.slice(0, 8));
  await revokeSetupKey(store, keys[2]!.info.id);
  const states = new Map((await listSetupKeys(store)).map((key) => [key.id, key.state]));
  assert.deepEqual(
    keys.map(({ info }) => states.get(info.id)),
    [...Array(3).fill("revoked"), ...Array(17).fill("valid")],
  );
  await assert.rejects(revokeSetupKey(store, ""), refused("setup-key-unknown"));
  await assert.rejects(
    revokeSetupKey(store, crypto.randomUUID()),
    (error) => refused("setup-key-unknown")(error) && (error as Error).message.length < 50,
  );
  // Forty ids and prefixes begin with one of sixteen digits: some digit begins two keys.
  const ambiguous = await Promise.allSettled([..."0123456789abcdef"].map((digit) => revokeSetupKey(store, digit)));
  assert.ok(ambiguous.some((result) => result.status === "rejected" && refused("setup-key-ambiguous")(result.reason)));
});

test("neither keys nor tokens are in the database, and its files are for the owner alone", async () => {
  using directory = temporaryDirectory();
  const path = `${directory.path}/m.db`;
  await using store = await open(new ManualClock(), path);
  const { key } = await createSetupKey(store, { name: "n" });
  const { token } = await createAdminToken(store, {});
  assert.equal(await verifyAdminToken(store, token), true);
  assert.equal(await verifyAdminToken(store, `${token}x`), false);
  assert.equal(await verifyAdminToken(store, ""), false);
  const raw = new DatabaseSync(path, { readOnly: true });
  const text = JSON.stringify([
    raw.prepare("select * from setup_keys").all(),
    raw.prepare("select * from admin_tokens").all(),
  ]);
  raw.close();
  assert.ok(text.includes(key.slice(0, 8)));
  assert.ok(!text.toLowerCase().includes(key.slice(9).toLowerCase()));
  assert.ok(!text.includes(token.slice(6)));
  for (const suffix of ["", "-wal", "-shm"]) assert.equal(statSync(path + suffix).mode & 0o777, 0o600);
});

test("an admin token ends when it said", async () => {
  const clock = new ManualClock();
  await using store = await open(clock);
  const { token } = await createAdminToken(store, { expiresInMs: 5 });
  assert.equal(await verifyAdminToken(store, token), true);
  clock.advance(5);
  assert.equal(await verifyAdminToken(store, token), false);
});

test("a setup key's properties are checked and the message names the value", async () => {
  await using store = await open();
  for (const [options, pattern] of [
    [{ reusable: true, usageLimit: -1 }, /-1/],
    [{ reusable: true, usageLimit: 1.5 }, /1\.5/],
    [{ usageLimit: 3 }, /3 uses/],
    [{ expiresInMs: 0 }, /got 0/],
    [{ expiresInMs: Number.NaN }, /NaN/],
    [{ groups: [" "] }, /group/],
  ] as const)
    await assert.rejects(createSetupKey(store, options), refused("setting-invalid", pattern));
  assert.deepEqual(await listSetupKeys(store), []);
});

test("4.7: a taken label and an ephemeral peer get the octets of their address", async () => {
  await using store = await open();
  const plain = await createSetupKey(store, { reusable: true });
  const ephemeral = await createSetupKey(store, { reusable: true, ephemeral: true });
  const first = (await store.registerPeer(newPeer(plain.key, "web"))).peer;
  const second = (await store.registerPeer(newPeer(plain.key, "WEB.example.com"))).peer;
  const third = (await store.registerPeer(newPeer(ephemeral.key, "job"))).peer;
  const octets = (address: string): string => address.split(".").slice(2).join("-");
  assert.equal(first.dnsLabel, "web");
  assert.equal(second.dnsLabel, `web-${octets(second.address)}`);
  assert.equal(third.dnsLabel, `job-${octets(third.address)}`);
  assert.equal(third.ephemeral, true);
  assert.equal(second.name, "WEB.example.com");
});

test("peers join the groups of their key, which are made when missing", async () => {
  await using store = await open();
  const { key, info } = await createSetupKey(store, { reusable: true, groups: ["web", "db", "web", "All"] });
  assert.deepEqual(info.groups, ["web", "db"]);
  const { peer } = await store.registerPeer(newPeer(key));
  const account = await store.loadAccount();
  const names = peer.groups.map((id) => account.groups.find((group) => group.id === id)?.name).sort();
  assert.deepEqual(names, ["db", "web"]);
  assert.deepEqual([...account.peers[0]!.groups].sort(), [...peer.groups].sort());
});

test("extra labels need the permission of the key", async () => {
  await using store = await open();
  const plain = await createSetupKey(store, { reusable: true });
  const permitted = await createSetupKey(store, { reusable: true, allowExtraLabels: true });
  const labels = { extraLabels: ["www"] };
  await assert.rejects(store.registerPeer(newPeer(plain.key, "a", labels)), refused("extra-labels-refused"));
  assert.equal((await listSetupKeys(store))[0]!.used, 0);
  assert.deepEqual((await store.registerPeer(newPeer(permitted.key, "a", labels))).peer.extraLabels, ["www"]);
});

test("5.3: networks and addresses are of the prescribed ranges and never given twice", async () => {
  await using store = await open();
  const { key } = await createSetupKey(store, { reusable: true });
  for (let i = 0; i < 50; i++) await store.registerPeer(newPeer(key, "same"));
  const account = await store.loadAccount();
  assert.match(account.network.address, /^100\.(6[4-9]|[7-9]\d|1[01]\d|12[0-7])\.0\.0$/);
  assert.equal(account.network.bits, 16);
  assert.match(account.network6.address, /^fd/);
  assert.equal(account.network6.bits, 64);
  for (const what of ["address", "address6", "dnsLabel", "key", "id"] as const)
    assert.equal(new Set(account.peers.map((peer) => peer[what])).size, 50, what);
});

test("the serial rises with every visible change, and neither deletion nor a new start takes it back", async () => {
  using directory = temporaryDirectory();
  const path = `${directory.path}/m.db`;
  const store = await open(new ManualClock(), path);
  const { key } = await createSetupKey(store, { reusable: true });
  const { peer, serial } = await store.registerPeer(newPeer(key));
  assert.equal(serial, 1);
  assert.equal(await store.updatePeer(peer.key, { meta: testMeta("x") }, false), 1);
  assert.equal(await store.setLazy(false), 2);
  assert.equal(await store.deletePeers([peer.key], false), 2);
  assert.equal(await store.deletePeers([peer.key], true), 3);
  await store.close();
  await using again = await open(new ManualClock(), path);
  const account = await again.loadAccount();
  assert.equal(account.serial, 3);
  assert.equal(account.lazy, false);
  assert.deepEqual(account.peers, []);
});

test("what is loaded again is what was registered", async () => {
  using directory = temporaryDirectory();
  const path = `${directory.path}/m.db`;
  const store = await open(new ManualClock(), path);
  const { key } = await createSetupKey(store, { reusable: true });
  const { peer } = await store.registerPeer(
    newPeer(key, "bücher", { sshPublicKey: new TextEncoder().encode("ssh-ed25519 AAAA") }),
  );
  const { serverKey, relaySecret } = store;
  await store.close();
  await using again = await open(new ManualClock(), path);
  assert.deepEqual((await again.loadAccount()).peers, [peer]);
  assert.equal(again.serverKey.publicKey, serverKey.publicKey);
  assert.equal(again.relaySecret, relaySecret);
});

test("a database that is not ours, or a directory that is not there, is refused and named", async () => {
  using directory = temporaryDirectory();
  const path = `${directory.path}/other`;
  writeFileSync(path, "this is no database, but a text that is longer than a header of one hundred bytes".repeat(20));
  await assert.rejects(open(new ManualClock(), path), refused("store-unusable", /other/));
  await assert.rejects(open(new ManualClock(), `${directory.path}/none/m.db`), refused("store-unusable", /none/));
});

test("a network without a free address says so and counts no use of the key", async () => {
  await using store = await open();
  const { key } = await createSetupKey(store, { reusable: true });
  const { peer } = await store.registerPeer(newPeer(key, "first"));
  const account = await store.loadAccount();
  const prefix = account.network.address.replace(/0\.0$/, "");
  // Every other host of the network, as copies of the first peer.
  await sql`with recursive hosts (n) as (select 1 union all select n + 1 from hosts where n < 65534)
    insert into peers select 'k' || n, 'i' || n, account_id, name, 'l' || n, extra_labels,
      ${prefix} || (n / 256) || '.' || (n % 256), '6-' || n, ipv6_usable, ephemeral, setup_key_id, ssh_public_key, meta,
      created_at, last_login_at, last_seen_at
    from hosts, peers where peers.key = ${peer.key}
      and ${prefix} || (n / 256) || '.' || (n % 256) <> ${peer.address}`.execute(store.db);
  await assert.rejects(store.registerPeer(newPeer(key)), refused("network-full", /65534 peers/));
  const free = peer.address === `${prefix}3.9` ? "3.10" : "3.9";
  await store.db
    .deleteFrom("peers")
    .where("address_v4", "=", prefix + free)
    .execute();
  const { peer: last } = await store.registerPeer(newPeer(key, "last"));
  assert.equal(last.address, prefix + free);
  assert.equal((await listSetupKeys(store))[0]!.used, 2);
});
