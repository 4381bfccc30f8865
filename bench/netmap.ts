import { create, fromBinary } from "@bufbuild/protobuf";
import { PrivateKey } from "#base/keys.ts";
import { openBox } from "#base/nacl-box.ts";
import { systemClock } from "#base/time.ts";
import { type PerchHeldMap, PerchHeldMapSchema, SyncResponseSchema } from "#gen/management_pb.ts";
import { sealBytes } from "#management/protocol/envelope.ts";
import { AccountState } from "#management/server/account-state.ts";
import { MapEncoder } from "#management/server/map-encoder.ts";
import type { Account, Peer } from "#management/server/model.ts";
import { type Bench, type BenchResult, quantile } from "./bench.ts";
import { createPeers } from "./big-network.ts";
import { createLoneAgent, LONE_NETWORK } from "./lone-agent.ts";

const RECEIVERS = 100;

/**
 * What a network map costs on both sides, in one process: the server's part to encode and to seal, the agent's main thread to
 * open, to decode and to apply (real engine, connections and device; the data worker only counts). First the whole map, then
 * one changed peer, then the same towards 100 receivers; and beside it the map in the form that every other server sends.
 */
export const bench: Bench = async ({ quick, say }) => {
  const results: BenchResult[] = [];
  for (const count of quick ? [1_000] : [10_000, 50_000]) {
    say(`${count} peers`);
    results.push(...measure(count, quick ? 3 : 9));
  }
  return results;
};

function measure(count: number, rounds: number): BenchResult[] {
  const account = createAccount(count);
  const state = new AccountState(account, "perch.internal");
  const encoder = new MapEncoder(state);
  const [receiver] = account.peers as [Peer];
  const agent = createLoneAgent(systemClock);
  const wire = new Wire();
  const of = (what: string) => `${count} peers, ${what}`;
  const results: BenchResult[] = [];
  const add = (name: string, unit: string, samples: readonly number[], share = 0.5): void =>
    void results.push({ name: of(name), unit, perch: quantile(samples, share), others: {}, samples: samples.length });

  // The whole map.
  const parts = encodeParts(encoder, receiver, undefined);
  const applied = parts.messages.map(({ bytes }) => wire.apply(bytes, (update) => agent.engine.update(update)));
  const sum = (samples: readonly number[]): number => samples.reduce((total, sample) => total + sample, 0);
  add("whole map: bytes", "MB", [sum(parts.messages.map(({ bytes }) => bytes.length)) / 1e6]);
  add("whole map: server's time", "ms", [
    sum(parts.messages.map(({ ms }) => ms)) + sum(applied.map(({ seal }) => seal)),
  ]);
  add(
    "whole map: longest part on the server",
    "ms",
    parts.messages.map(({ ms }, i) => ms + applied[i]!.seal),
    1,
  );
  add("whole map: agent's time", "ms", [sum(applied.map(({ total }) => total))]);
  add(
    "whole map: longest part on the agent",
    "ms",
    applied.map(({ total }) => total),
    1,
  );

  // One changed peer.
  let { held } = parts;
  const changes: ReturnType<Wire["apply"]>[] = [];
  const served: number[] = [];
  let bytes = 0;
  const versions = ["0.76.1", "0.76.2"];
  const change = (round: number): void => {
    const before = account.peers[1 + round]!;
    const meta = { ...before.meta, netbirdVersion: versions[round % 2]! };
    state.put({ ...before, meta }, state.serial);
  };
  for (let round = 0; round < rounds; round++) {
    change(round);
    const delta = encodeParts(encoder, receiver, held);
    held = delta.held;
    bytes = delta.messages[0]!.bytes.length;
    changes.push(wire.apply(delta.messages[0]!.bytes, (update) => agent.engine.update(update)));
    served.push(delta.messages[0]!.ms + changes.at(-1)!.seal);
  }
  add("one changed peer: bytes", "B", [bytes]);
  add("one changed peer: server's time", "ms", served);
  add(
    "one changed peer: agent's time",
    "ms",
    changes.map(({ total }) => total),
  );
  add(
    "one changed peer: of it applied",
    "ms",
    changes.map(({ apply }) => apply),
  );

  // One change, told to many.
  const others = account.peers.slice(100, 100 + RECEIVERS);
  change(rounds);
  const startedAt = performance.now();
  for (const other of others) wire.seal(encodeParts(encoder, other, held).messages[0]!.bytes);
  add(`one changed peer: server's time for ${RECEIVERS} agents`, "ms", [performance.now() - startedAt]);
  agent.close();

  // As other servers send it.
  const classic = createLoneAgent(systemClock);
  const encode: number[] = [];
  const whole: ReturnType<Wire["apply"]>[] = [];
  let size = 0;
  for (let round = 0; round < Math.min(rounds, 4); round++) {
    if (round > 0) change(rounds + round);
    const at = performance.now();
    const message = encoder.encode(receiver);
    encode.push(performance.now() - at);
    size = message.length;
    whole.push(wire.apply(message, (update) => classic.engine.update(update)));
  }
  classic.close();
  add("classic map: bytes", "MB", [size / 1e6]);
  add("classic map, one changed peer: server's time", "ms", encode.slice(1));
  add(
    "classic map, one changed peer: agent's time",
    "ms",
    whole.slice(1).map(({ total }) => total),
  );
  add(
    "classic map, one changed peer: of it decoded",
    "ms",
    whole.slice(1).map(({ decode }) => decode),
  );
  add(
    "classic map, one changed peer: of it applied",
    "ms",
    whole.slice(1).map(({ apply }) => apply),
  );
  return results;
}

/** Seals and opens as the two ends do, and keeps the time of each step. */
class Wire {
  readonly #server = PrivateKey.generate();
  readonly #agent = PrivateKey.generate();

  seal(bytes: Uint8Array): ReturnType<typeof sealBytes> {
    return sealBytes(bytes, this.#agent.publicKey, this.#server);
  }

  apply(bytes: Uint8Array, apply: (update: ReturnType<typeof decode>) => void) {
    const t0 = performance.now();
    const { body } = this.seal(bytes);
    const t1 = performance.now();
    const plaintext = openBox(body, this.#server.publicKey, this.#agent);
    const t2 = performance.now();
    const update = decode(plaintext);
    const t3 = performance.now();
    apply(update);
    const t4 = performance.now();
    return { seal: t1 - t0, open: t2 - t1, decode: t3 - t2, apply: t4 - t3, total: t4 - t1 };
  }
}

function decode(plaintext: Uint8Array) {
  return fromBinary(SyncResponseSchema, plaintext);
}

function encodeParts(encoder: MapEncoder, receiver: Peer, held: PerchHeldMap | undefined) {
  const messages: { readonly bytes: Uint8Array; readonly ms: number }[] = [];
  const parts = encoder.encodeParts(() => receiver, held ?? create(PerchHeldMapSchema));
  for (;;) {
    const startedAt = performance.now();
    const { done, value } = parts.next();
    if (done) return { messages, held: value };
    messages.push({ bytes: value, ms: performance.now() - startedAt });
  }
}

/** Everybody may talk to everybody, as in a new network. */
function createAccount(count: number): Account {
  const rule = { id: "0123456789abcdef", bidirectional: true, action: "accept", protocol: "all", ports: [] } as const;
  const all = { id: "all", name: "All", isAll: true };
  return {
    id: "account",
    domain: "",
    ...LONE_NETWORK,
    lazy: true,
    serial: 1,
    groups: [all],
    rules: [{ ...rule, sources: [all.id], destinations: [all.id] }],
    peers: createPeers(LONE_NETWORK, count),
  };
}
