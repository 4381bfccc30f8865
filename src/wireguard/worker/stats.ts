/**
 * Counters in shared memory: the worker writes, main reads whenever it likes, no messages.
 *
 *   Float64 words  0..63   device counters in the order of DEVICE_COUNTERS
 *                  64..    one row of 8 words for each peer slot, in the order of PEER_FIELDS
 *
 * A reader may see a row in which one word is newer than another; each word is whole.
 */
export const DEVICE_COUNTERS = [
  "rx-packets",
  "tx-packets",
  "rx-datagrams",
  "tx-datagrams",
  "wake-ups",
  "tun-read",
  "tun-write",
  "udp-receive-calls",
  "udp-send-calls",
  "staged-bytes",
  "staged-packets",
  "staged-waiting",
  "sessions",
  "drop-staged-peer-full",
  "drop-staged-device-full",
  "drop-staged-asleep",
  "drop-staged-given-up",
  "drop-staged-removed",
  "drop-staged-restart",
  "drop-malformed",
  "drop-unknown-index",
  "drop-expired",
  "drop-authentication",
  "drop-replay",
  "drop-allowed-ips",
  "drop-inner-malformed",
  "drop-truncated",
  "drop-unknown-type",
  "drop-relay-mismatch",
  "drop-mac1",
  "drop-unproved-source",
  "drop-handshake-queue",
  "drop-relay-queue",
  "drop-no-route",
  "drop-outbound-malformed",
  "drop-multicast-asleep",
  "drop-send",
  "drop-message-too-big",
  "drop-tun-write",
  "drop-socket-queue",
  "gso-refused",
  "gso-disabled",
  "drop-filter",
  "filter-connections",
  "rx-bytes",
  "tx-bytes",
] as const;
export type DeviceCounter = (typeof DEVICE_COUNTERS)[number];

export const PEER_FIELDS = [
  "rxBytes",
  "txBytes",
  "lastDataRx",
  "lastDataTx",
  "lastRx",
  "stagedBytes",
  "sessionCreated",
  "lastTx",
] as const;

/**
 * One peer's row. Bytes are UDP payload bytes with handshakes. Times are milliseconds of the device clock (main's
 * `performance.now()`), 0 = never: `lastDataRx`/`lastDataTx` of the last inner packet that is no keepalive, `lastRx`/`lastTx`
 * of the last authenticated packet of any type, `sessionCreated` of the session in use.
 */
export type PeerCounters = { readonly [Field in (typeof PEER_FIELDS)[number]]: number };

/** The row of a peer that nothing was counted for. */
export const NO_PEER_COUNTERS: PeerCounters = {
  rxBytes: 0,
  txBytes: 0,
  lastDataRx: 0,
  lastDataTx: 0,
  lastRx: 0,
  stagedBytes: 0,
  sessionCreated: 0,
  lastTx: 0,
};

const ROWS_AT = 64;
const ROW_WORDS = PEER_FIELDS.length;

/** Positions of the device counters, so that the packet path writes `words[Counter.x]`. */
export const Counter = Object.fromEntries(DEVICE_COUNTERS.map((name, index) => [name, index])) as {
  readonly [Name in DeviceCounter]: number;
};

/** Positions in a peer's row. */
export const PeerField = Object.fromEntries(PEER_FIELDS.map((name, index) => [name, index])) as {
  readonly [Name in (typeof PEER_FIELDS)[number]]: number;
};

export class Stats {
  readonly buffer: SharedArrayBuffer;
  readonly words: Float64Array;
  readonly peerCapacity: number;

  /** Memory is taken from the machine row by row as slots are used. */
  static create(peerCapacity: number): Stats {
    return new Stats(new SharedArrayBuffer((ROWS_AT + peerCapacity * ROW_WORDS) * 8));
  }

  constructor(buffer: SharedArrayBuffer) {
    this.buffer = buffer;
    this.words = new Float64Array(buffer);
    this.peerCapacity = (this.words.length - ROWS_AT) / ROW_WORDS;
  }

  /** Position of a peer's row in `words`. */
  row(slot: number): number {
    return ROWS_AT + slot * ROW_WORDS;
  }

  /**
   * Called by a worker before anything else: what one before it held is gone, its counters go on. Packets that waited are
   * counted as dropped.
   */
  takeOver(): void {
    const { words } = this;
    words[Counter["drop-staged-restart"]]! += words[Counter["staged-waiting"]]!;
    for (const name of ["staged-waiting", "staged-bytes", "sessions", "filter-connections"] as const)
      words[Counter[name]] = 0;
  }

  /** The same for one peer's row. */
  takeOverRow(slot: number): void {
    const row = this.row(slot);
    for (const field of [PeerField.stagedBytes, PeerField.sessionCreated])
      if (this.words[row + field] !== 0) this.words[row + field] = 0;
  }

  clearRow(slot: number): void {
    // Writing to a row that was never used would take its memory from the machine.
    for (let at = this.row(slot); at < this.row(slot + 1); at++) if (this.words[at] !== 0) this.words[at] = 0;
  }

  peer(slot: number): PeerCounters {
    const row = this.row(slot);
    const { words } = this;
    return {
      rxBytes: words[row + PeerField.rxBytes]!,
      txBytes: words[row + PeerField.txBytes]!,
      lastDataRx: words[row + PeerField.lastDataRx]!,
      lastDataTx: words[row + PeerField.lastDataTx]!,
      lastRx: words[row + PeerField.lastRx]!,
      stagedBytes: words[row + PeerField.stagedBytes]!,
      sessionCreated: words[row + PeerField.sessionCreated]!,
      lastTx: words[row + PeerField.lastTx]!,
    };
  }

  device(): Map<DeviceCounter, number> {
    return new Map(DEVICE_COUNTERS.map((name, index) => [name, this.words[index]!]));
  }
}
