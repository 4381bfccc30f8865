import type { Endpoint, IpAddress } from "#base/ip.ts";
import { isV6 } from "#base/ip.ts";
import { errnoName } from "./errno.ts";
import { libc } from "./libc.ts";
import { AF_INET, AF_INET6, decodeSockaddr, encodeSockaddr, SOCKADDR_IN6_BYTES } from "./sockaddr.ts";

const SOCK_DGRAM_CLOEXEC = 2 | 0x80000;

/** The local address from which the machine would send to `to`, or why it would not, such as `ENETUNREACH`. Sends nothing. */
export type RouteSource =
  | { readonly kind: "found"; readonly address: IpAddress }
  | { readonly kind: "refused"; readonly errno: string };

/** Asks the routing tables by connecting a UDP socket of the moment; about 10 µs. */
export function routeSource(to: Endpoint): RouteSource {
  const c = libc();
  const fd = c.socket(isV6(to.address) ? AF_INET6 : AF_INET, SOCK_DGRAM_CLOEXEC, 0);
  const refused = (): RouteSource => ({ kind: "refused", errno: errnoName(c.errno()) });
  if (fd < 0) return refused();
  try {
    const name = encodeSockaddr(to);
    if (c.connect(fd, name, name.length) < 0) return refused();
    const own = new Uint8Array(SOCKADDR_IN6_BYTES);
    if (c.getsockname(fd, own, new Uint32Array([own.length])) < 0) return refused();
    const address = decodeSockaddr(own)?.address;
    return address === undefined ? { kind: "refused", errno: "EAFNOSUPPORT" } : { kind: "found", address };
  } finally {
    c.close(fd);
  }
}
