import { constants } from "node:os";

/** Linux error numbers that the code compares with; the same on x86-64 and arm64 (asm-generic/errno.h). */
export const Errno = {
  EPERM: 1,
  ENOENT: 2,
  EINTR: 4,
  EIO: 5,
  ENXIO: 6,
  EBADF: 9,
  EAGAIN: 11,
  ENOMEM: 12,
  EACCES: 13,
  EBUSY: 16,
  ENODEV: 19,
  EINVAL: 22,
  EBADFD: 77,
  EDESTADDRREQ: 89,
  EMSGSIZE: 90,
  ENOPROTOOPT: 92,
  EOPNOTSUPP: 95,
  EAFNOSUPPORT: 97,
  EADDRINUSE: 98,
  EADDRNOTAVAIL: 99,
  ENETDOWN: 100,
  ENETUNREACH: 101,
  ENOBUFS: 105,
  ECONNREFUSED: 111,
  EHOSTUNREACH: 113,
} as const;

const names = new Map<number, string>();
for (const [name, number] of Object.entries(constants.errno)) {
  // EAGAIN and EWOULDBLOCK, EOPNOTSUPP and ENOTSUP share a number: the first one met stays.
  if (!names.has(number)) names.set(number, name);
}
for (const [name, number] of Object.entries(Errno)) names.set(number, name);

/** `EADDRINUSE` for 98; `errno 4711` for a number without a name. */
export function errnoName(errno: number): string {
  return names.get(errno) ?? `errno ${errno}`;
}
