import type { DeviceMark, DeviceRecord } from "./device-mark.ts";
import type { PacketRules } from "./parts.ts";

/**
 * The record of a device whose filter outlives it: it is not removed while the filter may be left, so that the next start, or whoever
 * cleans up, takes that away. The filter is closed before the device.
 */
export class FilterRecord implements DeviceRecord {
  readonly #record: DeviceRecord;
  #isFilterLeft = false;

  constructor(record: DeviceRecord) {
    this.#record = record;
  }

  /** Of a filter that failed and was closed since nothing is left; a record that stays then does no harm. */
  watch({ events }: Pick<PacketRules, "events">): void {
    events.on("failed", () => {
      this.#isFilterLeft = true;
    });
  }

  write(mark: DeviceMark): void {
    this.#record.write(mark);
  }

  remove(): void {
    if (!this.#isFilterLeft) this.#record.remove();
  }
}
