import { type ChildProcess, execFileSync, spawn } from "node:child_process";
import { readFileSync } from "node:fs";
import { createInterface, type Interface } from "node:readline";
import { isV6, type Prefix, parseIp } from "#base/ip.ts";
import { nftProgram } from "#wireguard/external/nft.ts";
import { NftRules } from "#wireguard/external/nft-rules.ts";
import { encodePacket, type Packet } from "#wireguard/worker/filter-model.ts";
import { createNamespacePrefix, createNamespaces, processesIn, removeNamespaces } from "../../../lab/namespace.ts";
import { SYSTEM_PYTHON } from "../../../scripts/system-packages.ts";

const INTERFACE = "wg9";
/** Behind the filter: notes the TTLs of the packets that passed, which number them. Before all: silences the kernel. */
const WATCH = `
table inet watch {
  set passed4 { typeof ip ttl; flags dynamic; size 256; }
  set passed6 { typeof ip6 hoplimit; flags dynamic; size 256; }
  chain inbound {
    type filter hook prerouting priority -140;
    iifname ${INTERFACE} meta nfproto ipv4 update @passed4 { ip ttl }
    iifname ${INTERFACE} meta nfproto ipv6 update @passed6 { ip6 hoplimit }
  }
  chain own { type filter hook output priority -400; meta mark != 77 drop; }
  chain zone_in { type filter hook prerouting priority -300; }
  chain zone_out { type filter hook output priority -300; }
}`;

/** The first TTL; those below are for the packets that errors quote. */
const FIRST_TTL = 2;
export const PACKETS_MAX = 250;

/** An interface with addresses in a namespace of its own, rules before it, and packets by the byte. */
export class PacketPlayer implements AsyncDisposable {
  readonly rules: NftRules;
  /** Texts that nft was given after the start. */
  readonly transactions: string[];
  readonly #prefix: string;
  readonly #namespace: string;
  readonly #python: ChildProcess;
  readonly #lines: AsyncIterator<string>;
  readonly #reader: Interface;
  #zone = 0;

  private constructor(
    prefix: string,
    namespace: string,
    rules: NftRules,
    transactions: string[],
    python: ChildProcess,
  ) {
    this.#prefix = prefix;
    this.#namespace = namespace;
    this.rules = rules;
    this.transactions = transactions;
    this.#python = python;
    this.#reader = createInterface({ input: python.stdout! });
    this.#lines = this.#reader[Symbol.asyncIterator]();
  }

  /** `peers`: the prefixes that packets come from. */
  static async start(addresses: readonly string[], peers: readonly Prefix[]): Promise<PacketPlayer> {
    const prefix = createNamespacePrefix();
    const namespace = `${prefix}nft`;
    await createNamespaces([namespace]);
    try {
      const inside = ["ip", "netns", "exec", namespace] as const;
      const script = new URL("./packets.py", import.meta.url).pathname;
      const python = spawn(inside[0], [...inside.slice(1), SYSTEM_PYTHON, script, INTERFACE], {
        stdio: ["pipe", "pipe", "inherit"],
      });
      const nft = nftProgram([...inside, "nft"]);
      const transactions: string[] = [];
      const rules = await NftRules.open(INTERFACE, {
        ...nft,
        run: (text, options) => {
          if (!options?.check) transactions.push(text);
          return nft.run(text, options);
        },
      });
      transactions.length = 0;
      rules.movePrefixes([], peers);
      const player = new PacketPlayer(prefix, namespace, rules, transactions, python);
      await player.#line();
      const lines = addresses.map(
        (address) => `address add ${address} dev ${INTERFACE}${address.includes(":") ? " nodad" : ""}`,
      );
      execFileSync("ip", ["-n", namespace, "-batch", "-"], {
        input: [...lines, `link set ${INTERFACE} up`, "link set lo up"].join("\n"),
      });
      player.nft(WATCH);
      // The packets have no checksums.
      player.exec("sysctl", "-q", "net.netfilter.nf_conntrack_checksum=0", "net.ipv4.conf.all.rp_filter=0");
      return player;
    } catch (error) {
      removeNamespaces(prefix);
      throw error;
    }
  }

