import { Connections } from "./connections.ts";
import { FilterTable } from "./filter-table.ts";
import { Fragments } from "./fragments.ts";
import { Asker, InnerFlow, PROTOCOL_ICMP, PROTOCOL_ICMPV6, Shape } from "./inner-flow.ts";
import { PROTOCOL_TCP, TcpFlag } from "./inner-packet.ts";

/**
 * Programs ask for a connection from a port at or above this one (Linux: `ip_local_port_range`), services listen below it
 * as a rule.
 */
const FIRST_EPHEMERAL_PORT = 32_768;

/** `Command.filterBegin`: what happens to packets that no rule matches; `off` lets all pass unseen. */
export const FilterMode = { off: 0, dropOtherwise: 1, acceptOtherwise: 2 } as const;
export type FilterMode = (typeof FilterMode)[keyof typeof FilterMode];

/**
 * The packet filter of the data worker (rules: ../filter.ts). The rules are asked for the first packet of an inbound flow
 * and once more for a flow whose rules may have changed since; all else is one lookup in the table of flows.
 *
 *   outbound    never refused; begins a flow, or belongs to one
 *   inbound     known flow?     judged by these rules?  -> pass
 *                               by older ones           -> outgoing flow: pass; incoming: ask the rules again
 *               new             -> ask the rules; accepted: a flow begins
 *               ICMP error      -> about a known flow: pass; else ask the rules
 *               later fragment  -> pass when the first one did
 *
 * With the table full, accepted inbound packets pass without beginning a flow, so that nobody can push flows out from outside;
 * flows of this machine take the place of the oldest, where the rules would not let the answer in by themselves.
 */
export class PacketFilter {
  /** Off: nothing is read, nothing is known. */
  isOn = false;
  readonly #flow: InnerFlow;
  readonly #quote: InnerFlow;
  #table = new FilterTable(false);
  /** The rules being sent, in force with `commit`. */
  #pending: FilterTable | undefined;
  #pendingMode: FilterMode = FilterMode.off;
  /** Made when the filter is used first. */
  #connections: Connections | undefined;
  #fragments: Fragments | undefined;
  readonly #connectionLimit: number | undefined;
  /** Rises with every change of the rules. */
  #generation = 0;
  #nowMs = 0;

  /** `view` covers the memory that packets lie in. */
  constructor(view: DataView, connectionLimit?: number) {
    this.#flow = new InnerFlow(view);
    this.#quote = new InnerFlow(view);
    this.#connectionLimit = connectionLimit;
  }

  /** Device clock of this turn of the loop, milliseconds. */
  set now(ms: number) {
    this.#nowMs = ms;
    if (this.isOn) this.#setClock();
  }

  /** Flows in the table. */
  get connections(): number {
    return this.#connections?.size ?? 0;
  }

  // Rules

  /** Begins a whole new set of rules; those in force stay so until `commit`. */
  begin(mode: FilterMode): void {
    this.#pendingMode = mode;
    this.#pending = new FilterTable(mode === FilterMode.acceptOtherwise);
  }

