import { createRequire } from "node:module";
import { PerchError } from "#base/errors.ts";
import { errnoName } from "./errno.ts";

/**
 * System calls through koffi: the only place that declares them. All layouts and numbers used with them hold for Linux on
 * x86-64 and arm64 alike (both are LP64 and little-endian; `ioctl` may be declared without `...` on Linux).
 *
 * An address argument is a number (base + offset, below 2^53), a bigint, null, or a typed array whose memory the call may
 * use until it returns. Every call returns what the C function returns; after -1, `errno()` is valid until the next call.
 */
export interface Libc {
  open(path: string, flags: number): number;
  close(fd: number): number;
  ioctl(fd: number, request: number, argument: Address): number;
  read(fd: number, buffer: Address, bytes: number): number;
  write(fd: number, buffer: Address, bytes: number): number;
  /** The same as `read`, for an address alone: cheaper by what it takes to find out what a `buffer` is. */
  readAt(fd: number, address: number, bytes: number): number;
  writev(fd: number, iovecs: Address, count: number): number;
  poll(fds: Address, count: number, timeoutMs: number): number;
  eventfd(initial: number, flags: number): number;
  socket(family: number, type: number, protocol: number): number;
  /** Writes the two descriptors as 32-bit integers. */
  socketpair(family: number, type: number, protocol: number, pair: Address): number;
  bind(fd: number, address: Address, bytes: number): number;
  connect(fd: number, address: Address, bytes: number): number;
  getsockname(fd: number, address: Address, bytes: Address): number;
  setsockopt(fd: number, level: number, name: number, value: Address, bytes: number): number;
  getsockopt(fd: number, level: number, name: number, value: Address, bytes: Address): number;
  sendto(fd: number, buffer: Address, bytes: number, flags: number, to: Address, toBytes: number): number;
  sendmsg(fd: number, message: Address, flags: number): number;
  recvmsg(fd: number, message: Address, flags: number): number;
  sendmmsg(fd: number, messages: Address, count: number, flags: number): number;
  recvmmsg(fd: number, messages: Address, count: number, flags: number, timeout: Address): number;
  /** The error number of the last call that failed on this thread. */
  errno(): number;
  /** The address of a typed array's first byte; valid as long as its buffer lives and is neither moved nor resized. */
  addressOf(bytes: ArrayBufferView): number;
}

export type Address = number | bigint | ArrayBufferView | null;

/** What koffi gives for a library handle, as far as Perch uses it. */
export interface ForeignLibrary {
  func(name: string, result: string, parameters: string[]): unknown;
}

interface Koffi {
  load(path: string | null): ForeignLibrary;
  errno(): number;
  address(value: ArrayBufferView): bigint;
}

/**
 * `ffi-missing`: no koffi for this machine. `port-taken`: another socket has the UDP port. `not-permitted`: the process
 * lacks a privilege. `syscall-failed`: anything else; `errno` names it.
 */
export type NetErrorCode = "ffi-missing" | "port-taken" | "not-permitted" | "syscall-failed";

export class NetError extends PerchError<NetErrorCode> {
  /** Symbolic, such as `EADDRINUSE`; undefined where no system call was involved. */
  readonly errno: string | undefined;

  constructor(
    code: NetErrorCode,
    message: string,
    options: { cause?: unknown; retryable?: boolean; errno?: string } = {},
  ) {
    super(code, message, options);
    this.errno = options.errno;
  }
}

let loadedKoffi: Koffi | undefined;
let loadedLibc: Libc | undefined;

/** Throws NetError `ffi-missing` where koffi has no binary for this platform. */
function koffi(): Koffi {
  if (loadedKoffi) return loadedKoffi;
  try {
    // Not a static import: a machine without koffi must still be able to use an external WireGuard device.
    loadedKoffi = createRequire(import.meta.url)("koffi") as Koffi;
  } catch (cause) {
    throw new NetError("ffi-missing", `koffi does not load on ${process.platform}-${process.arch}`, { cause });
  }
  return loadedKoffi;
}

/** A library whose symbols are already in the process, or `path`. Throws NetError `ffi-missing`. */
export function loadLibrary(path: string | null): ForeignLibrary {
  try {
    return koffi().load(path);
  } catch (cause) {
    if (cause instanceof NetError) throw cause;
    throw new NetError("ffi-missing", `cannot load ${path ?? "the process's own symbols"}`, { cause });
  }
}

/** Whether `loadLibrary` gave a library that has this function. */
export function hasSymbol(library: ForeignLibrary, symbol: string): boolean {
  try {
    library.func(symbol, "void *", []);
    return true;
  } catch {
    return false;
  }
}

/** The system calls; loaded once per thread. Throws NetError `ffi-missing`. */
export function libc(): Libc {
  if (loadedLibc) return loadedLibc;
  const ffi = koffi();
  const library = loadLibrary(null);
  const bind = <Name extends keyof Libc>(name: Name, result: string, parameters: string[]): Libc[Name] =>
    library.func(name, result, parameters) as Libc[Name];
  loadedLibc = {
    open: bind("open", "int", ["str", "int"]),
    close: bind("close", "int", ["int"]),
    ioctl: bind("ioctl", "int", ["int", "ulong", "void *"]),
    read: bind("read", "long", ["int", "void *", "size_t"]),
    readAt: library.func("read", "long", ["int", "size_t", "size_t"]) as Libc["readAt"],
    write: bind("write", "long", ["int", "void *", "size_t"]),
    writev: bind("writev", "long", ["int", "void *", "int"]),
    poll: bind("poll", "int", ["void *", "ulong", "int"]),
    eventfd: bind("eventfd", "int", ["uint", "int"]),
    socket: bind("socket", "int", ["int", "int", "int"]),
    socketpair: bind("socketpair", "int", ["int", "int", "int", "void *"]),
    bind: bind("bind", "int", ["int", "void *", "uint"]),
    connect: bind("connect", "int", ["int", "void *", "uint"]),
    getsockname: bind("getsockname", "int", ["int", "void *", "void *"]),
    setsockopt: bind("setsockopt", "int", ["int", "int", "int", "void *", "uint"]),
    getsockopt: bind("getsockopt", "int", ["int", "int", "int", "void *", "void *"]),
    sendto: bind("sendto", "long", ["int", "void *", "size_t", "int", "void *", "uint"]),
    sendmsg: bind("sendmsg", "long", ["int", "void *", "int"]),
    recvmsg: bind("recvmsg", "long", ["int", "void *", "int"]),
    sendmmsg: bind("sendmmsg", "int", ["int", "void *", "uint", "int"]),
    recvmmsg: bind("recvmmsg", "int", ["int", "void *", "uint", "int", "void *"]),
    errno: () => ffi.errno(),
    addressOf: (bytes) => Number(ffi.address(bytes)),
  };
  return loadedLibc;
}

/** Runs a call again while a signal interrupts it (EINTR). Not for the packet path: it allocates a closure. */
export function retryInterrupted(call: () => number): number {
  for (;;) {
    const result = call();
    if (result >= 0 || libc().errno() !== 4) return result;
  }
}

/** A NetError for the call that just failed on this thread. */
export function lastError(what: string): NetError {
  const name = errnoName(libc().errno());
  const denied = name === "EPERM" || name === "EACCES";
  return new NetError(denied ? "not-permitted" : "syscall-failed", `${what}: ${name}`, { errno: name });
}
