import { randomBytes, randomUUID } from "node:crypto";
import { chmodSync, closeSync, openSync } from "node:fs";
import { fromBinary, toBinary } from "@bufbuild/protobuf";
import { Kysely, Migrator, type Selectable, type Transaction } from "kysely";
import { messageOf } from "#base/errors.ts";
import { parseIp, parsePrefix } from "#base/ip.ts";
import { PrivateKey, PublicKey } from "#base/keys.ts";
import type { Clock } from "#base/time.ts";
import { type PeerSystemMeta, PeerSystemMetaSchema } from "#gen/management_pb.ts";
import { dnsLabelOf, suffixedDnsLabel } from "../protocol/dns-label.ts";
import { hashSetupKey } from "../protocol/setup-key.ts";
import { pickAddress, pickAddress6, randomNetwork, randomNetwork6 } from "./addresses.ts";
import { type Account, ALL_GROUP, type Peer, type PolicyRule, type RuleProtocolName, setupKeyState } from "./model.ts";
import { migrationProvider, type Tables } from "./schema.ts";
import { NodeSqliteDialect } from "./sqlite-dialect.ts";
import { StoreError } from "./store-error.ts";

export type StoreDatabase = Kysely<Tables>;
export type StoreTransaction = Transaction<Tables>;

export interface StoreOptions {
  /** Where the SQLite file is, or `:memory:`. It is made with mode 0600: it holds the server's key. */
  readonly path: string;
}

export interface NewPeer {
  readonly key: PublicKey;
  /** As the peer sent it, any case. */
  readonly setupKey: string;
  readonly meta: PeerSystemMeta;
  readonly ipv6Usable: boolean;
  readonly sshPublicKey: Uint8Array;
  readonly extraLabels: readonly string[];
}

export interface PeerChanges {
  readonly meta?: PeerSystemMeta;
  readonly ipv6Usable?: boolean;
  readonly sshPublicKey?: Uint8Array;
}

/** When a peer was last here, in milliseconds since the Unix epoch. */
export interface Presence {
  readonly key: PublicKey;
  readonly seenAt: number;
  readonly loginAt: number;
}

/** Labels to try before the name is given up for a random one. */
const LABEL_TRIES = 10;

/**
 * What management keeps: the server's key, the relay secret, the network with its peers, groups and policies, setup keys and
 * admin tokens. Every method that changes something is one transaction and has reached the disk when it resolves. One account.
 */
export class ManagementStore {
  readonly db: StoreDatabase;
  readonly clock: Clock;
  /** Opens the envelopes; made once, kept for ever. */
  readonly serverKey: PrivateKey;
  /** Shared with the relays. */
  readonly relaySecret: string;
  readonly accountId: string;

  private constructor(db: StoreDatabase, clock: Clock, serverKey: PrivateKey, relaySecret: string, accountId: string) {
    this.db = db;
    this.clock = clock;
    this.serverKey = serverKey;
    this.relaySecret = relaySecret;
    this.accountId = accountId;
  }

  /** Opens or makes the database and brings it to the newest form. Throws StoreError `store-unusable`. */
  static async open(deps: { readonly clock: Clock }, options: StoreOptions): Promise<ManagementStore> {
    const { path } = options;
    let db: StoreDatabase | undefined;
    try {
      if (path !== ":memory:") {
        // SQLite gives its log files the mode of the main file.
        closeSync(openSync(path, "a", 0o600));
        chmodSync(path, 0o600);
      }
      db = new Kysely<Tables>({ dialect: new NodeSqliteDialect({ path }) });
      const { error } = await new Migrator({ db, provider: migrationProvider }).migrateToLatest();
      if (error) throw error;
      const identity = await db.transaction().execute((trx) => loadIdentity(trx, deps.clock.wall()));
      return new ManagementStore(db, deps.clock, identity.serverKey, identity.relaySecret, identity.accountId);
    } catch (cause) {
      await db?.destroy();
      throw new StoreError("store-unusable", `cannot use the database ${path}: ${messageOf(cause)}`, { cause });
    }
  }

  async close(): Promise<void> {
    await this.db.destroy();
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.close();
  }

