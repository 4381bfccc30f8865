import { formatEndpoint, formatPrefix } from "#base/ip.ts";
import { PublicKey } from "#base/keys.ts";
import { ExternalDeviceError } from "./external-error.ts";
import type { DeviceReading, PeerChange, PeerReading } from "./parts.ts";
import { readEndpoint } from "./uapi-protocol.ts";

/*
 * What the program `wg` is told (wg(8)) and tells. Two of its commands change a peer and leave all others alone:
 *
 *   set      on the command line; what is not named stays. Removes peers. A pre-shared key is in a file, an empty one removes it.
 *   addconf  from a file; what is not named stays, but for the allowed IPs, which it always replaces. Any number of secrets.
 *
 * So peers whose allowed IPs are given go by `addconf`, and all others by `set`. A peer that is to forget what it knows is removed and
 * added by one `set`: between two commands it would not be there for somebody's packet. `setconf` and `syncconf` would take the
 * keepalives and pre-shared keys of all peers that are not told again.
 */

export interface WgStep {
  readonly command: "set" | "addconf";
  readonly changes: readonly PeerChange[];
}

/**
 * The changes as few commands. Their order is kept where it matters: between changes of one peer, and between those that give
 * allowed IPs, the last of which has a disputed prefix.
 */
export function planSteps(changes: readonly PeerChange[]): WgStep[] {
  const steps: { command: WgStep["command"]; changes: PeerChange[] }[] = [];
  /** The last step of each kind, and of each peer. */
  const lastOf = { set: -1, addconf: -1 };
  const lastWith = new Map<PublicKey, number>();
  const removed = new Set<PublicKey>();
  for (const change of changes) {
    // Others were given allowed IPs since: they are not to be overtaken.
    const isReset = removed.has(change.key) && lastWith.get(change.key) === lastOf.set && lastOf.set > lastOf.addconf;
    const command = change.remove || change.allowedIps === undefined || isReset ? "set" : "addconf";
    if (change.remove) removed.add(change.key);
    else removed.delete(change.key);
    // Nor is it by those that come.
    if (isReset) lastOf.addconf = -1;
    let index = lastOf[command];
    if (index < 0 || (lastWith.get(change.key) ?? -1) > index)
      index = lastOf[command] = steps.push({ command, changes: [] }) - 1;
    steps[index]!.changes.push(change);
    lastWith.set(change.key, index);
  }
  return steps;
}

/** What follows `wg set NAME` for a peer. `secretFile` gives the path of a file with these bytes. */
export function setArguments(change: PeerChange, secretFile: (bytes: Uint8Array) => string): string[] {
  const words: string[] = ["peer", change.key];
  if (change.remove) return [...words, "remove"];
  const { presharedKey, endpoint, keepalive, allowedIps } = change;
  if (presharedKey) words.push("preshared-key", secretFile(presharedKey.encode()));
  // No key in it: it is taken away.
  else if (presharedKey === null) words.push("preshared-key", "/dev/null");
  if (endpoint !== undefined) words.push("endpoint", formatEndpoint(endpoint));
  if (keepalive !== undefined) words.push("persistent-keepalive", String(keepalive));
  if (allowedIps !== undefined) words.push("allowed-ips", allowedIps.map(formatPrefix).join(","));
  return words;
}

/** The file that `wg addconf` reads. The caller wipes it. */
export function encodeConfiguration(changes: readonly PeerChange[]): Uint8Array {
  const parts: Uint8Array[] = [];
  let text = "";
  const flush = (): void => {
    parts.push(Buffer.from(text, "latin1"));
    text = "";
  };
  for (const change of changes) {
    if (change.remove) continue;
    const { key, presharedKey, endpoint, keepalive, allowedIps = [] } = change;
    text += `[Peer]\nPublicKey=${key}\n`;
    if (presharedKey === null) text += `PresharedKey=${NO_KEY}\n`;
    else if (presharedKey !== undefined) {
      text += "PresharedKey=";
      flush();
      parts.push(presharedKey.encode());
      text = "\n";
    }
    if (endpoint !== undefined) text += `Endpoint=${formatEndpoint(endpoint)}\n`;
    if (keepalive !== undefined) text += `PersistentKeepalive=${keepalive}\n`;
    // One line each would be as good; a line has no greatest length.
    if (allowedIps.length > 0) text += `AllowedIPs=${allowedIps.map(formatPrefix).join(",")}\n`;
  }
  flush();
  const bytes = Buffer.alloc(parts.reduce((sum, part) => sum + part.length, 0));
  let at = 0;
  for (const part of parts) {
    bytes.set(part, at);
    at += part.length;
    part.fill(0);
  }
  return bytes;
}

const NO_KEY = Buffer.alloc(32).toString("base64");
const NEWLINE = 0x0a;
const TAB = 0x09;

/**
 * What `wg show NAME dump` tells. Fields, separated by tabs:
 *
 *   interface  private key, public key, listen port, fwmark
 *   peer       public key, pre-shared key, endpoint, allowed IPs, latest handshake (Unix time, s), received, sent, keepalive
 *
 * No secret becomes a string; the caller wipes the bytes. Throws ExternalDeviceError `control-failed`.
 */
export function readDump(dump: Buffer): DeviceReading {
  const peers = new Map<PublicKey, PeerReading>();
  let listenPort: number | undefined;
  for (let start = 0; start < dump.length; ) {
    const newline = dump.indexOf(NEWLINE, start);
    const fields = fieldsOf(dump, start, newline < 0 ? dump.length : newline);
    if (listenPort === undefined) {
      listenPort = numberIn(fields, 2);
    } else {
      peers.set(keyIn(fields), {
        endpoint: readEndpoint(fields(2)),
        lastHandshake: 1000 * numberIn(fields, 4),
        rxBytes: numberIn(fields, 5),
        txBytes: numberIn(fields, 6),
      });
    }
    start = newline < 0 ? dump.length : newline + 1;
  }
  if (listenPort === undefined) throw malformed("nothing in it");
  return { listenPort, peers };
}

type Fields = (index: number) => string;

function fieldsOf(dump: Buffer, start: number, end: number): Fields {
  const starts = [start];
  for (let tab = dump.indexOf(TAB, start); tab >= 0 && tab < end; tab = dump.indexOf(TAB, tab + 1))
    starts.push(tab + 1);
  return (index) => {
    const from = starts[index];
    return from === undefined ? "" : dump.toString("latin1", from, (starts[index + 1] ?? end + 1) - 1);
  };
}

function numberIn(fields: Fields, index: number): number {
  const text = fields(index);
  const value = Number(text);
  if (text === "" || !Number.isInteger(value)) throw malformed("a number that is none");
  return value;
}

function keyIn(fields: Fields): PublicKey {
  try {
    return PublicKey.parse(fields(0));
  } catch {
    throw malformed("a public key that is none");
  }
}

function malformed(what: string): ExternalDeviceError {
  return new ExternalDeviceError("control-failed", `the answer of \`wg show\` has ${what}`);
}
