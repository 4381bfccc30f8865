import { type Endpoint, formatEndpoint, formatPrefix, parseEndpoint } from "#base/ip.ts";
import { KEY_BYTES, type PrivateKey, PublicKey } from "#base/keys.ts";
import { ExternalDeviceError } from "./external-error.ts";
import type { DeviceReading, PeerChange, PeerReading } from "./parts.ts";

/*
 * The configuration protocol of WireGuard programs in userspace (wireguard.com/xplatform): lines over a stream socket.
 *
 *   request  get=1\n\n
 *   request  set=1\n  keys of the interface  { public_key=HEX\n  keys of that peer }*  \n
 *   reply    keys of everything, to `get` alone;  errno=N\n\n
 *
 * Keys are in hex. A device that refuses a line has applied those before it, and reads none that follow: the connection is
 * of no more use. Nothing here makes a string of a secret; whoever has a request or has read a reply wipes the bytes.
 */

const NO_KEY = "0".repeat(2 * KEY_BYTES);
const NEWLINE = 0x0a;
/** Longer than any line that means something here. */
const LINE_MAX_BYTES = 4096;

/** A request for everything. */
export function encodeGet(): Uint8Array {
  return Buffer.from("get=1\n\n", "latin1");
}

/** A request that changes nothing and costs nothing: whether somebody answers. */
export function encodeNothing(): Uint8Array {
  return Buffer.from("set=1\n\n", "latin1");
}

/** A request that sets the interface's key. The caller wipes it. */
export function encodePrivateKey(key: PrivateKey): Uint8Array {
  const request = new RequestWriter(128);
  request.secret("private_key", key.bytes());
  return request.end();
}

export function encodeListenPort(port: number): Uint8Array {
  const request = new RequestWriter(32);
  request.line("listen_port", String(port));
  return request.end();
}

/** A request that changes the peers. The caller wipes it. */
export function encodePeerChanges(peers: readonly PeerChange[]): Uint8Array {
  const request = new RequestWriter(peers.reduce((bytes, peer) => bytes + peerChangeBytes(peer), 16));
  for (const peer of peers) writePeer(request, peer);
  return request.end();
}

/** No less than `encodePeerChanges` makes of a peer. */
export function peerChangeBytes(peer: PeerChange): number {
  // All keys with values of the greatest length, and each prefix: `allowed_ip=`, 39 characters, `/128`, a newline.
  return peer.remove ? 96 : 400 + 56 * (peer.allowedIps?.length ?? 0);
}

function writePeer(request: RequestWriter, peer: PeerChange): void {
  request.line("public_key", Buffer.from(peer.key, "base64").toString("hex"));
  if (peer.remove) return request.line("remove", "true");
  const { updateOnly, presharedKey, endpoint, keepalive, allowedIps } = peer;
  if (updateOnly) request.line("update_only", "true");
  if (presharedKey) request.secret("preshared_key", presharedKey.bytes());
  else if (presharedKey === null) request.line("preshared_key", NO_KEY);
  if (endpoint !== undefined) request.line("endpoint", formatEndpoint(endpoint));
  if (allowedIps !== undefined) {
    request.line("replace_allowed_ips", "true");
    for (const prefix of allowedIps) request.line("allowed_ip", formatPrefix(prefix));
  }
  // Last: it may send a packet, and the peer should be complete then.
  if (keepalive !== undefined) request.line("persistent_keepalive_interval", String(keepalive));
}

/** Bytes in memory of their own, which the one who has the request can wipe. */
class RequestWriter {
  #bytes: Buffer;
  #length = 0;

  constructor(capacity: number) {
    this.#bytes = Buffer.alloc(capacity);
    this.#text("set=1\n");
  }

  line(key: string, value: string): void {
    this.#text(`${key}=${value}\n`);
  }

  /** Wipes `value`. */
  secret(key: string, value: Uint8Array): void {
    this.#text(`${key}=`);
    this.#reserve(2 * value.length);
    for (const byte of value) {
      this.#bytes[this.#length++] = hexDigit(byte >> 4);
      this.#bytes[this.#length++] = hexDigit(byte & 15);
    }
    value.fill(0);
    this.#text("\n");
  }

  end(): Uint8Array {
    this.#text("\n");
    return this.#bytes.subarray(0, this.#length);
  }

  #text(text: string): void {
    this.#reserve(text.length);
    this.#length += this.#bytes.write(text, this.#length, "latin1");
  }

  #reserve(bytes: number): void {
    if (this.#length + bytes <= this.#bytes.length) return;
    const old = this.#bytes;
    this.#bytes = Buffer.alloc(2 * (this.#length + bytes));
    old.copy(this.#bytes, 0, 0, this.#length);
    old.fill(0);
  }
}

