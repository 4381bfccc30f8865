/**
 * What a record in a ring between main and worker holds. All integers little-endian.
 *
 *   off  size
 *     0     4  total bytes (ring.ts)
 *     4     1  opcode: Command towards the worker, Report towards main
 *     5     1  address family: 0 none, 4, 6, 255 relay
 *     6     2  UDP port
 *     8     4  peer slot
 *    12     4  argument
 *    16    16  address (v4 in the first 4 bytes)
 *    32     8  time, f64, milliseconds of the device clock
 *    40    16  second address
 *    56     2  second port
 *    58     1  second family: 0 none, 4, 6
 *    59     1  IP protocol
 *    60     4  payload bytes
 *    64        payload
 */
export const RecordField = {
  opcode: 4,
  family: 5,
  port: 6,
  slot: 8,
  argument: 12,
  address: 16,
  time: 32,
  address2: 40,
  port2: 56,
  family2: 58,
  protocol: 59,
  payloadBytes: 60,
  payload: 64,
} as const;

export const RECORD_HEADER_BYTES = 64;

/** `RecordField.family` of something that came from or goes to a relay. */
export const FAMILY_RELAY = 255;

/** Main to worker. */
export const Command = {
  /** argument: persistent keepalive in seconds, ADD_ASLEEP, ADD_RESTORED. */
  addPeer: 1,
  removePeer: 2,
  /** argument: 1 asleep, 0 awake. */
  setAsleep: 3,
  /** argument: seconds, 0 off. */
  setKeepalive: 4,
  /** family, address; argument: prefix length. */
  addPrefix: 5,
  removePrefix: 6,
  /** family 0 none, 4 or 6 with address and port, 255 relay. */
  setPath: 7,
  /** argument: 1 initiator; time: when it was made; payload: local index u32, remote index u32, send key, receive key. */
  installSession: 8,
  dropStaged: 10,
  /** argument: 1 sent, 0 received; time: bytes to count. */
  noteAuthenticated: 11,
  /** payload: a datagram that a relay delivered. */
  inject: 12,
  /** argument: bytes. */
  setMtu: 13,
  /** A whole new set of filter rules follows. argument: FilterMode. */
  filterBegin: 14,
  /** family, address, argument (prefix length): a source; payload: its rules (filter-table.ts), none to forget it. */
  filterSource: 15,
  /** The set that was begun is in force. */
  filterCommit: 16,
  /** payload: the secret that cookies are made with, 32 bytes. */
  setCookieSecret: 17,
  /** The next packet for an asleep peer is reported as a wake again. */
  rearmWake: 18,
  /** slot (CAPTURE_ALL: every peer); argument: bytes to keep of each packet, 0 ends. The ring came by message or at start. */
  capture: 19,
} as const;
export type Command = (typeof Command)[keyof typeof Command];

/** Flags of `addPeer`'s argument. Restored: the row of counters is the peer's own and goes on. */
export const ADD_ASLEEP = 0x80000000;
export const ADD_RESTORED = 0x40000000;

/** Slot of `capture` for the packets of all peers. */
export const CAPTURE_ALL = 0xffffffff;

/**
 * Opcodes in the ring of captured inner packets. slot: the peer; argument: the packet's bytes; time; payload: its beginning.
 * `waiting`: it was staged, for the peer has no session or path. `filtered`: the packet filter dropped it.
 */
export const Captured = { outbound: 1, waiting: 2, inbound: 3, filtered: 4 } as const;
export type Captured = (typeof Captured)[keyof typeof Captured];

export const SESSION_PAYLOAD_BYTES = 8 + 64;

/** Worker to main. */
export const Report = {
  /** address/port, address2/port2, protocol: the packet; argument: its bytes. */
  wakePacket: 1,
  /** family, address, port: where the data came from. */
  wakeData: 2,
  /** family, address, port: source; address2/family2: local address; payload: the datagram. */
  handshake: 3,
  stun: 4,
  /** payload: the datagram. */
  relayOut: 5,
  /** argument: index in HANDSHAKE_REASONS. */
  needHandshake: 6,
  /** argument: local index; family, address, port: source. */
  confirmed: 7,
  /** argument: local index. */
  sessionEnded: 8,
  /** family, address, port: source; argument: 1 when it became the path. */
  pathHint: 9,
  /** argument: errno. */
  pathError: 10,
  silent: 11,
} as const;
export type Report = (typeof Report)[keyof typeof Report];

/**
 * Why the worker wants a handshake. `staged`: packets wait and there is no session. `keepalive`: a persistent keepalive is
 * due and there is no session. `rekey-time`, `rekey-count`: the session is old or much used. `no-answer`: data was sent
 * and nothing came back for 15 s.
 */
export const HANDSHAKE_REASONS = ["staged", "keepalive", "rekey-time", "rekey-count", "no-answer"] as const;
export type HandshakeReason = (typeof HANDSHAKE_REASONS)[number];
