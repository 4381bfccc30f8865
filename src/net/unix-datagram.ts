import { lastError, libc, retryInterrupted } from "./libc.ts";

/*
 * sockaddr_un: family 0/2 LE (1), path 2/108. A path ends with a zero; an abstract name begins with one and its length is
 * that of the address (unix(7)).
 */
const AF_UNIX = 1;
const SOCKADDR_UN_BYTES = 110;
const PATH_AT = 2;

const SOCK_DGRAM = 2;
const SOCK_CLOEXEC = 0x80000;
const MSG_DONTWAIT = 0x40;
const MSG_NOSIGNAL = 0x4000;

/** The kernel's form of a path, or of an abstract name that begins with `@`; undefined for what is neither or too long. */
export function encodeUnixAddress(address: string): Uint8Array<ArrayBuffer> | undefined {
  const isAbstract = address.startsWith("@");
  if (!isAbstract && !address.startsWith("/")) return undefined;
  const path = Buffer.from(address);
  if (address.includes("\0") || path.length < 2) return undefined;
  const bytes = new Uint8Array(PATH_AT + path.length + (isAbstract ? 0 : 1));
  if (bytes.length > SOCKADDR_UN_BYTES) return undefined;
  new DataView(bytes.buffer).setUint16(0, AF_UNIX, true);
  bytes.set(path, PATH_AT);
  if (isAbstract) bytes[PATH_AT] = 0;
  return bytes;
}

/**
 * Sends one datagram to a unix socket, which Node's own modules cannot. Never waits: false when the receiver's queue is full.
 * Throws NetError `ffi-missing`, `not-permitted` or `syscall-failed`.
 */
export function sendUnixDatagram(to: Uint8Array<ArrayBuffer>, text: string): boolean {
  const c = libc();
  const fd = c.socket(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC, 0);
  if (fd < 0) throw lastError("cannot make a unix socket");
  try {
    const bytes = Buffer.from(text);
    const flags = MSG_DONTWAIT | MSG_NOSIGNAL;
    if (retryInterrupted(() => c.sendto(fd, bytes, bytes.length, flags, to, to.length)) >= 0) return true;
    const error = lastError("cannot send to a unix socket");
    if (error.errno === "EAGAIN") return false;
    throw error;
  } finally {
    c.close(fd);
  }
}
