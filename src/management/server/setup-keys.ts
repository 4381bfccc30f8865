/** Setup keys and admin tokens: made, listed, revoked. Source: protocol/management.md, section 5.2. */
import { createHash, randomBytes, randomUUID } from "node:crypto";
import type { Selectable } from "kysely";
import type { Millis } from "#base/time.ts";
import { createSetupKeyText, hashSetupKey } from "../protocol/setup-key.ts";
import { ALL_GROUP, type SetupKeyInfo, setupKeyState } from "./model.ts";
import type { Tables } from "./schema.ts";
import type { ManagementStore, StoreTransaction } from "./store.ts";
import { StoreError } from "./store-error.ts";

export interface NewSetupKey {
  readonly name?: string | undefined;
  /** False: it admits one peer. Default false. */
  readonly reusable?: boolean | undefined;
  /** How many peers a reusable key admits; 0, the default: any number. */
  readonly usageLimit?: number | undefined;
  /** Its peers are forgotten ten minutes after they leave. Default false. */
  readonly ephemeral?: boolean | undefined;
  /** Default: it never expires. */
  readonly expiresInMs?: Millis | undefined;
  /** Names of the groups its peers join; missing ones are made. */
  readonly groups?: readonly string[] | undefined;
  readonly allowExtraLabels?: boolean | undefined;
}

/** Characters of a key that lists show; 90 of its 122 random bits stay secret. */
const PREFIX_CHARACTERS = 8;
const TOKEN_PREFIX = "perch_";
const TOKEN_BYTES = 32;

/** Makes a key; `key` is shown here and never again. Throws StoreError `setting-invalid`. */
export async function createSetupKey(
  store: ManagementStore,
  options: NewSetupKey,
): Promise<{ readonly key: string; readonly info: SetupKeyInfo }> {
  const { name = "", reusable = false, ephemeral = false, expiresInMs, allowExtraLabels = false } = options;
  const usageLimit = reusable ? (options.usageLimit ?? 0) : 1;
  if (!Number.isSafeInteger(usageLimit) || usageLimit < 0)
    throw new StoreError("setting-invalid", `a usage limit is a whole number from 0, got ${usageLimit}`);
  if (!reusable && options.usageLimit !== undefined && options.usageLimit !== 1)
    throw new StoreError("setting-invalid", `a key with ${options.usageLimit} uses must be reusable`);
  if (expiresInMs !== undefined && !(expiresInMs > 0 && Number.isFinite(expiresInMs)))
    throw new StoreError("setting-invalid", `a setup key lives longer than 0 ms, got ${expiresInMs}`);
  const groupNames = [...new Set(options.groups ?? [])].filter((group) => group !== ALL_GROUP);
  if (groupNames.some((group) => group.trim() === ""))
    throw new StoreError("setting-invalid", "a group needs a name that is not empty");
  const key = createSetupKeyText();
  const now = store.clock.wall();
  const row: Selectable<Tables["setup_keys"]> = {
    id: randomUUID(),
    account_id: store.accountId,
    hash: hashSetupKey(key),
    prefix: key.slice(0, PREFIX_CHARACTERS),
    name,
    reusable: Number(reusable),
    ephemeral: Number(ephemeral),
    allow_extra_labels: Number(allowExtraLabels),
    usage_limit: usageLimit,
    used: 0,
    created_at: now,
    expires_at: expiresInMs === undefined ? null : Math.round(now + expiresInMs),
    revoked_at: null,
    last_used_at: null,
  };
  await store.db.transaction().execute(async (trx) => {
    await trx.insertInto("setup_keys").values(row).execute();
    for (const group of groupNames) {
      const group_id = await ensureGroup(trx, store.accountId, group);
      await trx.insertInto("setup_key_groups").values({ setup_key_id: row.id, group_id }).execute();
    }
  });
  return { key, info: toInfo(row, groupNames, now) };
}

/** All keys, oldest first, revoked and expired ones too. */
export async function listSetupKeys(store: ManagementStore): Promise<readonly SetupKeyInfo[]> {
  const rows = await store.db.selectFrom("setup_keys").selectAll().orderBy("created_at").orderBy("id").execute();
  const groups = await store.db
    .selectFrom("setup_key_groups")
    .innerJoin("groups", "groups.id", "setup_key_groups.group_id")
    .select(["setup_key_id", "name"])
    .execute();
  const now = store.clock.wall();
  const namesOf = Map.groupBy(groups, (group) => group.setup_key_id);
  return rows.map((row) =>
    toInfo(
      row,
      (namesOf.get(row.id) ?? []).map((group) => group.name),
      now,
    ),
  );
}

