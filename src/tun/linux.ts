import { PerchError } from "#base/errors.ts";
import { Errno, errnoName } from "#net/errno.ts";
import { type Libc, libc } from "#net/libc.ts";

/**
 * `tun-missing`: the kernel or the container has no /dev/net/tun. `tun-not-permitted`: CAP_NET_ADMIN is missing.
 * `interface-taken`: somebody else uses the name. `interface-name-invalid`: too long or not a name.
 * `interface-missing`: no such interface. `mtu-invalid`: the kernel refuses the MTU. `tun-failed`: anything else.
 */
export type TunErrorCode =
  | "tun-missing"
  | "tun-not-permitted"
  | "interface-taken"
  | "interface-name-invalid"
  | "interface-missing"
  | "mtu-invalid"
  | "tun-failed";

export class TunError extends PerchError<TunErrorCode> {}

/** Longest interface name in bytes: IFNAMSIZ without its terminating zero. */
export const INTERFACE_NAME_MAX_BYTES = 15;

const O_RDWR = 2;
const O_NONBLOCK = 0x800;
const O_CLOEXEC = 0x80000;

const TUNSETIFF = 0x400454ca;
const TUNSETOFFLOAD = 0x400454d0;
const SIOCGIFFLAGS = 0x8913;
const SIOCSIFFLAGS = 0x8914;
const SIOCGIFMTU = 0x8921;
const SIOCSIFMTU = 0x8922;
const SIOCGIFINDEX = 0x8933;
const SIOCSIFTXQLEN = 0x8943;

const IFF_UP = 1;
const IFF_TUN = 0x0001;
const IFF_NO_PI = 0x1000;
const IFF_VNET_HDR = 0x4000;
/** Refuses a name that exists, also as a persistent TUN that nobody has open: that one is somebody else's. */
const IFF_TUN_EXCL = 0x8000;

/** linux/if_tun.h: TUN_F_*. The USO bits exist since Linux 6.2. */
const TUN_F_CSUM = 1;
const TUN_F_TSO4 = 2;
const TUN_F_TSO6 = 4;
const TUN_F_USO4 = 0x20;
const TUN_F_USO6 = 0x40;

/**
 * Packets the kernel holds until they are read; what comes then is lost without a word. Linux's own 500 are fewer than a
 * program sends in one time slice: 1 MB in packets above the MTU makes 1,430.
 */
export const TUN_QUEUE_PACKETS = 2048;

/** `struct ifreq`: name 0/16, then a union; flags are 16 bits at 16, MTU and index 32 bits at 16. */
const IFREQ_BYTES = 40;

export interface TunOptions {
  /** Interface name, at most 15 bytes; `%d` in it is replaced by the first free number. */
  readonly name: string;
  /** Packets carry a virtio header and may be larger than the MTU (TCP segmentation left to the reader); default false. */
  readonly virtioHeader?: boolean;
  /** With `virtioHeader`: take UDP segmentation too where the kernel can (Linux 6.2); default true. */
  readonly udpSegmentation?: boolean;
}

/** An open TUN; whoever holds it closes `fd`, and the interface goes away with it. */
export interface Tun {
  readonly fd: number;
  /** The name the kernel chose. */
  readonly name: string;
  readonly virtioHeader: boolean;
  readonly udpSegmentation: boolean;
}

/**
 * Creates a TUN interface: non-persistent, not inherited by child processes, non-blocking, without packet information. It
 * is down and has no address. Falls back to no virtio header where the kernel refuses one. Throws TunError.
 */
export function openTun(options: TunOptions): Tun {
  checkName(options.name);
  const wanted = options.virtioHeader ?? false;
  const c = libc();
  const fd = openCloneDevice(c);
  try {
    let virtioHeader = wanted;
    let request = interfaceRequest(options.name, IFF_TUN | IFF_NO_PI | IFF_TUN_EXCL | (wanted ? IFF_VNET_HDR : 0));
    let result = c.ioctl(fd, TUNSETIFF, request);
    if (result < 0 && wanted && c.errno() === Errno.EINVAL) {
      virtioHeader = false;
      request = interfaceRequest(options.name, IFF_TUN | IFF_NO_PI | IFF_TUN_EXCL);
      result = c.ioctl(fd, TUNSETIFF, request);
    }
    if (result < 0) throw createError(options.name, c.errno());
    let udpSegmentation = false;
    if (virtioHeader) {
      const base = TUN_F_CSUM | TUN_F_TSO4 | TUN_F_TSO6;
      udpSegmentation =
        (options.udpSegmentation ?? true) && c.ioctl(fd, TUNSETOFFLOAD, base | TUN_F_USO4 | TUN_F_USO6) === 0;
      // Without any offload the header stays, always empty: slower, still right.
      if (!udpSegmentation) c.ioctl(fd, TUNSETOFFLOAD, base);
    }
    const name = nameIn(request);
    setQueueLength(name, TUN_QUEUE_PACKETS);
    return { fd, name, virtioHeader, udpSegmentation };
  } catch (error) {
    c.close(fd);
    throw error;
  }
}

export function closeTun(tun: Tun): void {
  libc().close(tun.fd);
}

