import { networkInterfaces } from "node:os";
import type { IpAddress } from "#base/ip.ts";
import type { Clock, Millis, Timer } from "#base/time.ts";
import { gatherHostCandidates } from "#ice/gather.ts";
import { type NetworkChanges, readDefaultRoutes, watchNetworkChanges } from "#net/network-changes-linux.ts";
import { networkOf } from "../peer/search-memory.ts";

/** How often to look when nobody tells of changes, and for a suspend. */
export const WATCH_INTERVAL: Millis = 5000;
/** The wall clock ran ahead of the monotonic one by this much: the machine slept. */
const SUSPENDED: Millis = 5000;

/** Where the machine is in the network, as far as the system tells. */
export interface NetworkSystem {
  readonly watch: (changed: () => void) => NetworkChanges;
  readonly defaultRoutes: (exceptInterface: string) => readonly string[];
}

const LINUX: NetworkSystem = { watch: watchNetworkChanges, defaultRoutes: readDefaultRoutes };

/**
 * What a change means for paths. `moved`: the machine is somewhere else, or may be. `added`: it has addresses more, and none
 * less (an IPv6 privacy address began). `renewed`: an address is gone and another of the same network stays (one ended):
 * paths go on with that, connections that began at the old one do not.
 */
export type NetworkChange = "moved" | "added" | "renewed";

interface Place {
  readonly addresses: readonly IpAddress[];
  readonly routes: string;
}

/**
 * Notices that the machine's place in the network changed: an address that peers could use, or a default route, came or
 * went, or a suspend ended. The system tells within milliseconds; a look now and then finds what it did not tell. The tunnel's
 * own interface, and those of containers and other tunnels, do not count.
 */
export class NetworkWatch {
  readonly #clock: Clock;
  readonly #ownInterface: string;
  readonly #onChange: (change: NetworkChange) => void;
  readonly #interfaces: typeof networkInterfaces;
  readonly #system: NetworkSystem | undefined;
  readonly #changes: NetworkChanges | undefined;
  #seen: Place;
  #lag: Millis;
  #timer: Timer | undefined;

  /** `interfaces`: instead of the machine's own; then `system` is not asked unless it is given, too. */
  constructor(
    clock: Clock,
    ownInterface: string,
    onChange: (change: NetworkChange) => void,
    interfaces?: typeof networkInterfaces,
    system: NetworkSystem | undefined = interfaces ? undefined : LINUX,
  ) {
    this.#clock = clock;
    this.#ownInterface = ownInterface;
    this.#onChange = onChange;
    this.#interfaces = interfaces ?? networkInterfaces;
    this.#system = system;
    this.#seen = this.#read();
    this.#lag = this.#wallLag();
    this.#changes = system?.watch(() => this.#look());
    this.#arm();
  }

  close(): void {
    this.#changes?.close();
    this.#timer?.cancel();
    this.#timer = undefined;
  }

  #arm(): void {
    this.#timer = this.#clock.after(WATCH_INTERVAL, () => {
      this.#arm();
      this.#look();
    });
  }

  #look(): void {
    const before = this.#seen;
    const lag = this.#wallLag();
    const suspended = lag - this.#lag >= SUSPENDED;
    this.#lag = lag;
    this.#seen = this.#read();
    // Without any address there is nothing to negotiate with; the return of one is the change that counts.
    if (this.#seen.addresses.length === 0) return;
    const change = suspended ? "moved" : compare(before, this.#seen);
    if (change) this.#onChange(change);
  }

  /** Grows while the machine is suspended, and when somebody sets its clock forward, which does no harm. */
  #wallLag(): Millis {
    return this.#clock.wall() - this.#clock.now();
  }

  #read(): Place {
    const candidates = gatherHostCandidates({
      port: 1,
      ufrag: "",
      ownInterfaces: [this.#ownInterface],
      interfaces: this.#interfaces(),
    });
    const addresses = candidates.map(({ endpoint }) => endpoint.address);
    // Without an address no route leads anywhere.
    const routes = addresses.length === 0 ? [] : (this.#system?.defaultRoutes(this.#ownInterface) ?? []);
    return { addresses, routes: routes.join() };
  }
}

function compare(before: Place, after: Place): NetworkChange | undefined {
  // Back after a time without any address: what was under way then is dead.
  if (after.routes !== before.routes || before.addresses.length === 0) return "moved";
  const lost = before.addresses.filter((address) => !after.addresses.includes(address));
  const networks = new Set(after.addresses.map(networkOf));
  if (lost.some((address) => !networks.has(networkOf(address)))) return "moved";
  if (lost.length > 0) return "renewed";
  return after.addresses.length > before.addresses.length ? "added" : undefined;
}
