import { connect, type Socket } from "node:net";
import { messageOf } from "#base/errors.ts";
import type { Millis } from "#base/time.ts";
import { ExternalDeviceError } from "./external-error.ts";
import { encodeNothing, type UapiReply, UapiReplyReader } from "./uapi-protocol.ts";

/** A device that says nothing for so long is not working. */
const SILENCE_MAX: Millis = 10_000;

/**
 * One connection to a device's control socket: a request, its reply, the next request. Throws ExternalDeviceError
 * `control-failed` (retryable), or `not-permitted`; after that, and after a reply with an error, it is of no more use.
 */
export class UapiConnection implements Disposable {
  readonly #socket: Socket;
  readonly #path: string;
  #waiting: { reader: UapiReplyReader; resolve(reply: UapiReply): void; reject(error: Error): void } | undefined;
  #failure: ExternalDeviceError | undefined;

  private constructor(socket: Socket, path: string, silenceMax: Millis) {
    this.#socket = socket;
    this.#path = path;
    socket.on("data", (piece) => this.#read(piece));
    socket.on("error", (error) => this.#fail(translate(path, error)));
    socket.on("close", () => this.#fail(lost(path, "the device closed the connection")));
    socket.setTimeout(silenceMax, () => this.#fail(lost(path, `no answer for ${silenceMax / 1000} s`)));
  }

  static open(path: string, silenceMax = SILENCE_MAX): Promise<UapiConnection> {
    return new Promise((resolve, reject) => {
      const socket = connect(path);
      const refused = (error: Error): void => reject(translate(path, error));
      socket.once("error", refused);
      socket.once("connect", () => {
        socket.off("error", refused);
        resolve(new UapiConnection(socket, path, silenceMax));
      });
    });
  }

  /** Sends the request, wipes it and resolves with the reply. One at a time. */
  async ask(request: Uint8Array): Promise<UapiReply> {
    try {
      return await new Promise<UapiReply>((resolve, reject) => {
        if (this.#failure) return reject(this.#failure);
        this.#waiting = { reader: new UapiReplyReader(), resolve, reject };
        this.#socket.write(request);
      });
    } finally {
      request.fill(0);
    }
  }

  [Symbol.dispose](): void {
    this.#fail(lost(this.#path, "it was called off"));
  }

  #read(piece: Uint8Array): void {
    try {
      const reply = this.#waiting?.reader.push(piece);
      if (!reply) return;
      const waiting = this.#waiting;
      this.#waiting = undefined;
      waiting?.resolve(reply);
    } catch (error) {
      this.#fail(error instanceof ExternalDeviceError ? error : lost(this.#path, messageOf(error)));
    }
  }

  #fail(error: ExternalDeviceError): void {
    this.#failure ??= error;
    this.#socket.destroy();
    const waiting = this.#waiting;
    this.#waiting = undefined;
    waiting?.reject(this.#failure);
  }
}

/** Whether somebody serves the control socket. */
export async function isServed(path: string): Promise<boolean> {
  try {
    using _connection = await UapiConnection.open(path);
    return true;
  } catch (error) {
    if (error instanceof ExternalDeviceError && error.code === "control-failed") return false;
    throw error;
  }
}

/** What we lack ourselves: it says nothing of the device. */
const OWN_LACK: ReadonlySet<string | undefined> = new Set(["EMFILE", "ENFILE", "ENOMEM", "ENOBUFS"]);

/** Resolves when the device answered anything, or we have no descriptor to ask it with. Throws as UapiConnection, and when aborted. */
export async function needSignOfLife(path: string, signal: AbortSignal): Promise<void> {
  try {
    using connection = await UapiConnection.open(path);
    const hangUp = (): void => connection[Symbol.dispose]();
    if (signal.aborted) hangUp();
    signal.addEventListener("abort", hangUp, { once: true });
    await connection.ask(encodeNothing());
  } catch (error) {
    const cause = error instanceof ExternalDeviceError ? (error.cause as NodeJS.ErrnoException | undefined) : undefined;
    if (!OWN_LACK.has(cause?.code)) throw error;
  }
}

function lost(path: string, why: string, cause?: Error): ExternalDeviceError {
  return new ExternalDeviceError("control-failed", `${path}: ${why}`, { retryable: true, cause });
}

function translate(path: string, error: NodeJS.ErrnoException): ExternalDeviceError {
  switch (error.code) {
    case "EACCES":
    case "EPERM":
      return new ExternalDeviceError("not-permitted", `no permission to open ${path}: be root`, { cause: error });
    case "ENOENT":
    case "ECONNREFUSED":
      return lost(path, "no device listens there");
    default:
      return lost(path, error.code ?? messageOf(error), error);
  }
}
