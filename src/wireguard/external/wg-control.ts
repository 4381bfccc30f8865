import type { PublicKey } from "#base/keys.ts";
import { applyPeers, type PeerBatch, type Refusal, withRemovals } from "./apply-peers.ts";
import { CallQueue } from "./call-queue.ts";
import { ExternalDeviceError } from "./external-error.ts";
import type { DeviceControl, DeviceReading, InterfaceChange, PeerChange } from "./parts.ts";
import { type ProgramResult, runProgram, secretPath } from "./run-program.ts";
import { encodeConfiguration, planSteps, readDump, setArguments, type WgStep } from "./wg-commands.ts";

/** Linux takes a quarter of the stack's limit, usually 8 MiB, for arguments and the pointers to them (execve(2)). */
const ARGUMENTS_MAX_BYTES = 7 << 18;
const POINTER_BYTES = 8;
/** Descriptors that a process gets from us at most: far from a limit of 1,024. */
const SECRETS_MAX = 200;

/**
 * Configures the WireGuard of the kernel, or any other that the program `wg` (wireguard-tools) knows, by as few runs of it as can be:
 * one for 10,000 peers. Secrets go through files without a name, never on a command line.
 *
 * `lastHandshake` is in whole seconds, cut off: `wg` tells no more.
 */
export class WgControl implements DeviceControl {
  readonly #interfaceName: string;
  readonly #program: string;
  readonly #calls = new CallQueue();
  /** Peers that the device has. `wg` cannot be asked to change a peer only where there is one. Undefined: not known. */
  #present: Set<PublicKey> | undefined;

  constructor(interfaceName: string, program = "wg") {
    this.#interfaceName = interfaceName;
    this.#program = program;
  }

  change(change: InterfaceChange, peers: readonly PeerChange[]): Promise<void> {
    return this.#calls.run(() => this.#change(change, peers));
  }

  read(): Promise<DeviceReading> {
    return this.#calls.run(() => this.#read());
  }

  [Symbol.asyncDispose](): Promise<void> {
    return this.#calls.close();
  }

  async #change(
    { privateKey, listenPort, replacePeers }: InterfaceChange,
    peers: readonly PeerChange[],
  ): Promise<void> {
    if (privateKey !== undefined) {
      const secret = privateKey.encode();
      await this.#demand(["private-key", secretPath(0)], "its private key", [secret]);
    }
    if (listenPort !== undefined)
      await this.#demand(["listen-port", String(listenPort)], `the listen port ${listenPort}`);
    if (!replacePeers && peers.length === 0) return;
    try {
      const wanted = replacePeers ? withRemovals(peers, await this.#presentPeers()) : peers;
      const steps = planSteps(await this.#withoutAbsent(wanted));
      await applyPeers(steps.flatMap((step) => this.#batches(step)));
    } catch (error) {
      // How far it came is not known.
      this.#present = undefined;
      throw error;
    }
  }

  async #read(): Promise<DeviceReading> {
    const { ok, output, complaint } = await this.#wg(["show", this.#interfaceName, "dump"]);
    try {
      if (!ok) throw refused("a question", complaint);
      const reading = readDump(output);
      this.#present = new Set(reading.peers.keys());
      return reading;
    } finally {
      output.fill(0);
    }
  }

  async #presentPeers(): Promise<Set<PublicKey>> {
    if (!this.#present) await this.#read();
    return this.#present!;
  }

  /** Leaves out updates of peers that are not there, and keeps count of those that are. */
  async #withoutAbsent(changes: readonly PeerChange[]): Promise<readonly PeerChange[]> {
    const needsCount = this.#present || changes.some((change) => !change.remove && change.updateOnly);
    if (!needsCount) return changes;
    const present = await this.#presentPeers();
    return changes.filter((change) => {
      if (change.remove) return present.delete(change.key);
      if (change.updateOnly && !present.has(change.key)) return false;
      present.add(change.key);
      return true;
    });
  }

  #batches({ command, changes }: WgStep): PeerBatch[] {
    if (command === "addconf") return [{ changes, send: (part) => this.#addConfiguration(part) }];
    return commandLinesOf(changes).map((part) => ({ changes: part, send: (some) => this.#set(some) }));
  }

  async #addConfiguration(changes: readonly PeerChange[]): Promise<Refusal | undefined> {
    return refusalOf(await this.#wg(["addconf", this.#interfaceName, secretPath(0)], [encodeConfiguration(changes)]));
  }

  async #set(changes: readonly PeerChange[]): Promise<Refusal | undefined> {
    const secrets: Uint8Array[] = [];
    const words = changes.flatMap((change) => setArguments(change, (bytes) => secretPath(secrets.push(bytes) - 1)));
    return refusalOf(await this.#wg(["set", this.#interfaceName, ...words], secrets));
  }

  /** `wg set` of the interface itself. Throws ExternalDeviceError when it refuses `what`. */
  async #demand(words: readonly string[], what: string, secrets?: readonly Uint8Array[]): Promise<void> {
    const { ok, complaint } = await this.#wg(["set", this.#interfaceName, ...words], secrets);
    if (!ok) throw refused(what, complaint);
  }

  async #wg(args: readonly string[], secrets: readonly Uint8Array[] = []): Promise<ProgramResult> {
    const result = await runProgram({
      program: this.#program,
      debianPackage: "wireguard-tools",
      args,
      secrets,
      signal: this.#calls.signal,
    });
    if (result.ok) return result;
    const { complaint } = result;
    if (/operation not permitted|permission denied/i.test(complaint))
      throw new ExternalDeviceError("not-permitted", `${complaint}; it needs root or CAP_NET_ADMIN`);
    // Without WireGuard in the kernel there is no interface of its kind either.
    if (/no such device|protocol not supported/i.test(complaint))
      throw new ExternalDeviceError("control-failed", complaint, { retryable: true });
    return result;
  }
}

function refusalOf({ ok, complaint }: ProgramResult): Refusal | undefined {
  return ok ? undefined : { reason: complaint };
}

function refused(what: string, complaint: string): ExternalDeviceError {
  return new ExternalDeviceError("control-failed", `the device refused ${what}: ${complaint}`);
}

/** The changes in parts that fit on a command line each. */
function commandLinesOf(changes: readonly PeerChange[]): PeerChange[][] {
  const parts: PeerChange[][] = [];
  let [bytes, secrets] = [Number.POSITIVE_INFINITY, 0];
  for (const change of changes) {
    let more = 0;
    const words = setArguments(change, (secret) => {
      secret.fill(0);
      more++;
      return secretPath(SECRETS_MAX);
    });
    const needed = words.reduce((sum, word) => sum + word.length + 1 + POINTER_BYTES, 0);
    if (bytes + needed > ARGUMENTS_MAX_BYTES || secrets + more > SECRETS_MAX) {
      parts.push([]);
      [bytes, secrets] = [0, 0];
    }
    parts.at(-1)!.push(change);
    bytes += needed;
    secrets += more;
  }
  return parts;
}
