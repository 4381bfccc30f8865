import type { Millis } from "#base/time.ts";
import type { MappingBehaviour } from "#ice/mapping.ts";
import type { PeerState } from "../control.ts";
import type { DirectAttempt } from "./direct-attempts.ts";

/** What a pair of agents looks like from this side; everything the diagnosis may know. */
export interface PairFacts {
  /** The peer as a sentence names it. */
  readonly name: string;
  readonly state: PeerState;
  /** Why it is in this state, in words. */
  readonly reason: string;
  /** Its login has expired. */
  readonly expired: boolean;
  /** May sleep; a peer that may not and is idle waits for its turn. */
  readonly lazy: boolean;
  /** Since its wake; 0 while idle. */
  readonly awakeFor: Millis;
  readonly path: "none" | "relay" | "direct";
  /** Our WireGuard UDP port. */
  readonly port: number;
  /** False: this agent was told to stay on the relay. */
  readonly directAllowed: boolean;
  readonly here: SideFacts;
  readonly there: RemoteFacts;
  /** STUN servers of the network. */
  readonly stunServers: number;
  readonly signal: {
    readonly connected: boolean;
    /** The server found the peer connected at the last message; undefined: it does not say. */
    readonly delivered: boolean | undefined;
  };
  readonly relay: {
    /** Relays of the network. */
    readonly configured: number;
    /** Packets for this peer can leave over a relay now. */
    readonly usable: boolean;
    readonly server: string;
  };
  readonly checks: {
    /** `none`: no search for a direct way is remembered. */
    readonly outcome: DirectAttempt["outcome"] | "none";
    readonly pairs: number;
    readonly answered: number;
    readonly received: number;
  };
  readonly handshake: {
    readonly initiations: number;
    /** Wall clock ms of the last completed one, 0 = never. */
    readonly last: number;
    /** Messages that this device could not open since it came up, of any peer. */
    readonly unopened: number;
    /** Initiations refused as copies or as older than the last, of any peer. */
    readonly replayed: number;
  };
}

export interface SideFacts {
  /** `silent`: STUN servers were asked and none answered. */
  readonly udp: "unknown" | "works" | "silent";
  readonly mapping: MappingBehaviour;
}

export interface RemoteFacts extends SideFacts {
  /** `unheard`: no OFFER or ANSWER of it ever came. Only a Perch agent tells about its NAT. */
  readonly agent: "unheard" | "stock" | "perch";
  /** It offers direct ways. */
  readonly ice: boolean;
  /** It is connected to a relay. */
  readonly relay: boolean;
  /** The addresses it named: none beyond private networks means that no STUN server told it more. */
  readonly named: "none" | "private" | "public";
}

export const VERDICTS = [
  "direct",
  "asleep",
  "waiting",
  "connecting",
  "searching",
  "relay-forced",
  "relay-forced-there",
  "login-expired",
  "signal-down",
  "peer-offline",
  "peer-silent",
  "handshake-unanswered",
  "no-path",
  "no-stun",
  "no-stun-answer",
  "udp-blocked-here",
  "udp-silent-here",
  "udp-blocked-there",
  "no-candidates",
  "symmetric-both",
  "symmetric-here",
  "symmetric-there",
  "mapping-unknown",
  "blocked-between",
  "one-way",
  "not-nominated",
] as const;
export type Verdict = (typeof VERDICTS)[number];

/** Verdicts under which nothing has to be mended. */
const WELL: ReadonlySet<Verdict> = new Set(["direct", "asleep", "waiting", "connecting", "searching", "relay-forced"]);

export interface Diagnosis {
  readonly verdict: Verdict;
  /** Nothing has to be mended. */
  readonly healthy: boolean;
  /** One sentence. */
  readonly cause: string;
  /** One sentence; empty where there is nothing to do. */
  readonly remedy: string;
  /** `likely`: follows from what failed, not from what was seen. `one-sided`: the peer tells nothing of its own side. */
  readonly certainty: "certain" | "likely" | "one-sided";
}

