import { z } from "zod";
import { KeyError, PublicKey } from "#base/keys.ts";
import type { ManagementServer } from "#management/server/management-server.ts";
import type { SetupKeyInfo } from "#management/server/model.ts";
import { type AdminMethod, callAdmin } from "./admin-socket.ts";
import { ServerError } from "./server-error.ts";

/** Times are milliseconds since the Unix epoch; what is absent does not apply. */
const setupKeySchema = z.object({
  id: z.string(),
  /** The first characters of the key; the key itself is shown once, when it is made. */
  prefix: z.string(),
  name: z.string(),
  reusable: z.boolean(),
  ephemeral: z.boolean(),
  /** 0: no limit. */
  usageLimit: z.number(),
  used: z.number(),
  groups: z.array(z.string()),
  state: z.enum(["valid", "revoked", "expired", "used-up"]),
  createdAt: z.number(),
  expiresAt: z.number().optional(),
  revokedAt: z.number().optional(),
  lastUsedAt: z.number().optional(),
});
export type SetupKeyRecord = z.infer<typeof setupKeySchema>;

const peerSchema = z.object({
  key: z.string(),
  name: z.string(),
  dnsName: z.string(),
  address: z.string(),
  address6: z.string(),
  connected: z.boolean(),
  ephemeral: z.boolean(),
  version: z.string(),
  os: z.string(),
  createdAt: z.number(),
  lastSeenAt: z.number(),
});
export type PeerRecord = z.infer<typeof peerSchema>;

const settingsSchema = z.object({ lazy: z.boolean() });
const nothing = z.strictObject({});
const lifetime = z.number().positive().optional();

/** Each question of an administrator: what is given, what comes back. */
export const ADMIN_CALLS = {
  "create-setup-key": {
    input: z.strictObject({
      name: z.string().max(200).optional(),
      reusable: z.boolean().optional(),
      usageLimit: z.int().nonnegative().optional(),
      ephemeral: z.boolean().optional(),
      expiresInMs: lifetime,
      groups: z.array(z.string().min(1).max(200)).max(100).optional(),
    }),
    output: setupKeySchema.extend({ key: z.string() }),
  },
  "list-setup-keys": { input: nothing, output: z.array(setupKeySchema) },
  "revoke-setup-key": { input: z.strictObject({ key: z.string().min(1).max(100) }), output: setupKeySchema },
  "create-token": {
    input: z.strictObject({ name: z.string().max(200).optional(), expiresInMs: lifetime }),
    output: z.object({ id: z.string(), token: z.string() }),
  },
  "list-peers": { input: nothing, output: z.array(peerSchema) },
  "delete-peer": { input: z.strictObject({ peer: z.string().min(1).max(300) }), output: peerSchema },
  settings: { input: nothing, output: settingsSchema },
  "set-settings": { input: settingsSchema.partial().strict(), output: settingsSchema },
} as const satisfies Record<string, { input: z.ZodType; output: z.ZodType }>;

export type AdminCall = keyof typeof ADMIN_CALLS;
type Input<Call extends AdminCall> = z.infer<(typeof ADMIN_CALLS)[Call]["input"]>;
type Output<Call extends AdminCall> = z.infer<(typeof ADMIN_CALLS)[Call]["output"]>;

/** Asks a server, running or not. */
export interface Admin {
  call<Call extends AdminCall>(call: Call, input: Input<Call>): Promise<Output<Call>>;
}

type Handlers = { readonly [Call in AdminCall]: (input: Input<Call>) => Promise<Output<Call>> };

function handlersOf(management: ManagementServer): Handlers {
  const peers = (): PeerRecord[] =>
    management.listPeers().map((peer) => ({
      key: peer.key,
      name: peer.name,
      dnsName: `${peer.dnsLabel}.${management.domain}`,
      address: peer.address,
      address6: peer.address6,
      connected: peer.connected,
      ephemeral: peer.ephemeral,
      version: peer.meta.netbirdVersion,
      os: peer.meta.OS || peer.meta.goOS,
      createdAt: peer.createdAt,
      lastSeenAt: peer.lastSeenAt,
    }));
  return {
    "create-setup-key": async (input) => {
      const { key, info } = await management.createSetupKey(input);
      return { ...recordOf(info), key };
    },
    "list-setup-keys": async () => (await management.listSetupKeys()).map(recordOf),
    "revoke-setup-key": async ({ key }) => recordOf(await management.revokeSetupKey(key)),
    "create-token": (input) => management.createAdminToken(input),
    "list-peers": async () => peers(),
    "delete-peer": async ({ peer }) => {
      const found = findPeer(peers(), peer);
      // False: it went away by itself in between, which is what was wanted.
      await management.deletePeer(PublicKey.parse(found.key));
      return found;
    },
    settings: async () => ({ lazy: management.lazy }),
    "set-settings": async ({ lazy }) => {
      if (lazy !== undefined) await management.setLazy(lazy);
      return { lazy: management.lazy };
    },
  };
}

function recordOf(info: SetupKeyInfo): SetupKeyRecord {
  const { expiresAt, revokedAt, lastUsedAt, groups, ...rest } = info;
  return {
    ...rest,
    groups: [...groups],
    ...(expiresAt !== undefined && { expiresAt }),
    ...(revokedAt !== undefined && { revokedAt }),
    ...(lastUsedAt !== undefined && { lastUsedAt }),
  };
}

/** By key, overlay address, DNS name or label, or host name. Throws ServerError `admin-refused`. */
function findPeer(peers: readonly PeerRecord[], wanted: string): PeerRecord {
  const text = wanted.toLowerCase().replace(/\.$/, "");
  const isIt = ({ key, dnsName, address, address6 }: PeerRecord): boolean =>
    key === canonicalKey(wanted) ||
    [dnsName, dnsName.split(".")[0], address, address6].some((name) => name?.toLowerCase() === text);
  const exact = peers.filter(isIt);
  const found = exact.length > 0 ? exact : peers.filter(({ name }) => name.toLowerCase() === text);
  if (found.length === 1) return found[0]!;
  const shown = JSON.stringify(wanted.slice(0, 100));
  if (found.length === 0) throw new ServerError("admin-refused", `no peer has the name, address or key ${shown}`);
  const names = found.map(({ dnsName }) => dnsName).join(", ");
  throw new ServerError("admin-refused", `${found.length} peers are called ${shown}: say which, one of ${names}`);
}

function canonicalKey(text: string): string | undefined {
  try {
    return PublicKey.parse(text);
  } catch (error) {
    if (error instanceof KeyError) return undefined;
    throw error;
  }
}

/** For the admin socket of a running server. */
export function adminMethods(management: ManagementServer): Readonly<Record<string, AdminMethod>> {
  const handlers = handlersOf(management);
  return Object.fromEntries(
    Object.entries(ADMIN_CALLS).map(([name, { input }]) => [
      name,
      {
        input: input as unknown as z.ZodType<never>,
        run: handlers[name as AdminCall] as (input: never) => Promise<unknown>,
      },
    ]),
  );
}

/** In this process, on a store that no server has open. */
export function localAdmin(management: ManagementServer): Admin {
  const handlers = handlersOf(management);
  return { call: (call, input) => handlers[call](input as never) as Promise<never> };
}

/** Through the socket of a running server. */
export function remoteAdmin(socketPath: string): Admin {
  return {
    call: (call, input) => callAdmin(socketPath, call, input, ADMIN_CALLS[call].output as unknown as z.ZodType<never>),
  };
}