  /** The whole network, at the start of a server. */
  async loadAccount(): Promise<Account> {
    return this.db.transaction().execute(async (trx) => {
      const account = await trx
        .selectFrom("accounts")
        .selectAll()
        .where("id", "=", this.accountId)
        .executeTakeFirstOrThrow();
      const groups = await trx.selectFrom("groups").selectAll().where("account_id", "=", account.id).execute();
      const peers = await trx
        .selectFrom("peers")
        .selectAll()
        .where("account_id", "=", account.id)
        .orderBy("created_at")
        .orderBy("key")
        .execute();
      const members = await trx.selectFrom("group_peers").selectAll().execute();
      const groupsOf = Map.groupBy(members, (member) => member.peer_key);
      return {
        id: account.id,
        domain: account.domain,
        network: parsePrefix(account.network_v4),
        network6: parsePrefix(account.network_v6),
        lazy: account.lazy !== 0,
        serial: account.serial,
        groups: groups.map(({ id, name }) => ({ id, name, isAll: name === ALL_GROUP })),
        rules: await loadRules(trx, account.id),
        peers: peers.map((row) =>
          toPeer(
            row,
            (groupsOf.get(row.key) ?? []).map((member) => member.group_id),
          ),
        ),
      };
    });
  }

  /** When each peer was last here. */
  async loadPresence(): Promise<readonly Presence[]> {
    const rows = await this.db.selectFrom("peers").select(["key", "last_seen_at", "last_login_at"]).execute();
    return rows.map((row) => ({
      key: row.key as PublicKey,
      seenAt: row.last_seen_at,
      loginAt: row.last_login_at,
    }));
  }

  /**
   * Admits a peer: checks and counts the setup key, chooses addresses and a label, raises the serial, all or nothing. Throws
   * StoreError `setup-key-refused`, `extra-labels-refused`, `peer-exists` or `network-full`.
   */
  async registerPeer(peer: NewPeer): Promise<{ readonly peer: Peer; readonly serial: number }> {
    const now = this.clock.wall();
    return this.db.transaction().execute(async (trx) => {
      if (await trx.selectFrom("peers").select("key").where("key", "=", peer.key).executeTakeFirst())
        throw new StoreError("peer-exists", `peer ${PublicKey.short(peer.key)} is registered already`);
      const setupKey = await takeSetupKey(trx, peer, now);
      const account = await trx
        .selectFrom("accounts")
        .selectAll()
        .where("id", "=", this.accountId)
        .executeTakeFirstOrThrow();
      const place = await choosePlace(trx, account, dnsLabelOf(peer.meta.hostname), setupKey.ephemeral !== 0);
      const groups = await trx
        .selectFrom("setup_key_groups")
        .select("group_id")
        .where("setup_key_id", "=", setupKey.id)
        .execute();
      const row: Selectable<Tables["peers"]> = {
        key: peer.key,
        id: randomUUID(),
        account_id: account.id,
        name: peer.meta.hostname,
        ...place,
        extra_labels: JSON.stringify(peer.extraLabels),
        ipv6_usable: Number(peer.ipv6Usable),
        ephemeral: setupKey.ephemeral,
        setup_key_id: setupKey.id,
        ssh_public_key: peer.sshPublicKey,
        meta: toBinary(PeerSystemMetaSchema, peer.meta),
        created_at: now,
        last_login_at: now,
        last_seen_at: now,
      };
      await trx.insertInto("peers").values(row).execute();
      for (const { group_id } of groups)
        await trx.insertInto("group_peers").values({ group_id, peer_key: peer.key }).execute();
      const serial = await raiseSerial(trx, account.id);
      return {
        peer: toPeer(
          row,
          groups.map((group) => group.group_id),
        ),
        serial,
      };
    });
  }

  /** Stores what changed about a peer. Returns the serial, raised if `raise`. */
  async updatePeer(key: PublicKey, changes: PeerChanges, raise: boolean): Promise<number> {
    const { meta, ipv6Usable, sshPublicKey } = changes;
    return this.db.transaction().execute(async (trx) => {
      await trx
        .updateTable("peers")
        .set({
          ...(meta && { meta: toBinary(PeerSystemMetaSchema, meta) }),
          ...(ipv6Usable !== undefined && { ipv6_usable: Number(ipv6Usable) }),
          ...(sshPublicKey && { ssh_public_key: sshPublicKey }),
        })
        .where("key", "=", key)
        .execute();
      return raise ? raiseSerial(trx, this.accountId) : currentSerial(trx, this.accountId);
    });
  }