/** Searches that are over without a way; after the others a new one is under way. */
const ENDED: ReadonlySet<PairFacts["checks"]["outcome"]> = new Set(["failed", "none"]);
/** The first candidates of a peer may take this long. */
const SEARCH_PATIENCE: Millis = 10_000;
/** A wake may take this long before anybody asks why; longer while messages come back and only the proof is missing. */
const WAKE_PATIENCE: Millis = 3_000;
const PROOF_PATIENCE: Millis = 10_000;

/** Finds the cause of the state a pair is in, and what would help. Pure. */
export function diagnosePair(facts: PairFacts): Diagnosis {
  const { name, state } = facts;
  if (facts.expired) {
    return conclude("login-expired", `The login of ${name} has expired.`, `Log in again on ${name}: perch up.`);
  }
  switch (state) {
    case "idle":
      return facts.lazy
        ? conclude(
            "asleep",
            `${name} is asleep and nothing is wrong: the first packet to it, or from it, connects.`,
            `Wake it and ask again for a look at its path: perch peers wake ${name}.`,
          )
        : conclude("waiting", `${name} waits for its turn to connect (${facts.reason}).`, "");
    case "connected":
      return facts.path === "direct"
        ? conclude("direct", "The two agents talk directly, and a WireGuard handshake has proved it.", "")
        : whyRelayed(facts);
    case "connecting":
      return whyUnconnected(facts);
    default:
      return state satisfies never;
  }
}

/** Why there is no proof yet. */
function whyUnconnected(facts: PairFacts): Diagnosis {
  const { name, signal, there, relay, checks, handshake } = facts;
  const connecting = conclude(
    "connecting",
    `${name} was woken a moment ago and is being connected.`,
    "Ask again in a few seconds.",
  );
  if (facts.awakeFor < WAKE_PATIENCE) return connecting;
  const heard = there.agent !== "unheard";
  if (!signal.connected && checks.answered === 0) {
    return conclude(
      "signal-down",
      `This agent has no connection to the signal server, so ${name} cannot be told that it is wanted.`,
      "Look at the server and the way to it: perch doctor.",
    );
  }
  if (signal.delivered === false) {
    return conclude(
      "peer-offline",
      `${name} is offline: the signal server has no connection to its agent.`,
      `Start ${name}, or look at its agent there: perch status.`,
    );
  }
  if (!heard && checks.received === 0) {
    return signal.delivered === true
      ? conclude(
          "peer-silent",
          `${name} is connected to the signal server but does not answer our offers.`,
          `See whether its network map has this machine, and look at its agent's log.`,
          "likely",
        )
      : conclude(
          "peer-offline",
          `${name} does not answer our offers, and this signal server does not tell whether it is connected.`,
          `Start ${name}, or look at its agent there.`,
          "one-sided",
        );
  }
  const works = checks.answered > 0 || (relay.usable && (there.relay || !heard));
  if (!works) {
    const direct = whyRelayed(facts);
    const why =
      relay.configured === 0
        ? "The network names no relay"
        : relay.usable
          ? `${name} is connected to no relay`
          : "The relay cannot be reached";
    const both = direct.verdict === "searching" ? "a direct way is still being looked for" : lower(stop(direct.cause));
    return conclude(
      "no-path",
      `${why}, and ${both}.`,
      join(relay.usable ? `See why: perch doctor on ${name}.` : "Bring the relay back: perch doctor.", direct.remedy),
      direct.certainty,
    );
  }
  if (facts.awakeFor < PROOF_PATIENCE) return connecting;
  const way =
    checks.answered > 0 ? "The direct way works, its checks are answered" : "Messages and the relay get through";
  if (handshake.unopened > 0) {
    return conclude(
      "handshake-unanswered",
      `${way}, but the WireGuard handshake is answered with what this agent cannot open: most likely the pre-shared keys differ.`,
      `Give both agents the same --preshared-key, or none.`,
      "likely",
    );
  }
  if (handshake.replayed > 0) {
    return conclude(
      "handshake-unanswered",
      `${way}, but handshakes are refused as older than ones seen before: most likely a clock was set back.`,
      `Set the clocks of both machines right, then restart the agent whose clock was wrong.`,
      "likely",
    );
  }
  return conclude(
    "handshake-unanswered",
    `${way}, but ${count(handshake.initiations, "WireGuard handshake")} got no answer: the pre-shared keys differ, ${name} has a new key, or a clock is wrong.`,
    `Compare --preshared-key and the clocks of both machines, and see whether ${name} was registered anew.`,
    "likely",
  );
}

