/** The tables of the management store and the numbered steps that make them. Times are milliseconds since the Unix epoch. */
import { type Kysely, type Migration, type MigrationProvider, sql } from "kysely";

/** Booleans are 0 and 1. */
type Flag = number;

export interface Tables {
  /** Secrets of this instance: the key that opens envelopes, the secret shared with the relays. */
  instance: { name: string; value: string };
  accounts: {
    id: string;
    /** Empty: the server's default. */
    domain: string;
    /** `100.x.0.0/16` */
    network_v4: string;
    /** `fd…::/64` */
    network_v6: string;
    lazy: Flag;
    /** Grows with every change that maps show; never goes back. */
    serial: number;
    created_at: number;
  };
  groups: { id: string; account_id: string; name: string };
  policies: { id: string; account_id: string; name: string; enabled: Flag };
  policy_rules: {
    id: string;
    policy_id: string;
    enabled: Flag;
    bidirectional: Flag;
    /** `accept` or `drop` */
    action: string;
    /** `all`, `tcp`, `udp` or `icmp` */
    protocol: string;
    /** JSON array of port numbers; empty: all. */
    ports: string;
  };
  policy_rule_groups: { rule_id: string; group_id: string /** `source` or `destination` */; side: string };
  setup_keys: {
    id: string;
    account_id: string;
    /** base64 of SHA-256 over the upper-case key; the key itself is kept nowhere. */
    hash: string;
    /** The first characters of the key, to tell keys apart. */
    prefix: string;
    name: string;
    reusable: Flag;
    ephemeral: Flag;
    allow_extra_labels: Flag;
    /** 0: no limit. */
    usage_limit: number;
    used: number;
    created_at: number;
    expires_at: number | null;
    revoked_at: number | null;
    last_used_at: number | null;
  };
  setup_key_groups: { setup_key_id: string; group_id: string };
  peers: {
    /** Canonical base64 of the WireGuard public key. */
    key: string;
    id: string;
    account_id: string;
    name: string;
    dns_label: string;
    /** JSON array. */
    extra_labels: string;
    address_v4: string;
    address_v6: string;
    /** Whether the login that is in force said that the peer can use IPv6; Login and Sync must tell the same. */
    ipv6_usable: Flag;
    ephemeral: Flag;
    setup_key_id: string | null;
    ssh_public_key: Uint8Array;
    /** An encoded PeerSystemMeta. */
    meta: Uint8Array;
    created_at: number;
    last_login_at: number;
    last_seen_at: number;
  };
  group_peers: { group_id: string; peer_key: string };
  admin_tokens: {
    id: string;
    name: string;
    /** base64 of SHA-256 over the token. */
    hash: string;
    created_at: number;
    expires_at: number | null;
  };
}

const initial: Migration = {
  async up(db: Kysely<unknown>) {
    for (const statement of [
      sql`create table instance (name text primary key, value text not null)`,
      sql`create table accounts (
        id text primary key, domain text not null, network_v4 text not null, network_v6 text not null,
        lazy integer not null, serial integer not null, created_at integer not null)`,
      sql`create table groups (
        id text primary key, account_id text not null references accounts (id), name text not null,
        unique (account_id, name))`,
      sql`create table policies (
        id text primary key, account_id text not null references accounts (id), name text not null,
        enabled integer not null)`,
      sql`create table policy_rules (
        id text primary key, policy_id text not null references policies (id) on delete cascade,
        enabled integer not null, bidirectional integer not null, action text not null, protocol text not null,
        ports text not null)`,
      sql`create table policy_rule_groups (
        rule_id text not null references policy_rules (id) on delete cascade,
        group_id text not null references groups (id), side text not null, primary key (rule_id, side, group_id))`,
      sql`create table setup_keys (
        id text primary key, account_id text not null references accounts (id), hash text not null unique,
        prefix text not null, name text not null, reusable integer not null, ephemeral integer not null,
        allow_extra_labels integer not null, usage_limit integer not null, used integer not null,
        created_at integer not null, expires_at integer, revoked_at integer, last_used_at integer)`,
      sql`create table setup_key_groups (
        setup_key_id text not null references setup_keys (id) on delete cascade,
        group_id text not null references groups (id), primary key (setup_key_id, group_id))`,
      sql`create table peers (
        key text primary key, id text not null unique, account_id text not null references accounts (id),
        name text not null, dns_label text not null, extra_labels text not null, address_v4 text not null,
        address_v6 text not null, ipv6_usable integer not null, ephemeral integer not null, setup_key_id text,
        ssh_public_key blob not null, meta blob not null, created_at integer not null, last_login_at integer not null,
        last_seen_at integer not null,
        unique (account_id, dns_label), unique (account_id, address_v4), unique (account_id, address_v6))`,
      sql`create table group_peers (
        group_id text not null references groups (id),
        peer_key text not null references peers (key) on delete cascade, primary key (group_id, peer_key))`,
      sql`create index group_peers_by_peer on group_peers (peer_key)`,
      sql`create table admin_tokens (
        id text primary key, name text not null, hash text not null unique, created_at integer not null,
        expires_at integer)`,
    ])
      await statement.execute(db);
  },
};

/** In order of their names; a step that was released is never changed. */
export const MIGRATIONS: Readonly<Record<string, Migration>> = { "0001-initial": initial };

export const migrationProvider: MigrationProvider = {
  async getMigrations() {
    return { ...MIGRATIONS };
  },
};
