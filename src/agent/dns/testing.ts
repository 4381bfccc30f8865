import { parseEndpoint } from "#base/ip.ts";
import type { DomainName } from "./domain-name.ts";
import type { HostNames } from "./host-resolver.ts";

/* Support for the tests of this folder. */

/** What an agent with one domain asks of the host. */
export const HOST_NAMES: HostNames = {
  interfaceName: "perch0",
  server: parseEndpoint("100.64.0.1:53"),
  search: ["perch.internal" as DomainName],
  match: [],
  everything: false,
};
