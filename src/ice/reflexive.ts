import type { Endpoint } from "#base/ip.ts";
import { type Candidate, candidateFoundation, candidatePriority } from "./candidate.ts";

/** A remote candidate learned from where a check came from (RFC 8445, 7.3.1.3); `priority` is the check's. */
export function remoteReflexive(from: Endpoint, priority: number, cid: string | undefined): Candidate {
  return { ...reflexive(from, priority), ...(cid && { cid }) };
}

/** A local candidate learned from the mapped address of an answer (RFC 8445, 7.2.5.3.1). */
export function localReflexive(mapped: Endpoint, base: Candidate | undefined): Candidate {
  return { ...reflexive(mapped, candidatePriority("prflx")), ...(base && { related: base.endpoint }) };
}

function reflexive(endpoint: Endpoint, priority: number): Candidate {
  const foundation = candidateFoundation("prflx", endpoint.address);
  return { foundation, component: 1, transport: "udp", priority, endpoint, type: "prflx" };
}
