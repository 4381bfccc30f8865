import type { CandidateReport, DirectSearch, PairReport, UdpReport } from "#gen/daemon_pb.ts";
import { type DoctorView, daemonFinding } from "./doctor-view.ts";
import { type Json, peerDocument } from "./status-json.ts";
import { agentStateName } from "./status-view.ts";

/** What the doctor found, for programs: `healthy` is the exit code, sentences are those that people read. */
export function doctorDocument(view: DoctorView): { readonly [name: string]: Json } {
  const { healthy, head, findings, udp, pair } = view.report;
  const base = {
    healthy,
    agent: { state: agentStateName(head!.state).replace(" ", "-"), fqdn: head!.fqdn, version: head!.agentVersion },
    udp: udp ? udpDocument(udp) : null,
  };
  if (pair) return { ...base, ...pairDocument(pair) };
  const all = [daemonFinding(view), ...findings];
  return { ...base, findings: all.map(({ area, level, text, remedy }) => ({ area, level, text, remedy })) };
}

function udpDocument({ udp, mapping, mapping6, servers, seen, addresses }: UdpReport): Json {
  return {
    state: udp,
    mapping,
    mapping6,
    servers: servers.map(({ server, answers, mapped, rttMs }) => ({ server, answers, mapped, rttMs: rttMs ?? null })),
    seen: seen.map(({ destination, mapped, by }) => ({ destination, mapped, by })),
    addresses,
  };
}

function pairDocument(pair: PairReport): { readonly [name: string]: Json } {
  const { verdict, cause, remedy, certainty, here, there, remoteAgent, delivered, relayRttMs, initiations } = pair;
  return {
    peer: peerDocument(pair.peer!),
    verdict,
    cause,
    remedy,
    certainty,
    here: { udp: here?.udp ?? "unknown", mapping: here?.mapping ?? "unknown" },
    there: { agent: remoteAgent, udp: there?.udp ?? "unknown", mapping: there?.mapping ?? "unknown" },
    deliveredBySignal: delivered ?? null,
    relayRttMs: relayRttMs ?? null,
    unansweredHandshakes: initiations,
    search: pair.search ? searchDocument(pair.search) : null,
  };
}

function searchDocument({ at, outcome, candidates, pairs }: DirectSearch): Json {
  return {
    at: new Date(at).toISOString(),
    outcome,
    candidates: candidates.map(candidateDocument),
    pairs: pairs.map(({ local, remote, state, rttMs, sent, answered, received, selected }) => ({
      local: local ? candidateDocument(local) : null,
      remote: remote ? candidateDocument(remote) : null,
      state,
      rttMs: rttMs ?? null,
      sent,
      answered,
      received,
      selected,
    })),
  };
}

function candidateDocument({ kind, endpoint }: CandidateReport): Json {
  return { kind, endpoint };
}
