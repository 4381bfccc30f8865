import { join } from "node:path";
import { z } from "zod";
import { messageOf } from "#base/errors.ts";
import { type DeviceMark, type DeviceRecord, removeMarked } from "#wireguard/external/device-mark.ts";
import { interfaceExists } from "#wireguard/external/interface-names.ts";
import { removeNftRules } from "#wireguard/external/nft-rules.ts";
import { AgentError } from "../errors.ts";
import { HostRecord, NOTHING_RESTORED, type Restoration } from "../host-record.ts";

/** File in the state directory; there exactly while there is, or may be, a device that outlives us. */
export const DEVICE_RECORD_FILE = "device.json";

const RecordSchema = z.discriminatedUnion("kind", [
  z.object({
    version: z.literal(1),
    kind: z.literal("wireguard-go"),
    interfaceName: z.string().min(1),
    mark: z.string().regex(/^[0-9a-f]{32}$/),
    socketPath: z.string().startsWith("/"),
  }),
  z.object({
    version: z.literal(1),
    kind: z.literal("kernel"),
    interfaceName: z.string().min(1),
    index: z.number().int().positive(),
  }),
]);

/** Remembers, across a crash, which device of another program is ours. Its errors are AgentError `state-dir`. */
export class DeviceRecordStore extends HostRecord<z.infer<typeof RecordSchema>> implements DeviceRecord {
  constructor(stateDir: string) {
    super(
      join(stateDir, DEVICE_RECORD_FILE),
      RecordSchema,
      (message, cause) => new AgentError("state-dir", message, { cause }),
    );
  }

  override write(mark: DeviceMark): void {
    super.write({ version: 1, ...mark });
  }
}

/** Takes away a device whose owner died, and its filter. Idempotent; reports instead of throwing. */
export async function restoreDevice(store: DeviceRecordStore): Promise<Restoration> {
  try {
    const mark = store.read();
    if (!mark) return NOTHING_RESTORED;
    const ended = await removeMarked(mark);
    // An interface of that name now is somebody else's, and so is its filter.
    if (!interfaceExists(mark.interfaceName)) await removeNftRules(mark.interfaceName);
    store.remove();
    return { done: [ended ?? `took away what was left of the interface ${mark.interfaceName}`], problems: [] };
  } catch (error) {
    return { done: [], problems: [`cannot take the tunnel's device away: ${messageOf(error)}`] };
  }
}
