import { formatPrefix, ipToBytes, isV6, parseIp, prefixContains } from "#base/ip.ts";
import type { FilterRules } from "../filter.ts";

/**
 * The packet filter the slow and obvious way, for tests: packets are descriptions, flows lie in a list, rules are asked one
 * by one. It shares nothing with filter.ts but the times.
 */
export interface Packet {
  readonly direction: "in" | "out";
  readonly local: string;
  readonly remote: string;
  readonly body:
    | { readonly kind: "tcp"; readonly localPort: number; readonly remotePort: number; readonly flags: string }
    | { readonly kind: "udp"; readonly localPort: number; readonly remotePort: number }
    | { readonly kind: "question" | "answer"; readonly id: number }
    | { readonly kind: "redirect" }
    | { readonly kind: "error"; readonly about: Packet }
    | { readonly kind: "other"; readonly protocol: number };
}

interface Flow {
  readonly name: string;
  beganHere: boolean;
  denied: boolean;
  answered: boolean;
  confirmed: boolean;
  ends: Set<boolean>;
  reset: boolean;
  rulesFrom: number;
  usedAt: number;
}

export class FilterModel {
  /** Seconds. */
  now = 0;
  #rules: FilterRules;
  #version = 0;
  #flows: Flow[] = [];

  constructor(rules: FilterRules) {
    this.#rules = rules;
  }

  set rules(rules: FilterRules) {
    this.#rules = rules;
    this.#version++;
  }

  /** True: the packet passes. What this machine sends always does. */
  take(packet: Packet): boolean {
    this.#flows = this.#flows.filter((flow) => this.now - flow.usedAt < idleSeconds(flow));
    if (packet.direction === "out") {
      this.#send(packet);
      return true;
    }
    return this.#receive(packet);
  }

  #send(packet: Packet): void {
    const { body } = packet;
    const name = flowName(packet);
    if (name === undefined) return;
    const flow = this.#flows.find((one) => one.name === name);
    if (flow && body.kind === "tcp" && body.flags === "S" && (!flow.beganHere || isEnded(flow))) {
      this.#begin(name, true, flow);
    } else if (flow) {
      this.#note(flow, packet);
    } else if (body.kind === "tcp" && body.flags !== "S") {
      if (body.flags.includes("R")) return;
      if (this.#allows({ ...packet, direction: "in" })) this.#note(this.#begin(name, false), packet);
      else if (!body.flags.includes("S") && body.localPort >= 32768) {
        const made = this.#begin(name, true);
        made.answered = made.confirmed = true;
      }
    } else if (body.kind !== "answer") {
      this.#begin(name, true);
    }
  }

  #receive(packet: Packet): boolean {
    const { body } = packet;
    if (body.kind === "error") {
      const name =
        body.about.direction === "out" && body.about.local === packet.local ? flowName(body.about) : undefined;
      const flow = this.#flows.find((one) => one.name === name);
      if (flow && this.#stillAllowed(flow, body.about)) return true;
      return this.#allows(packet);
    }
    const name = flowName(packet);
    if (name === undefined) return this.#allows(packet);
    const flow = this.#flows.find((one) => one.name === name);
    if (!flow) {
      if (!this.#allows(packet)) return false;
      const ends = (body.kind === "tcp" && body.flags.includes("R")) || body.kind === "answer";
      if (!ends) this.#begin(name, false);
      return true;
    }
    if (body.kind === "tcp" && body.flags === "S" && (isEnded(flow) || (flow.beganHere && flow.answered))) {
      if (!this.#allows(packet)) return false;
      this.#begin(name, false, flow);
      return true;
    }
    if (!this.#stillAllowed(flow, packet)) return false;
    this.#note(flow, packet);
    return true;
  }

  #stillAllowed(flow: Flow, packet: Packet): boolean {
    if (flow.rulesFrom !== this.#version) {
      flow.rulesFrom = this.#version;
      flow.denied = !flow.beganHere && !this.#allows({ ...packet, direction: "in" });
    }
    return !flow.denied;
  }

  #begin(name: string, beganHere: boolean, instead?: Flow): Flow {
    if (instead) this.#flows.splice(this.#flows.indexOf(instead), 1);
    const flow: Flow = {
      name,
      beganHere,
      denied: false,
      answered: false,
      confirmed: false,
      ends: new Set(),
      reset: false,
      rulesFrom: this.#version,
      usedAt: this.now,
    };
    this.#flows.push(flow);
    return flow;
  }

  #note(flow: Flow, { direction, body }: Packet): void {
    const byBeginner = flow.beganHere === (direction === "out");
    flow.usedAt = this.now;
    if (body.kind === "tcp") {
      if (byBeginner && flow.answered && !body.flags.includes("S")) flow.confirmed = true;
      if (body.flags.includes("F")) flow.ends.add(byBeginner);
      if (body.flags.includes("R")) flow.reset = true;
    }
    if (!byBeginner) flow.answered = true;
  }

