import { PerchError } from "#base/errors.ts";

export type StoreErrorCode =
  /** The database cannot be opened or is not ours. */
  | "store-unusable"
  /** The setup key does not admit this peer; the message says why. */
  | "setup-key-refused"
  /** The setup key does not permit extra DNS labels. */
  | "extra-labels-refused"
  /** The key is registered already. */
  | "peer-exists"
  /** No free overlay address. */
  | "network-full"
  /** No setup key has this id or prefix. */
  | "setup-key-unknown"
  /** Several setup keys begin like this. */
  | "setup-key-ambiguous"
  /** A property of a new setup key or token is out of range. */
  | "setting-invalid";

/** The store is unchanged after each of these. */
export class StoreError extends PerchError<StoreErrorCode> {}
