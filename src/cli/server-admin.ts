import { Command } from "commander";
import { systemClock } from "#base/time.ts";
import type { PeerRecord, SetupKeyRecord } from "#server/admin.ts";
import { type OpenedAdmin, openAdmin } from "#server/open-admin.ts";
import { ServerError } from "#server/server-error.ts";
import { UsageError } from "./exit-codes.ts";
import { DEFAULT_SERVER_DATA_DIR, parseCount, parseLifetime, parseStorage, type ServerFlags } from "./server-flags.ts";
import { clean, print, say } from "./terminal.ts";

type StorageFlags = Pick<ServerFlags, "dataDir" | "database"> & { readonly json?: boolean };

function adminCommand(name: string, summary: string): Command {
  return new Command(name)
    .summary(summary)
    .description(
      `${summary[0]!.toUpperCase()}${summary.slice(1)}. Acts on the running server, or on its store when none runs.`,
    )
    .option("--data-dir <DIR>", `the server's data directory (default: ${DEFAULT_SERVER_DATA_DIR})`)
    .option("--database <URL>", "the server's database, if it is not in the data directory")
    .option("--json", "print JSON");
}

async function withAdmin<Result>(command: Command, use: (admin: OpenedAdmin) => Promise<Result>): Promise<Result> {
  // Flags may also stand before the subcommand: perch server --data-dir DIR setup-key list.
  const { dataDir, databasePath } = parseStorage(command.optsWithGlobals<StorageFlags>());
  try {
    await using admin = await openAdmin({ clock: systemClock }, { dataDir, databasePath });
    return await use(admin);
  } catch (error) {
    if (error instanceof ServerError && error.code === "option-invalid") throw new UsageError(error.message);
    throw error;
  }
}

interface CreateKeyFlags extends StorageFlags {
  readonly name?: string;
  readonly reusable?: boolean;
  readonly ephemeral?: boolean;
  readonly expires?: string;
  readonly usageLimit?: string;
  readonly group?: readonly string[];
}

export function setupKeyCommand(): Command {
  const create = adminCommand("create", "make a setup key; it is printed once and never again")
    .option("--name <NAME>", "what to call it in lists")
    .option("--reusable", "admits any number of peers instead of one")
    .option("--usage-limit <N>", "how many peers a reusable key admits (default: any number)")
    .option("--ephemeral", "its peers are forgotten ten minutes after they leave")
    .option("--expires <TIME>", "24h, 30m, 7d, never (default: 24h)")
    .option("--group <NAME...>", "groups its peers join")
    .action(async (flags: CreateKeyFlags, command: Command) => {
      const expiresInMs = parseLifetime("--expires", flags.expires ?? "24h");
      const usageLimit = flags.usageLimit === undefined ? undefined : parseCount("--usage-limit", flags.usageLimit);
      if (usageLimit !== undefined && !flags.reusable)
        throw new UsageError("--usage-limit is for a key that is --reusable; others admit one peer");
      const made = await withAdmin(command, (admin) =>
        admin.call("create-setup-key", {
          ...(flags.name !== undefined && { name: flags.name }),
          ...(flags.group && { groups: flags.group.flatMap((names) => names.split(",")) }),
          ...(usageLimit !== undefined && { usageLimit }),
          ...(expiresInMs !== undefined && { expiresInMs }),
          reusable: flags.reusable ?? false,
          ephemeral: flags.ephemeral ?? false,
        }),
      );
      print(flags.json ? toJson(made) : made.key);
    });
  const list = adminCommand("list", "list setup keys").action(async (flags: StorageFlags, command: Command) => {
    const keys = await withAdmin(command, (admin) => admin.call("list-setup-keys", {}));
    print(flags.json ? toJson(keys) : keyTable(keys));
  });
  const revoke = adminCommand("revoke", "revoke a setup key; the peers it admitted stay")
    .argument("<KEY>", "the key, or the first characters of the key or its id")
    .action(async (key: string, flags: StorageFlags, command: Command) => {
      const revoked = await withAdmin(command, (admin) => admin.call("revoke-setup-key", { key }));
      print(flags.json ? toJson(revoked) : `revoked ${revoked.prefix}…${revoked.name && ` (${clean(revoked.name)})`}`);
    });
  return new Command("setup-key")
    .description("Makes, lists and revokes the keys with which machines join.")
    .addCommand(create)
    .addCommand(list)
    .addCommand(revoke);
}