  /** Forgets peers and their group memberships. Returns the serial, raised if `raise`. */
  async deletePeers(keys: readonly PublicKey[], raise: boolean): Promise<number> {
    return this.db.transaction().execute(async (trx) => {
      for (const key of keys) await trx.deleteFrom("peers").where("key", "=", key).execute();
      return raise ? raiseSerial(trx, this.accountId) : currentSerial(trx, this.accountId);
    });
  }

  /** Switches lazy connections for the network; returns the new serial. */
  async setLazy(lazy: boolean): Promise<number> {
    return this.db.transaction().execute(async (trx) => {
      await trx
        .updateTable("accounts")
        .set({ lazy: Number(lazy) })
        .where("id", "=", this.accountId)
        .execute();
      return raiseSerial(trx, this.accountId);
    });
  }

  async recordPresence(presences: readonly Presence[]): Promise<void> {
    if (presences.length === 0) return;
    await this.db.transaction().execute(async (trx) => {
      for (const { key, seenAt, loginAt } of presences)
        await trx
          .updateTable("peers")
          .set({ last_seen_at: seenAt, last_login_at: loginAt })
          .where("key", "=", key)
          .execute();
    });
  }
}

interface Identity {
  readonly serverKey: PrivateKey;
  readonly relaySecret: string;
  readonly accountId: string;
}

/** Reads the secrets and the account, making what is missing. */
async function loadIdentity(trx: StoreTransaction, now: number): Promise<Identity> {
  const secret = async (name: string, make: () => string): Promise<string> => {
    const found = await trx.selectFrom("instance").select("value").where("name", "=", name).executeTakeFirst();
    if (found) return found.value;
    const value = make();
    await trx.insertInto("instance").values({ name, value }).execute();
    return value;
  };
  const serverKey = PrivateKey.parse(await secret("server-key", () => PrivateKey.generate().toBase64()));
  const relaySecret = await secret("relay-secret", () => randomBytes(32).toString("base64url"));
  const account = await trx.selectFrom("accounts").select("id").executeTakeFirst();
  return { serverKey, relaySecret, accountId: account?.id ?? (await createAccount(trx, now)) };
}

/** A new network: lazy connections on, everyone may talk to everyone. */
async function createAccount(trx: StoreTransaction, now: number): Promise<string> {
  const id = randomUUID();
  const network = randomNetwork();
  const network6 = randomNetwork6();
  await trx
    .insertInto("accounts")
    .values({
      id,
      domain: "",
      network_v4: `${network.address}/${network.bits}`,
      network_v6: `${network6.address}/${network6.bits}`,
      lazy: 1,
      serial: 0,
      created_at: now,
    })
    .execute();
  const group = randomUUID();
  const policy = randomUUID();
  // Short, because every firewall rule of every map carries it.
  const rule = randomBytes(8).toString("hex");
  await trx.insertInto("groups").values({ id: group, account_id: id, name: ALL_GROUP }).execute();
  await trx.insertInto("policies").values({ id: policy, account_id: id, name: "Default", enabled: 1 }).execute();
  await trx
    .insertInto("policy_rules")
    .values({
      id: rule,
      policy_id: policy,
      enabled: 1,
      bidirectional: 1,
      action: "accept",
      protocol: "all",
      ports: "[]",
    })
    .execute();
  for (const side of ["source", "destination"])
    await trx.insertInto("policy_rule_groups").values({ rule_id: rule, group_id: group, side }).execute();
  return id;
}

async function loadRules(trx: StoreTransaction, accountId: string): Promise<readonly PolicyRule[]> {
  const rules = await trx
    .selectFrom("policy_rules")
    .innerJoin("policies", "policies.id", "policy_rules.policy_id")
    .selectAll("policy_rules")
    .where("policies.account_id", "=", accountId)
    .where("policies.enabled", "=", 1)
    .where("policy_rules.enabled", "=", 1)
    .orderBy("policy_rules.id")
    .execute();
  const sides = await trx.selectFrom("policy_rule_groups").selectAll().execute();
  const groupsOf = (rule: string, side: string): readonly string[] =>
    sides.filter((entry) => entry.rule_id === rule && entry.side === side).map((entry) => entry.group_id);
  return rules.map((rule) => ({
    id: rule.id,
    bidirectional: rule.bidirectional !== 0,
    action: rule.action === "drop" ? "drop" : "accept",
    protocol: rule.protocol as RuleProtocolName,
    ports: JSON.parse(rule.ports) as readonly number[],
    sources: groupsOf(rule.id, "source"),
    destinations: groupsOf(rule.id, "destination"),
  }));
}