/**
 * Revokes the one key whose id, or whose own text, begins like this; peers it admitted stay. Revoking twice changes nothing.
 * Throws StoreError `setup-key-unknown` or `setup-key-ambiguous`.
 */
export async function revokeSetupKey(store: ManagementStore, idOrPrefix: string): Promise<SetupKeyInfo> {
  const wanted = idOrPrefix.trim().toLowerCase();
  const keys = await listSetupKeys(store);
  const byHash = wanted.length === 36 ? hashSetupKey(wanted) : undefined;
  const whole = byHash
    ? await store.db.selectFrom("setup_keys").select("id").where("hash", "=", byHash).executeTakeFirst()
    : undefined;
  const found = whole
    ? keys.filter((key) => key.id === whole.id)
    : wanted === ""
      ? []
      : keys.filter((key) => key.id.startsWith(wanted) || key.prefix.toLowerCase().startsWith(wanted));
  // The text may be a whole key: name no more of it than lists show.
  const shown = JSON.stringify(idOrPrefix.slice(0, PREFIX_CHARACTERS));
  if (found.length === 0) throw new StoreError("setup-key-unknown", `no setup key begins with ${shown}`);
  if (found.length > 1)
    throw new StoreError("setup-key-ambiguous", `${found.length} setup keys begin with ${shown}: give more characters`);
  const [key] = found;
  const now = store.clock.wall();
  await store.db
    .updateTable("setup_keys")
    .set({ revoked_at: now })
    .where("id", "=", key!.id)
    .where("revoked_at", "is", null)
    .execute();
  return { ...key!, revokedAt: key!.revokedAt ?? now, state: "revoked" };
}

export interface NewAdminToken {
  readonly name?: string | undefined;
  /** Default: it never expires. */
  readonly expiresInMs?: Millis | undefined;
}

/** Makes a token for the administration API; shown here and never again. Throws StoreError `setting-invalid`. */
export async function createAdminToken(
  store: ManagementStore,
  options: NewAdminToken,
): Promise<{ readonly id: string; readonly token: string }> {
  const { name = "", expiresInMs } = options;
  if (expiresInMs !== undefined && !(expiresInMs > 0 && Number.isFinite(expiresInMs)))
    throw new StoreError("setting-invalid", `an admin token lives longer than 0 ms, got ${expiresInMs}`);
  const now = store.clock.wall();
  const id = randomUUID();
  const token = TOKEN_PREFIX + randomBytes(TOKEN_BYTES).toString("base64url");
  await store.db
    .insertInto("admin_tokens")
    .values({
      id,
      name,
      hash: hashToken(token),
      created_at: now,
      expires_at: expiresInMs === undefined ? null : Math.round(now + expiresInMs),
    })
    .execute();
  return { id, token };
}

/** How many admin tokens exist that have not expired; none means that the first one must be made. */
export async function countAdminTokens(store: ManagementStore): Promise<number> {
  const now = store.clock.wall();
  const rows = await store.db.selectFrom("admin_tokens").select("expires_at").execute();
  return rows.filter((row) => row.expires_at === null || now < row.expires_at).length;
}

export async function verifyAdminToken(store: ManagementStore, token: string): Promise<boolean> {
  // Looked up by its hash: what the comparison takes tells nothing about a token of 256 random bits.
  const row = await store.db
    .selectFrom("admin_tokens")
    .select("expires_at")
    .where("hash", "=", hashToken(token))
    .executeTakeFirst();
  return row !== undefined && (row.expires_at === null || store.clock.wall() < row.expires_at);
}

function hashToken(token: string): string {
  return createHash("sha256").update(token, "utf8").digest("base64");
}

async function ensureGroup(trx: StoreTransaction, accountId: string, name: string): Promise<string> {
  const found = await trx
    .selectFrom("groups")
    .select("id")
    .where("account_id", "=", accountId)
    .where("name", "=", name)
    .executeTakeFirst();
  if (found) return found.id;
  const id = randomUUID();
  await trx.insertInto("groups").values({ id, account_id: accountId, name }).execute();
  return id;
}

function toInfo(row: Selectable<Tables["setup_keys"]>, groups: readonly string[], now: number): SetupKeyInfo {
  return {
    id: row.id,
    prefix: row.prefix,
    name: row.name,
    reusable: row.reusable !== 0,
    ephemeral: row.ephemeral !== 0,
    allowExtraLabels: row.allow_extra_labels !== 0,
    usageLimit: row.usage_limit,
    used: row.used,
    groups,
    createdAt: row.created_at,
    expiresAt: row.expires_at ?? undefined,
    revokedAt: row.revoked_at ?? undefined,
    lastUsedAt: row.last_used_at ?? undefined,
    state: setupKeyState(row, now),
  };
}