/** Why packets take the relay: the first reason that holds, from what was decided to what was seen to what follows. */
function whyRelayed(facts: PairFacts): Diagnosis {
  const { name, here, there, checks } = facts;
  if (!facts.directAllowed) {
    return conclude(
      "relay-forced",
      "This agent was told to use the relay alone.",
      "For direct ways connect without that setting: perch up --force-relay=false.",
    );
  }
  if (there.agent !== "unheard" && !there.ice) {
    return conclude(
      "relay-forced-there",
      `${name} offers no direct way: its agent was told to use the relay alone.`,
      `Change that setting on ${name}.`,
    );
  }
  const early = checks.pairs === 0 && facts.awakeFor < SEARCH_PATIENCE;
  if (early || !ENDED.has(checks.outcome)) {
    return conclude("searching", "A direct way is being looked for right now.", "Ask again in ten seconds.");
  }
  if (here.udp === "silent") return whySilentHere(facts);
  if (there.udp === "silent") {
    return conclude(
      "udp-blocked-there",
      `The network of ${name} lets no UDP through: its STUN servers do not answer it, while UDP works here.`,
      `Allow outgoing UDP in the network of ${name}; until then the relay carries everything.`,
      here.udp === "works" ? "certain" : "likely",
    );
  }
  if (facts.stunServers === 0 && here.mapping === "unknown") {
    return conclude(
      "no-stun",
      "The network names no STUN server, so neither side knows the address that its NAT gives it.",
      "Let the management server name one; perch server brings its own.",
    );
  }
  if (there.udp === "unknown" && there.named === "private") {
    return conclude(
      "udp-blocked-there",
      `${name} named only addresses of its own local network: no STUN server answers it, most likely because UDP does not get through there.`,
      `Allow outgoing UDP in the network of ${name}; until then the relay carries everything.`,
      there.agent === "perch" ? "likely" : "one-sided",
    );
  }
  if (checks.pairs === 0) {
    if (there.agent === "unheard") {
      return conclude(
        "peer-silent",
        `${name} talks through the relay but does not answer our offers, so no direct address of it is known.`,
        `Look at the connection of ${name} to the signal server: perch doctor, there.`,
      );
    }
    return conclude(
      "no-candidates",
      `${name} named no address at which it could be reached directly.`,
      `Look at the agent of ${name}: perch doctor, there.`,
    );
  }
  if (checks.answered > 0) {
    return conclude(
      "not-nominated",
      `Checks between the two are answered, but ${name}, whose choice it is, took none of the ways.`,
      `Look at the log of ${name}; a new search follows by itself.`,
      "likely",
    );
  }
  if (checks.received > 0) {
    return conclude(
      "one-way",
      `Packets of ${name} get here, but ours do not get there, or no answer comes back.`,
      `Let the firewall of ${name} and that of this machine pass UDP in both directions.`,
    );
  }
  return whyUnreachable(facts);
}