/** Checks the key and counts its use. A limit of one is what makes a key one-off. */
async function takeSetupKey(
  trx: StoreTransaction,
  peer: NewPeer,
  now: number,
): Promise<Selectable<Tables["setup_keys"]>> {
  const key = await trx
    .selectFrom("setup_keys")
    .selectAll()
    .where("hash", "=", hashSetupKey(peer.setupKey))
    .executeTakeFirst();
  if (!key) throw new StoreError("setup-key-refused", "the setup key is unknown");
  const named = `the setup key ${key.prefix}…`;
  switch (setupKeyState(key, now)) {
    case "revoked":
      throw new StoreError("setup-key-refused", `${named} was revoked`);
    case "expired":
      throw new StoreError("setup-key-refused", `${named} expired at ${new Date(key.expires_at!).toISOString()}`);
    case "used-up":
      throw new StoreError("setup-key-refused", `${named} is used up (${key.used} of ${key.usage_limit} uses)`);
    case "valid":
      break;
  }
  if (peer.extraLabels.length > 0 && key.allow_extra_labels === 0)
    throw new StoreError("extra-labels-refused", `${named} does not permit extra DNS labels`);
  await trx
    .updateTable("setup_keys")
    .set({ used: key.used + 1, last_used_at: now })
    .where("id", "=", key.id)
    .execute();
  return key;
}

/** Addresses and a label that nobody else has. */
async function choosePlace(
  trx: StoreTransaction,
  account: Selectable<Tables["accounts"]>,
  label: string,
  ephemeral: boolean,
): Promise<{ address_v4: string; address_v6: string; dns_label: string }> {
  const rows = await trx
    .selectFrom("peers")
    .select(["address_v4", "dns_label"])
    .where("account_id", "=", account.id)
    .execute();
  const addresses = new Set(rows.map((row) => row.address_v4));
  const labels = new Set(rows.map((row) => row.dns_label));
  const network = parsePrefix(account.network_v4);
  const address_v6 = pickAddress6(parsePrefix(account.network_v6));
  for (let i = 0; ; i++) {
    const address_v4 = pickAddress(network, (address) => addresses.has(address));
    if (address_v4 === undefined)
      throw new StoreError("network-full", `${account.network_v4} has no free address (${rows.length} peers)`);
    if (!ephemeral && !labels.has(label)) return { address_v4, address_v6, dns_label: label };
    const suffixed = suffixedDnsLabel(label, address_v4);
    if (!labels.has(suffixed)) return { address_v4, address_v6, dns_label: suffixed };
    // Somebody's own host name looks like our suffixed one; another address gives another suffix.
    if (i >= LABEL_TRIES) return { address_v4, address_v6, dns_label: `peer-${randomBytes(6).toString("hex")}` };
  }
}

async function raiseSerial(trx: StoreTransaction, accountId: string): Promise<number> {
  const { serial } = await trx
    .updateTable("accounts")
    .set((eb) => ({ serial: eb("serial", "+", 1) }))
    .where("id", "=", accountId)
    .returning("serial")
    .executeTakeFirstOrThrow();
  return serial;
}

async function currentSerial(trx: StoreTransaction, accountId: string): Promise<number> {
  const row = await trx.selectFrom("accounts").select("serial").where("id", "=", accountId).executeTakeFirstOrThrow();
  return row.serial;
}

function toPeer(row: Selectable<Tables["peers"]>, groups: readonly string[]): Peer {
  return {
    id: row.id,
    key: row.key as PublicKey,
    name: row.name,
    dnsLabel: row.dns_label,
    extraLabels: JSON.parse(row.extra_labels) as readonly string[],
    address: parseIp(row.address_v4),
    address6: parseIp(row.address_v6),
    ipv6Usable: row.ipv6_usable !== 0,
    ephemeral: row.ephemeral !== 0,
    groups,
    sshPublicKey: row.ssh_public_key,
    meta: fromBinary(PeerSystemMetaSchema, row.meta),
    createdAt: row.created_at,
  };
}
