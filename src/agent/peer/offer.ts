import { create, type MessageInitShape } from "@bufbuild/protobuf";
import { type IpAddress, ipFromBytes, ipToBytes } from "#base/ip.ts";
import { type Body, type Body_Type, type BodySchema, RosenpassConfigSchema } from "#gen/signal_pb.ts";
import { formatCredentials, parseCredentials } from "#signal/protocol/credentials.ts";
import type { LocalSession, RemoteSession } from "./peer-state.ts";

/** A session id has exactly this many bytes; other lengths count as absent (signal document, section 1.7). */
export const SESSION_ID_BYTES = 5;

/** What an OFFER or ANSWER says besides the credentials. */
export interface OfferFacts {
  readonly wireguardPort: number;
  readonly version: string;
  readonly relay: { readonly server: string; readonly address: IpAddress | undefined } | undefined;
  /** False: relay-only, sent as empty credentials without a session id. */
  readonly ice: boolean;
  /** Candidates known at this moment, for Perch agents; stock agents get CANDIDATE messages besides. */
  readonly candidates: readonly string[];
}

/** The body of an OFFER or ANSWER (signal document, section 2.2). */
export function createOfferBody(
  type: Body_Type.OFFER | Body_Type.ANSWER,
  session: LocalSession,
  facts: OfferFacts,
): MessageInitShape<typeof BodySchema> {
  return {
    type,
    payload: facts.ice ? formatCredentials({ ufrag: session.ufrag, pwd: session.pwd }) : formatCredentials(undefined),
    wgListenPort: facts.wireguardPort,
    netBirdVersion: facts.version,
    rosenpassConfig: create(RosenpassConfigSchema),
    ...(facts.relay ? { relayServerAddress: facts.relay.server } : {}),
    ...(facts.relay?.address ? { relayServerIP: ipToBytes(facts.relay.address) } : {}),
    ...(facts.ice ? { sessionId: session.id, perch: { candidates: [...facts.candidates] } } : {}),
  };
}

/** Reads an OFFER or ANSWER; undefined when its payload is not `ufrag:pwd`. */
export function parseOfferBody(body: Body): RemoteSession | undefined {
  const credentials = parseCredentials(body.payload);
  if (credentials === undefined) return undefined;
  const ip = body.relayServerIP;
  return {
    id: body.sessionId?.length === SESSION_ID_BYTES ? body.sessionId : undefined,
    credentials: credentials.ufrag && credentials.pwd ? credentials : undefined,
    relayServer: body.relayServerAddress || undefined,
    relayAddress: ip?.length === 4 || ip?.length === 16 ? ipFromBytes(ip) : undefined,
  };
}
