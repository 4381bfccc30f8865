import { execFileSync } from "node:child_process";
import type { PublicKey } from "#base/keys.ts";

export interface DumpedPeer {
  readonly presharedKey: string | undefined;
  readonly endpoint: string;
  readonly allowedIps: readonly string[];
  /** Seconds, 0 = off. */
  readonly keepalive: number;
}

/** What the program `wg` says of the peers of an interface. */
export function dumpOf(interfaceName: string): Map<PublicKey, DumpedPeer> {
  const [, ...lines] = execFileSync("wg", ["show", interfaceName, "dump"], { maxBuffer: 64 << 20 })
    .toString()
    .trim()
    .split("\n");
  return new Map(
    lines.map((line) => {
      const [key, presharedKey, endpoint, allowedIps, , , , keepalive] = line.split("\t") as string[];
      return [
        key as PublicKey,
        {
          presharedKey: presharedKey === "(none)" ? undefined : presharedKey,
          endpoint: endpoint!,
          allowedIps: allowedIps === "(none)" ? [] : allowedIps!.split(","),
          keepalive: keepalive === "off" ? 0 : Number(keepalive),
        },
      ];
    }),
  );
}
