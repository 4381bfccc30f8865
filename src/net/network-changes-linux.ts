import { readFileSync } from "node:fs";
import type { Millis } from "#base/time.ts";
import { ProgramMonitor } from "./program-monitor.ts";

/** After the kernel's last word on a change: an address comes with its routes, one after the other. */
const SETTLE: Millis = 30;
/** Of a change that does not end. */
const SETTLE_AT_MOST: Millis = 300;

/** Tells of changes of the machine's addresses and routes until `close`. */
export interface NetworkChanges {
  close(): void;
}

/**
 * Calls `changed` shortly after addresses or routes changed, as rtnetlink tells it to `ip monitor`. Without iproute2 nothing is
 * told: whoever needs to know looks now and then anyway.
 */
export function watchNetworkChanges(changed: () => void): NetworkChanges {
  let timer: NodeJS.Timeout | undefined;
  let firstAt: Millis | undefined;
  let mayHaveMissed = false;

  const tell = (): void => {
    firstAt = undefined;
    changed();
  };
  const note = (): void => {
    const now = performance.now();
    firstAt ??= now;
    clearTimeout(timer);
    timer = setTimeout(tell, Math.max(0, Math.min(SETTLE, firstAt + SETTLE_AT_MOST - now)));
    timer.unref();
  };
  const monitor = new ProgramMonitor({
    command: ["ip", "-o", "monitor", "address", "route"],
    line: note,
    ended() {
      mayHaveMissed = true;
    },
    settled() {
      if (mayHaveMissed) note();
      mayHaveMissed = false;
    },
  });
  return {
    close() {
      monitor.close();
      clearTimeout(timer);
    },
  };
}

/** The default routes of both families, as texts to compare; those of `exceptInterface` do not count. */
export function readDefaultRoutes(exceptInterface: string): readonly string[] {
  const routes: string[] = [];
  for (const [name, destination, gateway, , , , , mask] of readTable("/proc/self/net/route")) {
    if (destination === "00000000" && mask === "00000000" && name !== exceptInterface)
      routes.push(`${name} ${gateway}`);
  }
  for (const [destination, bits, , , gateway, , , , , name] of readTable("/proc/self/net/ipv6_route")) {
    const isDefault = bits === "00" && /^0+$/.test(destination!);
    // The kernel's own entry that refuses everything is on `lo`.
    if (isDefault && name !== "lo" && name !== exceptInterface) routes.push(`${name} ${gateway}`);
  }
  return routes.sort();
}

function readTable(path: string): string[][] {
  try {
    return readFileSync(path, "latin1")
      .split("\n")
      .map((line) => line.trim().split(/\s+/));
  } catch {
    // A kernel without IPv6 has no such file.
    return [];
  }
}
