import type { DataPlane } from "./worker/data-plane.ts";

/** What the device needs of the data worker; `DataPlane` is one. */
export type Plane = Pick<
  DataPlane,
  | "events"
  | "features"
  | "interfaceName"
  | "listenPort"
  | "handshakeLoad"
  | "setCookieSecret"
  | "addPeer"
  | "restorePeer"
  | "removePeer"
  | "setAsleep"
  | "rearmWake"
  | "setKeepalive"
  | "addPrefix"
  | "removePrefix"
  | "setPath"
  | "installSession"
  | "dropStaged"
  | "setFilter"
  | "setFilterSource"
  | "noteAuthenticated"
  | "startCapture"
  | "stopCapture"
  | "injectRelayed"
  | "sendDatagram"
  | "peerCounters"
  | "counters"
  | "isWorking"
  | "close"
>;
