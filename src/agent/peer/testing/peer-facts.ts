import type { Millis } from "#base/time.ts";
import { createCredentials, SessionId } from "#signal/protocol/offer.ts";
import type { PeerContext, RemoteSession } from "../peer-state.ts";

/** What a peer's state machine is told when nothing is special. */
export function createContext(now: Millis, overrides: Partial<PeerContext> = {}): PeerContext {
  return {
    now,
    relayUp: true,
    relayRtt: undefined,
    iceAllowed: true,
    knownDirect: undefined,
    lastUserData: () => 0,
    holdOf: () => undefined,
    freshSession: () => ({ id: SessionId.create(), credentials: createCredentials() }),
    ...overrides,
  };
}

/** What a stock agent says of itself in its OFFER or ANSWER, with a session of its own each time. */
export function createStockRemote(): RemoteSession {
  return {
    credentials: createCredentials(),
    sessionId: SessionId.create(),
    listenPort: 51820,
    version: "0.76.0",
    relay: { instanceUrl: "rel://relay:1" },
  };
}

/** What another Perch says. */
export function createRemote(overrides: Partial<RemoteSession> = {}): RemoteSession {
  return { ...createStockRemote(), perch: { candidates: [] }, ...overrides };
}
