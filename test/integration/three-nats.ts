import { NAT } from "../../lab/nat.ts";
import { hostPerSite } from "../../lab/topology.ts";

/** The server, and three agents behind NATs: alder and birch connect directly, alder and cedar over the relay. */
export const THREE_NATS = hostPerSite({
  hub: {},
  alder: { nat: NAT.portRestricted },
  birch: { nat: NAT.addressRestricted },
  cedar: { nat: NAT.symmetric },
});
