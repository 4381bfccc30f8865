import { type IpAddress, ipFromBytes, ipToBytes, isV6 } from "#base/ip.ts";

export interface SourceLimitOptions {
  /** Connections of one source that have not yet made a complete request. */
  readonly maxUnproven: number;
  /** Connections of one source in all; loopback is exempt, because a reverse proxy in front makes everyone come from it. */
  readonly maxConnections: number;
}

interface Source {
  unproven: number;
  connections: number;
}

/** One admitted connection; both methods are idempotent. */
export interface Admission {
  /** It made a complete request. */
  noteProven(): void;
  noteClosed(): void;
}

/**
 * Counts connections per source: an IPv4 address, or an IPv6 /64, which is what one subscriber gets. A source that is over
 * a limit is refused a further connection and keeps the ones it has. Memory is one entry per source that is connected now.
 */
export class SourceLimits {
  readonly #options: SourceLimitOptions;
  readonly #sources = new Map<string, Source>();

  constructor(options: SourceLimitOptions) {
    this.#options = options;
  }

  /** Sources with a connection now. */
  get size(): number {
    return this.#sources.size;
  }

  /** Admits a connection from `address`, or returns undefined: over a limit. */
  admit(address: IpAddress): Admission | undefined {
    const key = sourceKey(address);
    const source = this.#sources.get(key) ?? { unproven: 0, connections: 0 };
    if (source.unproven >= this.#options.maxUnproven) return undefined;
    if (source.connections >= this.#options.maxConnections && !isLoopback(address)) return undefined;
    this.#sources.set(key, source);
    source.unproven++;
    source.connections++;
    let proven = false;
    let closed = false;
    const noteProven = (): void => {
      if (proven) return;
      proven = true;
      source.unproven--;
    };
    return {
      noteProven,
      noteClosed: () => {
        if (closed) return;
        closed = true;
        noteProven();
        source.connections--;
        if (source.connections === 0) this.#sources.delete(key);
      },
    };
  }
}

function sourceKey(address: IpAddress): string {
  if (!isV6(address)) return address;
  const bytes = ipToBytes(address);
  bytes.fill(0, 8);
  return ipFromBytes(bytes);
}

function isLoopback(address: IpAddress): boolean {
  return address === "::1" || address.startsWith("127.");
}