  #allows({ local, remote, body }: Packet): boolean {
    const matching = this.#rules.inbound.filter(({ source, destination, protocol, ports }) => {
      if (!prefixContains(source, parseIp(remote))) return false;
      if (destination && !prefixContains(destination, parseIp(local))) return false;
      const isTransport = body.kind === "tcp" || body.kind === "udp";
      const isIcmp = !isTransport && body.kind !== "other";
      if (protocol === "icmp") return isIcmp;
      if (protocol === "all" && !ports) return true;
      if (!isTransport || (protocol !== "all" && protocol !== body.kind)) return false;
      return !ports || (body.localPort >= ports.first && body.localPort <= ports.last);
    });
    if (matching.some((rule) => rule.verdict === "drop")) return false;
    return matching.length > 0 || this.#rules.otherwise === "accept";
  }
}

function isEnded(flow: Flow): boolean {
  return flow.reset || flow.ends.size === 2;
}

function idleSeconds(flow: Flow): number {
  if (flow.name.startsWith("tcp")) return flow.confirmed && !isEnded(flow) ? 7440 : 30;
  if (flow.name.startsWith("icmp")) return 30;
  return flow.answered ? 180 : 60;
}

/** Equal for the packets of one flow; undefined when the packet is in none. */
function flowName({ direction, local, remote, body }: Packet): string | undefined {
  const ends = `${local} ${remote}`;
  switch (body.kind) {
    case "tcp":
    case "udp":
      return `${body.kind} ${ends} ${body.localPort} ${body.remotePort}`;
    case "question":
    case "answer":
      return `icmp ${ends} ${(direction === "out") === (body.kind === "question") ? "ours" : "theirs"} ${body.id}`;
    case "other":
      return `other ${ends} ${body.protocol}`;
    default:
      return undefined;
  }
}

/** The packet as bytes, without checksums: the filter does not look at them. */
export function encodePacket(packet: Packet): Uint8Array {
  const { direction, local, remote, body } = packet;
  const [source, destination] = direction === "out" ? [local, remote] : [remote, local];
  const v6 = isV6(parseIp(local));
  switch (body.kind) {
    case "tcp":
    case "udp": {
      const transport = new Uint8Array(body.kind === "tcp" ? 20 : 8);
      const view = new DataView(transport.buffer);
      view.setUint16(0, direction === "out" ? body.localPort : body.remotePort);
      view.setUint16(2, direction === "out" ? body.remotePort : body.localPort);
      if (body.kind === "tcp") {
        transport[12] = 5 << 4;
        for (const flag of body.flags) transport[13]! |= { F: 1, S: 2, R: 4, P: 8, A: 16 }[flag] ?? 0;
      }
      return ipPacket(source, destination, body.kind === "tcp" ? 6 : 17, transport);
    }
    case "question":
    case "answer": {
      const type = body.kind === "question" ? (v6 ? 128 : 8) : v6 ? 129 : 0;
      return icmp(source, destination, type, Uint8Array.of(body.id >> 8, body.id & 255, 0, 1));
    }
    case "redirect":
      return icmp(source, destination, v6 ? 137 : 5, new Uint8Array(20));
    case "error":
      // What is quoted is cut after eight bytes of its transport header.
      return icmp(source, destination, v6 ? 1 : 3, [0, 0, 0, 0, ...encodePacket(body.about).slice(0, v6 ? 48 : 28)]);
    case "other":
      return ipPacket(source, destination, body.protocol, new Uint8Array(16));
  }
}

function icmp(source: string, destination: string, type: number, rest: ArrayLike<number>): Uint8Array {
  const message = new Uint8Array(4 + rest.length);
  message[0] = type;
  message.set(Array.from(rest), 4);
  return ipPacket(source, destination, isV6(parseIp(source)) ? 58 : 1, message);
}

/** `fragment`: IPv4's field of flags and offset; `extension`: IPv6 extension headers, `protocol` the first one's number. */
export function ipPacket(
  source: string,
  destination: string,
  protocol: number,
  payload: Uint8Array,
  { fragment = 0, id = 0, extension = new Uint8Array(0) } = {},
): Uint8Array {
  const addresses = [parseIp(source), parseIp(destination)].map(ipToBytes) as [Uint8Array, Uint8Array];
  const v6 = addresses[0].length === 16;
  const headerBytes = v6 ? 40 : 20;
  const packet = new Uint8Array(headerBytes + extension.length + payload.length);
  const view = new DataView(packet.buffer);
  if (v6) {
    packet[0] = 0x60;
    view.setUint16(4, packet.length - 40);
    packet[6] = protocol;
  } else {
    packet[0] = 0x45;
    view.setUint16(2, packet.length);
    view.setUint16(4, id);
    view.setUint16(6, fragment);
    packet[9] = protocol;
  }
  packet.set(addresses[0], v6 ? 8 : 12);
  packet.set(addresses[1], v6 ? 24 : 16);
  packet.set(extension, headerBytes);
  packet.set(payload, headerBytes + extension.length);
  return packet;
}

/** For the message of a failing property. */
export function describeRules({ inbound, otherwise }: FilterRules): string {
  const texts = inbound.map(
    ({ verdict, protocol, ports, source, destination }) =>
      `${verdict} ${protocol}${ports ? ` ${ports.first}-${ports.last}` : ""} from ${formatPrefix(source)} to ${destination ? formatPrefix(destination) : "any"}`,
  );
  return [...texts, `otherwise ${otherwise}`].join("; ");
}
