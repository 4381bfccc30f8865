/**
 * Registers peers that nobody runs an agent for: `register-peers.ts URL SETUP-KEY COUNT`. Runs in a host of the lab; the keys
 * are made here and forgotten.
 */
import { create } from "@bufbuild/protobuf";
import { PrivateKey } from "#base/keys.ts";
import { silentLogger } from "#base/log.ts";
import { systemClock } from "#base/time.ts";
import { PROTOCOL_VERSION } from "#base/version.ts";
import { PeerSystemMetaSchema } from "#gen/management_pb.ts";
import { ManagementClient } from "#management/client/management-client.ts";

const [url, setupKey, count] = process.argv.slice(2);
for (let number = 0; number < Number(count); number++) {
  await using client = new ManagementClient(
    { clock: systemClock, log: silentLogger },
    { url: url!, key: PrivateKey.generate() },
  );
  const meta = create(PeerSystemMetaSchema, {
    hostname: `sleeper-${number}`,
    goOS: "linux",
    netbirdVersion: PROTOCOL_VERSION,
  });
  await client.login({ setupKey, meta });
}
