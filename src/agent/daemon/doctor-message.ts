import { create, type MessageInitShape } from "@bufbuild/protobuf";
import { formatEndpoint } from "#base/ip.ts";
import {
  type CandidateReportSchema,
  type DiagnoseResponse,
  DiagnoseResponseSchema,
  type DirectSearchSchema,
  type PairReportSchema,
  type StatusHead,
  type UdpReportSchema,
} from "#gen/daemon_pb.ts";
import type { Candidate } from "#ice/candidate.ts";
import type { AgentExamination, PairExamination } from "../examination.ts";
import type { DirectAttempt } from "../peer/direct-attempts.ts";
import type { NatView } from "../peer/direct-paths.ts";
import { encodePeer } from "./status-message.ts";

/** The check of this agent as the API shows it. */
export function encodeAgentExamination({ findings, nat }: AgentExamination, head: StatusHead): DiagnoseResponse {
  return create(DiagnoseResponseSchema, {
    healthy: findings.every(({ level }) => level !== "problem"),
    head,
    findings: [...findings],
    ...(nat && { udp: encodeNat(nat) }),
  });
}

/** The look at one pair as the API shows it. */
export function encodePairExamination(examination: PairExamination, head: StatusHead): DiagnoseResponse {
  return create(DiagnoseResponseSchema, {
    healthy: examination.diagnosis.healthy,
    head,
    udp: encodeNat(examination.nat),
    pair: encodePair(examination),
  });
}

function encodePair(examination: PairExamination): MessageInitShape<typeof PairReportSchema> {
  const { peer, facts, diagnosis, attempt, relayRtt } = examination;
  const { verdict, cause, remedy, certainty } = diagnosis;
  const { delivered } = facts.signal;
  return {
    peer: encodePeer(peer, false),
    verdict,
    cause,
    remedy,
    certainty,
    here: { udp: facts.here.udp, mapping: facts.here.mapping },
    there: { udp: facts.there.udp, mapping: facts.there.mapping },
    remoteAgent: facts.there.agent,
    ...(delivered === undefined ? {} : { delivered }),
    ...(relayRtt === undefined ? {} : { relayRttMs: relayRtt }),
    initiations: facts.handshake.initiations,
    ...(attempt && { search: encodeAttempt(attempt) }),
  };
}

function encodeAttempt({ at, outcome, candidates, pairs }: DirectAttempt): MessageInitShape<typeof DirectSearchSchema> {
  return {
    at,
    outcome,
    candidates: candidates.map(encodeCandidate),
    pairs: pairs.map(({ local, remote, state, rtt, sent, answered, received, selected }) => ({
      ...(local && { local: encodeCandidate(local) }),
      remote: encodeCandidate(remote),
      state,
      ...(rtt === undefined ? {} : { rttMs: rtt }),
      sent,
      answered,
      received,
      selected,
    })),
  };
}

function encodeCandidate({ type, endpoint }: Candidate): MessageInitShape<typeof CandidateReportSchema> {
  return { kind: type, endpoint: formatEndpoint(endpoint) };
}

function encodeNat(nat: NatView): MessageInitShape<typeof UdpReportSchema> {
  return {
    udp: nat.udp,
    mapping: nat.mapping,
    mapping6: nat.mapping6,
    servers: nat.servers.map(({ server, mapped, rtt, silentAt }) => ({
      server: formatEndpoint(server),
      answers: mapped !== undefined && silentAt === undefined,
      mapped: mapped ? formatEndpoint(mapped) : "",
      ...(rtt === undefined ? {} : { rttMs: rtt }),
    })),
    seen: nat.observations.map(({ destination, mapped, by }) => ({
      destination: formatEndpoint(destination),
      mapped: formatEndpoint(mapped),
      by,
    })),
    addresses: nat.addresses.map(formatEndpoint),
  };
}
