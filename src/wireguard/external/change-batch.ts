import { messageOf, PerchError } from "#base/errors.ts";
import type { PublicKey } from "#base/keys.ts";
import type { Logger } from "#base/log.ts";
import type { DeviceControl, InterfaceChange, PeerChange } from "./parts.ts";

export interface ChangeBatchDeps {
  readonly log: Logger;
  /** Of the device as it is when a change begins. */
  readonly control: () => DeviceControl;
  /** A call was not answered: how much of it is in the device nobody knows, and it is to be told everything anew. */
  readonly unanswered: () => void;
}

/**
 * Gathers what many calls in one turn change and tells the device in one: strictly in order, one call under way, what comes
 * meanwhile waits for the next. What the device refuses is logged: nobody waits for it.
 */
export class ChangeBatch {
  readonly #deps: ChangeBatchDeps;
  /** Peer -> what is to be done with it, in order; the peers in the order of their last change. */
  #waiting = new Map<PublicKey, PeerChange[]>();
  #interfaceChange: InterfaceChange = {};
  #number = 1;
  #settled = 0;
  #isGathering = false;
  #working: Promise<void> | undefined;
  #closed = false;
  #failures = 0;

  constructor(deps: ChangeBatchDeps) {
    this.#deps = deps;
  }

  /** The last batch whose changes are in the device, or were refused. */
  get settled(): number {
    return this.#settled;
  }

  /** Whether nothing waits, nothing is under way, and the last batch that ended is this one. */
  isSettledAt(number: number): boolean {
    return this.#settled === number && !this.#isGathering && !this.#working;
  }

  /** Calls that failed, as a whole or for some of their peers. */
  get failures(): number {
    return this.#failures;
  }

  /** Changes a peer soon; the number of the batch that will carry it. */
  push(change: PeerChange): number {
    const { key } = change;
    const known = this.#waiting.get(key) ?? [];
    const last = known.at(-1);
    const joined = last && join(last, change);
    if (joined) known[known.length - 1] = joined;
    else known.push(change);
    // To the end: a prefix belongs to whom it was given last.
    this.#waiting.delete(key);
    this.#waiting.set(key, known);
    this.#gather();
    return this.#number;
  }

  /** The device is another one and empty, or nobody knows what it has: all that waits is moot, this is what it gets first. */
  replace(interfaceChange: InterfaceChange, peers: readonly PeerChange[]): number {
    this.#waiting = new Map(peers.map((change) => [change.key, [change]]));
    this.#interfaceChange = { ...interfaceChange, replacePeers: true };
    this.#gather();
    return this.#number;
  }

  /** Drops what waits; resolves when the call under way has ended. */
  async close(): Promise<void> {
    this.#closed = true;
    this.#waiting.clear();
    await this.#working;
  }

  #gather(): void {
    if (this.#closed || this.#isGathering || this.#working) return;
    this.#isGathering = true;
    queueMicrotask(() => {
      this.#isGathering = false;
      this.#working = this.#work().finally(() => {
        this.#working = undefined;
      });
    });
  }

  async #work(): Promise<void> {
    while (!this.#closed && (this.#waiting.size > 0 || this.#interfaceChange.replacePeers)) {
      const changes = [...this.#waiting.values()].flat();
      const interfaceChange = this.#interfaceChange;
      const number = this.#number++;
      this.#waiting = new Map();
      this.#interfaceChange = {};
      await this.#tell(interfaceChange, changes);
      this.#settled = number;
    }
  }

  async #tell(interfaceChange: InterfaceChange, changes: readonly PeerChange[]): Promise<void> {
    const control = this.#deps.control();
    try {
      await control.change(interfaceChange, changes);
    } catch (error) {
      // Another device has taken over, or will have told why it is gone.
      if (this.#closed || this.#deps.control() !== control) return;
      this.#failures++;
      this.#deps.log.error("device refused a change", { peers: changes.length, err: messageOf(error) });
      if (error instanceof PerchError && error.retryable) this.#deps.unanswered();
    }
  }
}

/** Both as one; undefined when they must be told apart: keepalive off and on again is what makes a device send at once. */
function join(first: PeerChange, second: PeerChange): PeerChange | undefined {
  if (first.remove || second.remove) return undefined;
  const isToggle = first.keepalive !== undefined && second.keepalive !== undefined;
  if (isToggle && first.keepalive !== second.keepalive) return undefined;
  const { updateOnly: _, ...both } = { ...first, ...second };
  return first.updateOnly && second.updateOnly ? { ...both, updateOnly: true } : both;
}
