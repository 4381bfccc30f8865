import { lastError, libc } from "./libc.ts";

/*
 * Classic BPF (socket(7), linux/filter.h): a small program in the kernel that says of each packet how many bytes of it the
 * socket gets; 0 drops it. A load beyond the packet ends the program and drops.
 *
 *   sock_filter  8 B: code 0/2, jump if true 2/1, jump if false 3/1, k 4/4        sock_fprog  16 B: length 0/2, program 8/8
 */
const SOL_SOCKET = 1;
const SO_ATTACH_FILTER = 26;
const SOCK_FILTER_BYTES = 8;
/** Linux, BPF_MAXINSNS. */
const STEPS_MAX = 4096;

const Code = {
  "load-byte": 0x30,
  "load-half": 0x28,
  "load-word": 0x20,
  "load-byte-x": 0x50,
  "load-half-x": 0x48,
  "load-word-x": 0x40,
  "load-stored": 0x60,
  store: 0x02,
  "x-from-ipv4-header": 0xb1,
  "jump-equal": 0x15,
  "jump-at-least": 0x35,
  jump: 0x05,
  return: 0x06,
} as const;

/** Added to the offset of a load that counts from the network header whatever the socket sees (SKF_NET_OFF). */
export const FROM_NETWORK_HEADER = -0x100000;
/** More than any packet has. */
const WHOLE_PACKET = 0x40000;

/**
 * One instruction. Loads are big-endian into the accumulator; those with `-x` count from register X. A jump names the label to go to,
 * and goes on with the next step otherwise.
 */
export type FilterStep =
  | {
      readonly op: "load-byte" | "load-half" | "load-word" | "load-byte-x" | "load-half-x" | "load-word-x";
      readonly at: number;
    }
  /** Length in bytes of the IPv4 header at `at` into X. */
  | { readonly op: "x-from-ipv4-header"; readonly at: number }
  /** The accumulator into one of 16 words, and back. */
  | { readonly op: "store" | "load-stored"; readonly word: number }
  | {
      readonly op: "jump-equal" | "jump-at-least";
      readonly value: number;
      readonly to: string;
    }
  | { readonly op: "jump"; readonly to: string }
  | { readonly op: "label"; readonly name: string }
  | { readonly op: "accept" | "drop" };

/** The program for the kernel. Throws RangeError for a label that is missing, lies behind, or is too far away. */
export function assembleFilter(steps: readonly FilterStep[]): Uint8Array<ArrayBuffer> {
  const labels = new Map<string, number>();
  const instructions: Exclude<FilterStep, { op: "label" }>[] = [];
  for (const step of steps) {
    if (step.op === "label") labels.set(step.name, instructions.length);
    else instructions.push(step);
  }
  if (instructions.length === 0 || instructions.length > STEPS_MAX)
    throw new RangeError(`a filter has 1 to ${STEPS_MAX} instructions, got ${instructions.length}`);
  const bytes = new Uint8Array(instructions.length * SOCK_FILTER_BYTES);
  const view = new DataView(bytes.buffer);
  instructions.forEach((step, index) => {
    const { code, k, jumpTo } = encodeStep(step);
    const distance = jumpTo === undefined ? 0 : (labels.get(jumpTo) ?? -1) - index - 1;
    if (distance < 0 || distance > 255) throw new RangeError(`label ${jumpTo} is not within 255 instructions ahead`);
    const at = index * SOCK_FILTER_BYTES;
    view.setUint16(at, code, true);
    view.setUint8(at + 2, step.op === "jump" ? 0 : distance);
    view.setUint32(at + 4, step.op === "jump" ? distance : k >>> 0, true);
  });
  return bytes;
}

function encodeStep(step: Exclude<FilterStep, { op: "label" }>): { code: number; k: number; jumpTo?: string } {
  switch (step.op) {
    case "accept":
      return { code: Code.return, k: WHOLE_PACKET };
    case "drop":
      return { code: Code.return, k: 0 };
    case "jump":
      return { code: Code.jump, k: 0, jumpTo: step.to };
    case "jump-equal":
    case "jump-at-least":
      return { code: Code[step.op], k: step.value, jumpTo: step.to };
    case "store":
    case "load-stored":
      return { code: Code[step.op], k: step.word };
    default:
      return { code: Code[step.op], k: step.at };
  }
}

/** Puts a program in the place of the socket's earlier one, at once; what is queued already stays. Throws NetError. */
export function attachFilter(fd: number, program: Uint8Array<ArrayBuffer>): void {
  const c = libc();
  const header = new Uint8Array(16);
  const view = new DataView(header.buffer);
  view.setUint16(0, program.length / SOCK_FILTER_BYTES, true);
  view.setBigUint64(8, BigInt(c.addressOf(program)), true);
  if (c.setsockopt(fd, SOL_SOCKET, SO_ATTACH_FILTER, header, header.length) < 0)
    throw lastError("cannot attach a packet filter to a socket");
}
