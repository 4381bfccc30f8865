import { randomBytes, randomUUID } from "node:crypto";
import { create, toBinary } from "@bufbuild/protobuf";
import type { IpAddress } from "#base/ip.ts";
import { PublicKey } from "#base/keys.ts";
import { systemClock } from "#base/time.ts";
import { PROTOCOL_VERSION } from "#base/version.ts";
import { PeerCapability, PeerSystemMetaSchema } from "#gen/management_pb.ts";
import type { Account, Peer } from "#management/server/model.ts";
import { ManagementStore } from "#management/server/store.ts";

/** Rows per insert: SQLite takes 32,766 values in one statement. */
const ROWS_PER_INSERT = 1000;
const META = create(PeerSystemMetaSchema, {
  goOS: "linux",
  OS: "Debian GNU/Linux",
  netbirdVersion: PROTOCOL_VERSION,
  capabilities: [PeerCapability.PeerCapabilitySourcePrefixes, PeerCapability.PeerCapabilityIPv6Overlay],
});

/** A key that belongs to nobody: such a peer stays idle for ever. */
const nobodysKey = (): PublicKey => PublicKey.fromBytes(randomBytes(32));

/**
 * `count` peers as if each had logged in once, on addresses from the top of a /16 and /64 downwards, so that peers which
 * register later find free ones.
 */
export function createPeers(
  account: Pick<Account, "network" | "network6">,
  count: number,
  keyOf: (index: number) => PublicKey = nobodysKey,
): Peer[] {
  const [a, b] = account.network.address.split(".");
  const half6 = account.network6.address.replace(/::$/, "");
  return Array.from({ length: count }, (_, index) => {
    const host = 65_534 - index;
    const name = `host-${String(index).padStart(5, "0")}`;
    return {
      id: randomUUID(),
      key: keyOf(index),
      name,
      dnsLabel: name,
      extraLabels: [],
      address: `${a}.${b}.${host >> 8}.${host & 255}` as IpAddress,
      address6: `${half6}::${host.toString(16)}` as IpAddress,
      ipv6Usable: true,
      ephemeral: false,
      groups: [],
      sshPublicKey: new Uint8Array(0),
      meta: META,
      createdAt: Date.now(),
    };
  });
}

/** Puts `count` peers into a server's store, one transaction; the server reads them when it starts. */
export async function fillStore(
  path: string,
  count: number,
  keyOf?: (index: number) => PublicKey,
): Promise<readonly Peer[]> {
  await using store = await ManagementStore.open({ clock: systemClock }, { path });
  const account = await store.loadAccount();
  const peers = createPeers(account, count, keyOf);
  const meta = toBinary(PeerSystemMetaSchema, META);
  await store.db.transaction().execute(async (trx) => {
    for (let at = 0; at < peers.length; at += ROWS_PER_INSERT) {
      const rows = peers.slice(at, at + ROWS_PER_INSERT).map((peer) => ({
        key: peer.key,
        id: peer.id,
        account_id: account.id,
        name: peer.name,
        dns_label: peer.dnsLabel,
        extra_labels: "[]",
        address_v4: peer.address,
        address_v6: peer.address6,
        ipv6_usable: 1,
        ephemeral: 0,
        setup_key_id: null,
        ssh_public_key: peer.sshPublicKey,
        meta,
        created_at: peer.createdAt,
        last_login_at: peer.createdAt,
        last_seen_at: peer.createdAt,
      }));
      await trx.insertInto("peers").values(rows).execute();
    }
    await trx.updateTable("accounts").set({ serial: count }).where("id", "=", account.id).execute();
  });
  return peers;
}
