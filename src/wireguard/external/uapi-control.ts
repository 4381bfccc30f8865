import { join } from "node:path";
import type { Millis } from "#base/time.ts";
import { errnoName } from "#net/errno.ts";
import { applyPeers, type Refusal, withRemovals } from "./apply-peers.ts";
import { CallQueue } from "./call-queue.ts";
import { ExternalDeviceError } from "./external-error.ts";
import type { DeviceControl, DeviceReading, InterfaceChange, PeerChange } from "./parts.ts";
import { UapiConnection } from "./uapi-connection.ts";
import {
  encodeGet,
  encodeListenPort,
  encodePeerChanges,
  encodePrivateKey,
  peerChangeBytes,
  type UapiReply,
} from "./uapi-protocol.ts";

/** Where WireGuard programs in userspace keep their control sockets; wireguard-go cannot be told of another place. */
const UAPI_FOLDER = "/var/run/wireguard";

/**
 * What fits into the buffer of a Linux stream socket: the request is written in one go, so the device's refusal is read before
 * anything could break the connection. It also is what the device's lock is held for.
 */
const REQUEST_MAX_BYTES = 128 << 10;

export function uapiPath(interfaceName: string, folder = UAPI_FOLDER): string {
  return join(folder, `${interfaceName}.sock`);
}

/**
 * Configures a WireGuard program in userspace (wireguard-go, boringtun and others) by its control socket. Each call has a
 * connection of its own, and peers go in requests of some 100, one after the other.
 *
 * wireguard-go opens its UDP port at about the time its interface is made or comes up, and then keeps to itself that it cannot. Only a
 * `listenPort` that is set while the interface is up is sure to be refused (`control-failed`, EADDRINUSE); setting it again opens
 * another socket.
 */
export class UapiControl implements DeviceControl {
  readonly #path: string;
  readonly #silenceMax: Millis | undefined;
  readonly #calls = new CallQueue();

  /** `path` of the socket; see `uapiPath`. `silenceMax`: of a device that is asked; default 10 s. */
  constructor(path: string, silenceMax?: Millis) {
    this.#path = path;
    this.#silenceMax = silenceMax;
  }

  change(change: InterfaceChange, peers: readonly PeerChange[]): Promise<void> {
    return this.#calls.run(() => this.#change(change, peers));
  }

  read(): Promise<DeviceReading> {
    return this.#calls.run(async () => {
      using talk = this.#talk();
      return await talk.read();
    });
  }

  [Symbol.asyncDispose](): Promise<void> {
    return this.#calls.close();
  }

  async #change(change: InterfaceChange, peers: readonly PeerChange[]): Promise<void> {
    using talk = this.#talk();
    const { privateKey, listenPort } = change;
    if (privateKey !== undefined) await talk.demand(encodePrivateKey(privateKey), "its private key");
    if (listenPort !== undefined) await talk.demand(encodeListenPort(listenPort), `the listen port ${listenPort}`);
    const changes = change.replacePeers ? withRemovals(peers, (await talk.read()).peers.keys()) : peers;
    const send = async (part: readonly PeerChange[]): Promise<Refusal | undefined> => {
      const { errno } = await talk.ask(encodePeerChanges(part));
      return errno ? { reason: errnoName(errno) } : undefined;
    };
    await applyPeers(requestsOf(changes).map((part) => ({ changes: part, send })));
  }

  #talk(): Talk {
    return new Talk(this.#path, this.#calls.signal, this.#silenceMax);
  }
}

function requestsOf(changes: readonly PeerChange[]): PeerChange[][] {
  const requests: PeerChange[][] = [];
  let room = 0;
  for (const change of changes) {
    const bytes = peerChangeBytes(change);
    if (bytes > room) {
      requests.push([]);
      room = REQUEST_MAX_BYTES;
    }
    requests.at(-1)!.push(change);
    room -= bytes;
  }
  return requests;
}

/** What a call says: over one connection, and another one after a refusal. */
class Talk implements Disposable {
  readonly #path: string;
  readonly #signal: AbortSignal;
  readonly #silenceMax: Millis | undefined;
  #connection: UapiConnection | undefined;

  constructor(path: string, signal: AbortSignal, silenceMax: Millis | undefined) {
    this.#path = path;
    this.#signal = signal;
    this.#silenceMax = silenceMax;
    signal.addEventListener("abort", this.#stop);
  }

  async ask(request: Uint8Array): Promise<UapiReply> {
    try {
      this.#connection ??= await UapiConnection.open(this.#path, this.#silenceMax);
      if (this.#signal.aborted) this.#stop();
      const reply = await this.#connection.ask(request);
      if (reply.errno) this.#hangUp();
      return reply;
    } catch (error) {
      this.#hangUp();
      if (this.#signal.aborted) throw new ExternalDeviceError("closed", "the device is closed", { cause: error });
      throw error;
    } finally {
      request.fill(0);
    }
  }

  /** Throws ExternalDeviceError when the device refuses `what`. */
  async demand(request: Uint8Array, what: string): Promise<void> {
    const { errno } = await this.ask(request);
    if (errno) throw new ExternalDeviceError("control-failed", `the device refused ${what}: ${errnoName(errno)}`);
  }

  async read(): Promise<DeviceReading> {
    const { errno, reading } = await this.ask(encodeGet());
    if (errno) throw new ExternalDeviceError("control-failed", `the device tells nothing: ${errnoName(errno)}`);
    return reading;
  }

  [Symbol.dispose](): void {
    this.#signal.removeEventListener("abort", this.#stop);
    this.#hangUp();
  }

  readonly #stop = (): void => this.#connection?.[Symbol.dispose]();

  #hangUp(): void {
    this.#connection?.[Symbol.dispose]();
    this.#connection = undefined;
  }
}