function hexDigit(value: number): number {
  return value < 10 ? 0x30 + value : 0x57 + value;
}

export interface UapiReply {
  /** 0 = done; else the positive number of the system's error. */
  readonly errno: number;
  /** What a `get` told; empty after a `set`. */
  readonly reading: DeviceReading;
}

type Writable<Type> = { -readonly [Key in keyof Type]: Type[Key] };

/** Reads one reply from pieces of any size. */
export class UapiReplyReader {
  #rest: Buffer = Buffer.alloc(0);
  #listenPort = 0;
  readonly #peers = new Map<PublicKey, PeerReading>();
  #peer: Writable<PeerReading> | undefined;
  #errno: number | undefined;

  /**
   * The reply, once `piece` ends it; undefined: there is more to come. Wipes `piece`, which may hold secrets.
   * Throws ExternalDeviceError `control-failed` for what is no reply.
   */
  push(piece: Uint8Array): UapiReply | undefined {
    const bytes = this.#join(piece);
    let start = 0;
    try {
      for (let end = bytes.indexOf(NEWLINE); end >= 0; end = bytes.indexOf(NEWLINE, start)) {
        if (end === start && this.#errno !== undefined)
          return { errno: this.#errno, reading: { listenPort: this.#listenPort, peers: this.#peers } };
        this.#line(bytes, start, end);
        start = end + 1;
      }
      if (bytes.length - start > LINE_MAX_BYTES) throw malformed(`a line of more than ${LINE_MAX_BYTES} bytes`);
      this.#rest = Buffer.alloc(bytes.length - start);
      bytes.copy(this.#rest, 0, start);
      return undefined;
    } finally {
      bytes.fill(0);
    }
  }

  #join(piece: Uint8Array): Buffer {
    if (this.#rest.length === 0) return Buffer.from(piece.buffer, piece.byteOffset, piece.length);
    const bytes = Buffer.alloc(this.#rest.length + piece.length);
    bytes.set(this.#rest);
    bytes.set(piece, this.#rest.length);
    this.#rest.fill(0);
    piece.fill(0);
    return bytes;
  }

  /** Compares bytes and makes strings of the few values alone that need it: a device of 10,000 peers has 100,000 lines. */
  #line(bytes: Buffer, start: number, end: number): void {
    const has = (key: string): boolean => startsWith(bytes, start, key);
    const number = (key: string): number => integerIn(bytes, start + key.length, end);
    const text = (key: string): string => bytes.toString("latin1", start + key.length, end);
    if (has("errno=")) this.#errno = integerIn(bytes, start + (has("errno=-") ? 7 : 6), end);
    else if (has("listen_port=")) this.#listenPort = number("listen_port=");
    else if (has("public_key=")) {
      this.#peer = { endpoint: undefined, rxBytes: 0, txBytes: 0, lastHandshake: 0 };
      this.#peers.set(publicKey(text("public_key=")), this.#peer);
    } else if (this.#peer) {
      const peer = this.#peer;
      if (has("endpoint=")) peer.endpoint = readEndpoint(text("endpoint="));
      else if (has("rx_bytes=")) peer.rxBytes = number("rx_bytes=");
      else if (has("tx_bytes=")) peer.txBytes = number("tx_bytes=");
      else if (has("last_handshake_time_sec=")) peer.lastHandshake += 1000 * number("last_handshake_time_sec=");
      else if (has("last_handshake_time_nsec=")) peer.lastHandshake += number("last_handshake_time_nsec=") / 1e6;
    }
  }
}

function startsWith(bytes: Buffer, start: number, text: string): boolean {
  for (let i = 0; i < text.length; i++) if (bytes[start + i] !== text.charCodeAt(i)) return false;
  return true;
}

/** Undefined where there is none. A zone names an interface of this machine and is left out. */
export function readEndpoint(text: string): Endpoint | undefined {
  try {
    return parseEndpoint(text.replace(/%[^\]]*\]/, "]"));
  } catch {
    return undefined;
  }
}

function integerIn(bytes: Buffer, start: number, end: number): number {
  let value = 0;
  for (let at = start; at < end; at++) {
    const digit = bytes[at]! - 0x30;
    if (digit < 0 || digit > 9) throw malformed("a number that is none");
    value = 10 * value + digit;
  }
  if (start === end) throw malformed("a number that is none");
  return value;
}

function publicKey(hex: string): PublicKey {
  const bytes = Buffer.from(hex, "hex");
  if (bytes.length !== KEY_BYTES) throw malformed("a public key that is none");
  return PublicKey.fromBytes(bytes);
}

function malformed(what: string): ExternalDeviceError {
  return new ExternalDeviceError("control-failed", `the device's answer has ${what}`);
}
