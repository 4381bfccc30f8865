import { PublicKey } from "#base/keys.ts";
import { ExternalDeviceError } from "./external-error.ts";
import type { PeerChange } from "./parts.ts";

/** A device that refuses so many peers of a call is not asked for the rest. */
const REFUSALS_MAX = 8;

/** The device applied what comes before the change that it refused, and maybe more. */
export interface Refusal {
  /** What the device said: an error's name, a sentence. */
  readonly reason: string;
}

/** Changes that are sent at once, and how. */
export interface PeerBatch {
  readonly changes: readonly PeerChange[];
  send(changes: readonly PeerChange[]): Promise<Refusal | undefined>;
}

/**
 * Has the device apply the batches in order. Where it refuses one, halves of it are sent again until what it refuses is found: a change
 * says what is to be, so twice is as good as once. All others are applied. Then throws ExternalDeviceError `control-failed` with the
 * names of the refused; after 8 of them the rest of the call is left out.
 */
export async function applyPeers(batches: Iterable<PeerBatch>): Promise<void> {
  const refused: string[] = [];
  for (const batch of batches) {
    const apply = async (part: readonly PeerChange[]): Promise<void> => {
      const refusal = await batch.send(part);
      if (!refusal) return;
      if (part.length === 1) {
        refused.push(`${PublicKey.short(part[0]!.key)} (${refusal.reason})`);
        if (refused.length >= REFUSALS_MAX) throw refusedPeers(refused, ", and the rest of the call was given up");
        return;
      }
      const middle = part.length >> 1;
      await apply(part.slice(0, middle));
      await apply(part.slice(middle));
    };
    await apply(batch.changes);
  }
  if (refused.length > 0) throw refusedPeers(refused, "");
}

function refusedPeers(refused: readonly string[], rest: string): ExternalDeviceError {
  return new ExternalDeviceError("control-failed", `the device refused of its peers: ${refused.join(", ")}${rest}`);
}

/** The changes that leave the device with the peers of `changes` alone: nothing happens to a peer that stays. */
export function withRemovals(changes: readonly PeerChange[], present: Iterable<PublicKey>): readonly PeerChange[] {
  const named = new Set(changes.map(({ key }) => key));
  const removals: PeerChange[] = [];
  for (const key of present) if (!named.has(key)) removals.push({ key, remove: true });
  return removals.length > 0 ? [...removals, ...changes] : changes;
}