export function tokenCommand(): Command {
  const create = adminCommand("create", "make an admin token; it is printed once and never again")
    .option("--name <NAME>", "what to call it")
    .option("--expires <TIME>", "24h, 30m, 7d, never (default: never)")
    .action(async (flags: StorageFlags & { name?: string; expires?: string }, command: Command) => {
      const expiresInMs = parseLifetime("--expires", flags.expires ?? "never");
      const made = await withAdmin(command, (admin) =>
        admin.call("create-token", {
          ...(flags.name !== undefined && { name: flags.name }),
          ...(expiresInMs !== undefined && { expiresInMs }),
        }),
      );
      print(flags.json ? toJson(made) : made.token);
    });
  return new Command("token").description("Makes tokens for the administration interface.").addCommand(create);
}

export function peersCommand(): Command {
  const list = adminCommand("list", "list the network's peers").action(
    async (flags: StorageFlags, command: Command) => {
      const peers = await withAdmin(command, (admin) => admin.call("list-peers", {}));
      print(flags.json ? toJson(peers) : peerTable(peers));
    },
  );
  const remove = adminCommand("delete", "remove a peer from the network; it needs a setup key to come back")
    .argument("<PEER>", "name, overlay address or key")
    .action(async (peer: string, flags: StorageFlags, command: Command) => {
      const deleted = await withAdmin(command, (admin) => admin.call("delete-peer", { peer }));
      print(flags.json ? toJson(deleted) : `deleted ${clean(deleted.dnsName)}`);
    });
  return new Command("peers").description("Lists and removes the network's peers.").addCommand(list).addCommand(remove);
}

export function settingsCommand(): Command {
  return adminCommand("settings", "show or change the network's settings")
    .option("--lazy <on|off>", "whether peers connect only when there is traffic")
    .action(async (flags: StorageFlags & { lazy?: string }, command: Command) => {
      const lazy = flags.lazy === undefined ? undefined : parseOnOff("--lazy", flags.lazy);
      const settings = await withAdmin(command, async (admin) => {
        const result =
          lazy === undefined ? await admin.call("settings", {}) : await admin.call("set-settings", { lazy });
        if (lazy !== undefined && !admin.running) say("no server runs: the change is told to agents when it starts");
        return result;
      });
      print(flags.json ? toJson(settings) : `lazy connections: ${settings.lazy ? "on" : "off"}`);
    });
}

function parseOnOff(flag: string, text: string): boolean {
  if (/^(on|true|yes|1)$/i.test(text)) return true;
  if (/^(off|false|no|0)$/i.test(text)) return false;
  throw new UsageError(`${flag} ${JSON.stringify(text.slice(0, 40))} is neither on nor off`);
}

function toJson(value: unknown): string {
  return JSON.stringify(value, undefined, 2);
}

function keyTable(keys: readonly SetupKeyRecord[]): string {
  if (keys.length === 0) return "no setup keys";
  const rows = keys.map((key) => [
    `${key.prefix}…`,
    key.name,
    key.state,
    [key.reusable ? "reusable" : "one-off", ...(key.ephemeral ? ["ephemeral"] : [])].join(" "),
    key.usageLimit > 0 ? `${key.used}/${key.usageLimit}` : `${key.used}`,
    key.expiresAt === undefined ? "never" : formatTime(key.expiresAt),
    key.groups.join(","),
  ]);
  return table([["KEY", "NAME", "STATE", "KIND", "USED", "EXPIRES", "GROUPS"], ...rows]);
}

function peerTable(peers: readonly PeerRecord[]): string {
  if (peers.length === 0) return "no peers";
  const rows = peers.map((peer) => [
    peer.dnsName,
    peer.address,
    peer.connected ? "online" : "offline",
    peer.connected ? "now" : formatTime(peer.lastSeenAt),
    peer.version,
    peer.os,
    peer.key,
  ]);
  return table([["NAME", "ADDRESS", "STATE", "SEEN", "VERSION", "OS", "KEY"], ...rows]);
}

function table(rows: readonly (readonly string[])[]): string {
  const cells = rows.map((row) => row.map(clean));
  const widths = cells[0]!.map((_, column) => Math.max(...cells.map((row) => row[column]!.length)));
  return cells
    .map((row) =>
      row
        .map((cell, column) => cell.padEnd(widths[column]!))
        .join("  ")
        .trimEnd(),
    )
    .join("\n");
}

function formatTime(milliseconds: number): string {
  return new Date(milliseconds).toISOString().slice(0, 16).replace("T", " ");
}
