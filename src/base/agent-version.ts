/*
 * What another agent can do, told from the version management reports for it (signal-and-peer-connection.md, 5.2 and 9).
 *
 *   since   ability
 *   0.45.0  lazy connections: may be closed while nobody talks and wakes on an offer
 *   0.50.0  GO_IDLE: agrees to close; an older agent may take the unknown message for a reason to wake
 *
 * A development build can do everything.
 */

const LAZY_SINCE = "0.45.0";
const GO_IDLE_SINCE = "0.50.0";

/** Whether an agent of this version may be let sleep. False for an empty or unreadable version. */
export function supportsLazy(version: string): boolean {
  return isVersionAtLeast(version, LAZY_SINCE);
}

/** Whether an agent of this version understands GO_IDLE. False for an empty or unreadable version. */
export function supportsGoIdle(version: string): boolean {
  return isVersionAtLeast(version, GO_IDLE_SINCE);
}

/**
 * Whether `version` is at least `minimum` ("x.y.z"): segments compared as numbers, a leading `v` and whatever follows `-` or
 * `+` aside. Builds named `development…`, `ci-…`, `dev-…` count as newest. False for an empty or unreadable version.
 */
export function isVersionAtLeast(version: string, minimum: string): boolean {
  if (/^(development|ci-|dev-)/.test(version)) return true;
  const numbers = version.replace(/^[va]/, "").replace(/[-+].*$/s, "");
  if (!/^\d{1,9}(\.\d{1,9})+$/.test(numbers)) return false;
  const segments = numbers.split(".").map(Number);
  for (const [index, want] of minimum.split(".").map(Number).entries()) {
    const have = segments[index] ?? 0;
    if (have !== want) return have > want;
  }
  return true;
}