/** Sets the MTU in bytes. Throws TunError `mtu-invalid` or `interface-missing`. */
export function setInterfaceMtu(name: string, mtu: number): void {
  const request = interfaceRequest(name, 0);
  new DataView(request.buffer).setInt32(16, mtu, true);
  interfaceIoctl(name, SIOCSIFMTU, request, (errno) =>
    errno === Errno.EINVAL || errno === Errno.EOPNOTSUPP
      ? new TunError("mtu-invalid", `the kernel refuses MTU ${mtu} for ${name}`)
      : undefined,
  );
}

export function interfaceMtu(name: string): number {
  const request = interfaceRequest(name, 0);
  interfaceIoctl(name, SIOCGIFMTU, request);
  return new DataView(request.buffer).getInt32(16, true);
}

/** A wish: Linux lets only the root of the first user namespace change it, and a tunnel with the short queue is one, too. */
function setQueueLength(name: string, packets: number): void {
  const request = interfaceRequest(name, 0);
  new DataView(request.buffer).setInt32(16, packets, true);
  try {
    interfaceIoctl(name, SIOCSIFTXQLEN, request);
  } catch (error) {
    if (!(error instanceof TunError && error.code === "tun-not-permitted")) throw error;
  }
}

/** Brings the interface up or down. */
export function setInterfaceUp(name: string, up: boolean): void {
  const request = interfaceRequest(name, 0);
  interfaceIoctl(name, SIOCGIFFLAGS, request);
  const view = new DataView(request.buffer);
  const flags = view.getUint16(16, true);
  view.setUint16(16, up ? flags | IFF_UP : flags & ~IFF_UP, true);
  interfaceIoctl(name, SIOCSIFFLAGS, request);
}

/** The kernel's number of the interface. Throws TunError `interface-missing`. */
export function interfaceIndex(name: string): number {
  const request = interfaceRequest(name, 0);
  interfaceIoctl(name, SIOCGIFINDEX, request);
  return new DataView(request.buffer).getInt32(16, true);
}

function openCloneDevice(c: Libc): number {
  const fd = c.open("/dev/net/tun", O_RDWR | O_NONBLOCK | O_CLOEXEC);
  if (fd >= 0) return fd;
  const errno = c.errno();
  switch (errno) {
    case Errno.ENOENT:
    case Errno.ENODEV:
    case Errno.ENXIO:
      throw new TunError("tun-missing", `no TUN driver: opening /dev/net/tun gives ${errnoName(errno)}`);
    case Errno.EPERM:
    case Errno.EACCES:
      throw new TunError("tun-not-permitted", "opening /dev/net/tun needs root or CAP_NET_ADMIN");
    default:
      throw new TunError("tun-failed", `cannot open /dev/net/tun: ${errnoName(errno)}`);
  }
}

function createError(name: string, errno: number): TunError {
  switch (errno) {
    case Errno.EPERM:
    case Errno.EACCES:
      return new TunError("tun-not-permitted", `creating interface ${name} needs root or CAP_NET_ADMIN`);
    case Errno.EBUSY:
      return new TunError("interface-taken", `an interface ${name} exists already`);
    case Errno.EINVAL:
      return new TunError("interface-name-invalid", `the kernel refuses ${name} as the name of an interface`);
    default:
      return new TunError("tun-failed", `cannot create interface ${name}: ${errnoName(errno)}`);
  }
}

function checkName(name: string): void {
  const bytes = Buffer.byteLength(name);
  if (bytes > INTERFACE_NAME_MAX_BYTES) {
    throw new TunError(
      "interface-name-invalid",
      `interface name ${JSON.stringify(name.slice(0, 64))} has ${bytes} bytes, the limit is ${INTERFACE_NAME_MAX_BYTES}`,
    );
  }
  // net/core/dev.c, dev_valid_name: not empty, not a dot path, no slash, colon or space; `%` only as one `%d`.
  const placeholder = name.replace("%d", "0");
  if (bytes === 0 || name === "." || name === ".." || /[/:\s%\0]/.test(placeholder)) {
    throw new TunError("interface-name-invalid", `${JSON.stringify(name)} is not an interface name`);
  }
}

function interfaceRequest(name: string, flags: number): Uint8Array<ArrayBuffer> {
  const request = new Uint8Array(IFREQ_BYTES);
  request.set(Buffer.from(name).subarray(0, INTERFACE_NAME_MAX_BYTES), 0);
  new DataView(request.buffer).setUint16(16, flags, true);
  return request;
}

function nameIn(request: Uint8Array): string {
  return Buffer.from(request.subarray(0, request.indexOf(0))).toString();
}

function interfaceIoctl(
  name: string,
  request: number,
  argument: Uint8Array,
  translate?: (errno: number) => TunError | undefined,
): void {
  const c = libc();
  // Any datagram socket can carry an interface ioctl.
  const fd = c.socket(2, 2 | O_CLOEXEC, 0);
  if (fd < 0) throw new TunError("tun-failed", `cannot open a control socket: ${errnoName(c.errno())}`);
  const result = c.ioctl(fd, request, argument);
  const errno = result < 0 ? c.errno() : 0;
  c.close(fd);
  if (result >= 0) return;
  const translated = translate?.(errno);
  if (translated) throw translated;
  if (errno === Errno.ENODEV || errno === Errno.ENXIO)
    throw new TunError("interface-missing", `there is no interface ${name}`);
  if (errno === Errno.EPERM || errno === Errno.EACCES)
    throw new TunError("tun-not-permitted", `changing interface ${name} needs root or CAP_NET_ADMIN`);
  throw new TunError("tun-failed", `interface ${name}: ${errnoName(errno)}`);
}