  /** Rules of one source (FilterTable.set): of the set that was begun, or else of the one in force. */
  setSource(isV6: boolean, view: DataView, at: number, bits: number, rules: Uint8Array): void {
    const table = this.#pending ?? this.#table;
    table.set(isV6, view, at, bits, rules);
    if (table === this.#table) this.#generation = (this.#generation + 1) | 0;
  }

  /** Puts the rules that were begun in force. Flows stay known; each is judged again with its next packet. */
  commit(): void {
    if (!this.#pending) return;
    this.#table = this.#pending;
    this.#pending = undefined;
    this.#generation = (this.#generation + 1) | 0;
    this.isOn = this.#pendingMode !== FilterMode.off;
    if (this.isOn) {
      this.#connections ??= new Connections(this.#connectionLimit);
      this.#fragments ??= new Fragments();
      this.#setClock();
    } else {
      this.#connections = undefined;
      this.#fragments = undefined;
    }
  }

  // Packets; only while `isOn`

  /** Learns from a packet that this machine sends. */
  outbound(at: number, length: number): void {
    const flow = this.#flow;
    if (!flow.read(at, length) || flow.shape !== Shape.flow) return;
    const connections = this.#connections!;
    const entry = connections.find(flow, true);
    if (entry < 0) this.#beginOutbound();
    else if (isOpening(flow) && (!connections.isOutgoing(entry) || connections.isEnded(entry)))
      connections.restart(entry, flow, true, this.#generation);
    else connections.note(entry, flow, true);
  }

  /** Whether the packet, whose source is the peer's own, may go to this machine. */
  accepts(at: number, length: number): boolean {
    const flow = this.#flow;
    if (!flow.read(at, length) || !this.#judge()) return false;
    if (flow.isFirstFragment) this.#fragments!.add(flow);
    return true;
  }

  #judge(): boolean {
    const flow = this.#flow;
    switch (flow.shape) {
      case Shape.flow:
        return this.#judgeFlow();
      case Shape.error:
        return this.#isAboutKnownFlow() || this.#table.accepts(flow, false);
      case Shape.laterFragment:
        return this.#fragments!.has(flow);
      case Shape.single:
      case Shape.opaque:
        return this.#table.accepts(flow, false);
      default:
        // A shape that nobody thought of here.
        return false;
    }
  }

  #judgeFlow(): boolean {
    const flow = this.#flow;
    const connections = this.#connections!;
    const entry = connections.find(flow, false);
    if (entry < 0) return this.#beginInbound();
    if (isOpening(flow) && this.#isNewBeginning(entry)) {
      if (!this.#table.accepts(flow, false)) return false;
      connections.restart(entry, flow, false, this.#generation);
      return true;
    }
    if (!this.#isAllowed(entry, flow, false)) return false;
    connections.note(entry, flow, false);
    return true;
  }

  /** Opens from outside what has ended, or what this machine opened and has been answered. */
  #isNewBeginning(entry: number): boolean {
    const connections = this.#connections!;
    return connections.isEnded(entry) || (connections.isOutgoing(entry) && connections.isAnswered(entry));
  }

  /** `reversed`: `flow` is a packet of this machine. */
  #isAllowed(entry: number, flow: InnerFlow, reversed: boolean): boolean {
    const connections = this.#connections!;
    if (connections.generation(entry) !== this.#generation) {
      const isAllowed = connections.isOutgoing(entry) || this.#table.accepts(flow, reversed);
      connections.judged(entry, isAllowed, this.#generation);
    }
    return !connections.isDenied(entry);
  }

  #beginInbound(): boolean {
    const flow = this.#flow;
    if (!this.#table.accepts(flow, false)) return false;
    // An answer without a question, or the end of a connection that nobody knows, begins nothing.
    const begins = isIcmp(flow) ? flow.asker === Asker.source : !(flow.protocol === PROTOCOL_TCP && isReset(flow));
    if (begins) this.#connections!.add(flow, false, false, this.#generation, false);
    return true;
  }

  #beginOutbound(): void {
    const flow = this.#flow;
    if (flow.protocol === PROTOCOL_TCP) this.#beginOutboundTcp();
    else if (!isIcmp(flow) || flow.asker === Asker.source) this.#addOutgoing();
  }

  #beginOutboundTcp(): void {
    const flow = this.#flow;
    const connections = this.#connections!;
    if (isOpening(flow)) {
      this.#addOutgoing();
      return;
    }
    if (isReset(flow)) return;
    // Part of a connection that is older than the table. Who began it is not known: one that the rules let in may have come in.
    if (this.#table.accepts(flow, true)) {
      const entry = connections.add(flow, true, false, this.#generation, false);
      if (entry >= 0) connections.note(entry, flow, true);
      return;
    }
    // One that they do not let in has begun here, unless it looks like a service's.
    if ((flow.tcpFlags & TcpFlag.syn) !== 0 || flow.sourcePort < FIRST_EPHEMERAL_PORT) return;
    const entry = this.#addOutgoing();
    if (entry >= 0) connections.assumeEstablished(entry);
  }

  #addOutgoing(): number {
    const flow = this.#flow;
    const connections = this.#connections!;
    const entry = connections.add(flow, true, true, this.#generation, false);
    if (entry >= 0 || this.#table.accepts(flow, true)) return entry;
    return connections.add(flow, true, true, this.#generation, true);
  }

  /** An error is about a packet that this machine sent, so its destination is that packet's source. */
  #isAboutKnownFlow(): boolean {
    const flow = this.#flow;
    const quote = this.#quote;
    if (!quote.readQuote(flow.quoteAt, flow.quoteBytes) || quote.shape !== Shape.flow) return false;
    const isOurs =
      quote.isV6 === flow.isV6 &&
      quote.source0 === flow.destination0 &&
      quote.source1 === flow.destination1 &&
      quote.source2 === flow.destination2 &&
      quote.source3 === flow.destination3;
    if (!isOurs) return false;
    const entry = this.#connections!.find(quote, true);
    return entry >= 0 && this.#isAllowed(entry, quote, true);
  }

  #setClock(): void {
    const seconds = Math.floor(this.#nowMs / 1000);
    this.#connections!.now = seconds;
    this.#fragments!.now = seconds;
  }
}

/** A TCP packet that asks for a connection. */
function isOpening(flow: InnerFlow): boolean {
  const bits = TcpFlag.syn | TcpFlag.ack | TcpFlag.rst | TcpFlag.fin;
  return flow.protocol === PROTOCOL_TCP && (flow.tcpFlags & bits) === TcpFlag.syn;
}

function isReset(flow: InnerFlow): boolean {
  return (flow.tcpFlags & TcpFlag.rst) !== 0;
}

function isIcmp(flow: InnerFlow): boolean {
  return flow.protocol === (flow.isV6 ? PROTOCOL_ICMPV6 : PROTOCOL_ICMP);
}
