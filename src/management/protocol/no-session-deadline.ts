import { create } from "@bufbuild/protobuf";
import { type Timestamp, TimestampSchema } from "@bufbuild/protobuf/wkt";

/**
 * What `sessionExpiresAt` is for machines that nobody has to log in again: a message without fields, which has to be there (3a 00);
 * left out it would mean that nothing has changed. Source: protocol/management.md, section 3.9.
 */
export function noSessionDeadline(): Timestamp {
  return create(TimestampSchema);
}