  /** Whether somebody in the namespace listens to what happens to tables. */
  get isWatching(): boolean {
    return processesIn([this.#namespace]).some((pid) =>
      readFileSync(`/proc/${pid}/cmdline`, "latin1").includes("monitor"),
    );
  }

  exec(program: string, ...args: string[]): string {
    return execFileSync("ip", ["netns", "exec", this.#namespace, program, ...args], {
      encoding: "utf8",
      timeout: 20_000,
    });
  }

  nft(text: string): void {
    execFileSync("ip", ["netns", "exec", this.#namespace, "nft", "-f", "-"], { input: text, timeout: 20_000 });
  }

  /** Connection tracking forgets all flows: those to come are tracked in a zone of their own. */
  forgetTracking(): void {
    this.#zone++;
    this.nft(
      ["zone_in", "zone_out"]
        .map((chain) => `flush chain inet watch ${chain}\nadd rule inet watch ${chain} ct zone set ${this.#zone}\n`)
        .join(""),
    );
  }

  /** And the table forgets who began what. */
  forgetFlows(): void {
    this.forgetTracking();
    if (!this.exec("nft", "list", "tables").includes(`perch-${INTERFACE}`)) return;
    const sets = ["ours", "theirs", "known"].flatMap((name) => [`${name}4`, `${name}6`]);
    this.nft(sets.map((set) => `flush set inet perch-${INTERFACE} ${set}\n`).join(""));
  }

  /** Plays packets in order; for each, whether it came through. What goes out always does. */
  async play(packets: readonly Packet[]): Promise<boolean[]> {
    this.nft("flush set inet watch passed4\nflush set inet watch passed6\n");
    const lines = packets.map((packet, index) => {
      const v6 = isV6(parseIp(packet.local));
      return [
        packet.direction,
        v6 ? 6 : 4,
        Buffer.from(finish(encodePacket(packet), FIRST_TTL + index)).toString("hex"),
      ];
    });
    this.#python.stdin!.write(`${JSON.stringify(lines)}\n`);
    await this.#line();
    const passed = new Set(["passed4", "passed6"].flatMap((set) => this.#elements(set)));
    return packets.map(({ direction }, index) => direction === "out" || passed.has(FIRST_TTL + index));
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.rules.close();
    this.#reader.close();
    this.#python.kill("SIGKILL");
    removeNamespaces(this.#prefix);
  }

  #elements(set: string): number[] {
    const answer = JSON.parse(this.exec("nft", "-j", "list", "set", "inet", "watch", set)) as {
      nftables: { set?: { elem?: (number | { elem: { val: number } })[] } }[];
    };
    const elements = answer.nftables.find((item) => item.set)?.set?.elem ?? [];
    return elements.map((element) => (typeof element === "number" ? element : element.elem.val));
  }

  async #line(): Promise<void> {
    const { done } = await this.#lines.next();
    if (done) throw new Error("the player of packets ended");
  }
}

/** Gives a packet what the kernel looks at: a TTL, the length of a UDP datagram, and in IPv4 the sum of the header. */
function finish(packet: Uint8Array, ttl: number): Uint8Array {
  const view = new DataView(packet.buffer, packet.byteOffset);
  const isV6Packet = packet[0]! >> 4 === 6;
  const transport = isV6Packet ? 40 : 20;
  if (packet[isV6Packet ? 6 : 9] === 17) view.setUint16(transport + 4, packet.length - transport);
  packet[isV6Packet ? 7 : 8] = ttl;
  if (isV6Packet) return packet;
  view.setUint16(10, 0);
  let sum = 0;
  for (let at = 0; at < 20; at += 2) sum += view.getUint16(at);
  while (sum > 0xffff) sum = (sum & 0xffff) + (sum >>> 16);
  view.setUint16(10, ~sum & 0xffff);
  return packet;
}