function whySilentHere({ name, there }: PairFacts): Diagnosis {
  if (there.udp === "works") {
    return conclude(
      "udp-blocked-here",
      `This network lets no UDP through: the STUN servers answer ${name}, but not this machine.`,
      "Allow outgoing UDP in this network; until then the relay carries everything.",
    );
  }
  if (there.udp === "silent") {
    return conclude(
      "no-stun-answer",
      "No STUN server answers either side: they are down, or both networks let no UDP through.",
      "See whether the server's UDP port (3478) is open and its process runs.",
    );
  }
  return conclude(
    "udp-silent-here",
    "No STUN server answers this machine: this network lets no UDP through, or the servers are down.",
    "Allow outgoing UDP in this network, and see whether the server's UDP port (3478) is open.",
    there.agent === "perch" ? "likely" : "one-sided",
  );
}

/** UDP works, addresses are known, and no check got through in either direction: what the NATs are decides. */
function whyUnreachable(facts: PairFacts): Diagnosis {
  const { name, here, there } = facts;
  const symmetric = "uses another port for every destination";
  const open = `Forward UDP port ${facts.port} to this machine in the router here, or the WireGuard port of ${name} in the router there: either is enough.`;
  const oneSided = there.mapping === "unknown" && there.agent !== "perch";
  if (here.mapping === "endpoint-dependent") {
    if (there.mapping === "endpoint-dependent") {
      return conclude(
        "symmetric-both",
        `Both NATs are symmetric: each ${symmetric}, so neither side can know where to send.`,
        open,
      );
    }
    const filter =
      there.mapping === "none"
        ? `the firewall of ${name} lets in only answers to what it sent`
        : `the NAT of ${name} lets in only the exact address and port that it sent to`;
    return conclude(
      "symmetric-here",
      `The NAT here is symmetric, it ${symmetric}, and ${filter}: neither side can know where to send.`,
      open,
      there.mapping === "unknown" ? (oneSided ? "one-sided" : "likely") : "certain",
    );
  }
  if (there.mapping === "endpoint-dependent") {
    return conclude(
      "symmetric-there",
      `The NAT of ${name} is symmetric, it ${symmetric}, and the NAT or firewall here lets in only the exact address and port that was sent to.`,
      open,
      here.mapping === "unknown" ? "likely" : "certain",
    );
  }
  if (here.mapping !== "unknown" && there.mapping !== "unknown") {
    return conclude(
      "blocked-between",
      "Neither NAT is in the way, and yet no packet gets from one side to the other: a firewall stops UDP between the two.",
      "Let the firewalls of both sides pass UDP to and from the WireGuard port.",
      "likely",
    );
  }
  if (here.mapping !== "unknown") {
    return conclude(
      "symmetric-there",
      `Our NAT is not in the way, so most likely that of ${name} ${symmetric} (symmetric), or a firewall there stops UDP.`,
      open,
      oneSided ? "one-sided" : "likely",
    );
  }
  if (there.mapping !== "unknown") {
    return conclude(
      "symmetric-here",
      `The NAT of ${name} is not in the way, so most likely ours ${symmetric} (symmetric), or a firewall here stops UDP.`,
      open,
      "likely",
    );
  }
  return conclude(
    "mapping-unknown",
    `UDP works, but no packet gets from one side to the other: one of the two NATs ${symmetric} (symmetric), and the other lets in only exact answers.`,
    open,
    oneSided ? "one-sided" : "likely",
  );
}

function conclude(
  verdict: Verdict,
  cause: string,
  remedy: string,
  certainty: Diagnosis["certainty"] = "certain",
): Diagnosis {
  return { verdict, healthy: WELL.has(verdict), cause, remedy, certainty };
}

function join(first: string, second: string): string {
  return second === "" ? first : `${stop(first)}; ${lower(second)}`;
}

function stop(sentence: string): string {
  return sentence.replace(/\.$/, "");
}

function lower(sentence: string): string {
  return /^[A-Z][a-z]/.test(sentence) && !/^(WireGuard|STUN|UDP|NAT)/.test(sentence)
    ? sentence[0]!.toLowerCase() + sentence.slice(1)
    : sentence;
}

function count(number: number, what: string): string {
  return number === 1 ? `1 ${what}` : `${number} ${what}s`;
}
