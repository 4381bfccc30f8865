import { constants, Http2ServerRequest, type Http2Session, type ServerHttp2Stream } from "node:http2";
import type { Clock, Millis, Timer } from "#base/time.ts";

export interface RequestBodyLimits {
  /** From the headers of a call to the end of its body; less when its `grpc-timeout` is less. */
  readonly bodyMs: Millis;
  /** What the unfinished bodies of one connection may take; the call that goes beyond is reset. */
  readonly maxBodyBytesPerConnection: number;
  /** The same for all connections; the calls of those that hold the most are reset. */
  readonly maxBodyBytes: number;
}

/** What a chunk costs besides its bytes: the object that holds it. */
const CHUNK_OVERHEAD_BYTES = 256;
/** Shorter chunks are copied: as they come they keep the read buffer of 64 KiB alive that they lie in. */
const COPY_BELOW_BYTES = 4096;
/** When there is no room, so much of all the room is made. */
const FREED_SHARE = 1 / 8;

interface Body {
  readonly stream: ServerHttp2Stream;
  readonly owner: Owner;
  bytes: number;
  readonly deadline: Timer;
}

/** A connection with unfinished bodies. */
interface Owner {
  readonly session: Http2Session;
  readonly bodies: Set<Body>;
  bytes: number;
}

/**
 * Bounds the HTTP/2 request bodies that have begun and not ended. Whoever collects such a body keeps it in memory before
 * anybody has proved who he is: without bounds one connection could make us hold 256 calls of 4 MiB for ever.
 *
 * `requestClass` goes to the HTTP/2 server and sees each body on its way to the handler.
 */
export class RequestBodies {
  readonly #clock: Clock;
  readonly #limits: RequestBodyLimits;
  readonly #owners = new Map<Http2Session, Owner>();
  readonly #open = new WeakMap<ServerHttp2Stream, Body>();
  #bytes = 0;
  #timeouts = 0;
  #refused = 0;

  constructor(deps: { readonly clock: Clock }, limits: RequestBodyLimits) {
    this.#clock = deps.clock;
    this.#limits = limits;
  }

  /** Held by unfinished bodies now. */
  get bytes(): number {
    return this.#bytes;
  }

  /** Calls reset since the start because their body did not end in time. */
  get timeouts(): number {
    return this.#timeouts;
  }

  /** Calls reset since the start because there was no room for their body. */
  get refused(): number {
    return this.#refused;
  }

  get requestClass(): typeof Http2ServerRequest {
    const note = (stream: ServerHttp2Stream, chunk: Buffer | null): void => this.#note(stream, chunk);
    return class extends Http2ServerRequest {
      override push(chunk: Buffer | null, encoding?: BufferEncoding): boolean {
        const isShort = chunk !== null && chunk.length < COPY_BELOW_BYTES;
        note(this.stream, chunk);
        return super.push(isShort ? Buffer.from(chunk) : chunk, encoding);
      }
    };
  }

  /** A call begins. Not for those whose body may last for ever and is not collected. */
  begin(stream: ServerHttp2Stream, grpcTimeout: string | undefined): void {
    const { session } = stream;
    if (stream.endAfterHeaders || !session) return;
    const limit = Math.min(this.#limits.bodyMs, parseGrpcTimeout(grpcTimeout) ?? Number.POSITIVE_INFINITY);
    const deadline = this.#clock.after(limit, () => {
      this.#timeouts++;
      this.#reset(body);
    });
    const owner = this.#owners.get(session) ?? { session, bodies: new Set(), bytes: 0 };
    const body: Body = { stream, owner, bytes: 0, deadline };
    this.#owners.set(session, owner);
    owner.bodies.add(body);
    this.#open.set(stream, body);
    stream.once("close", () => this.#end(body));
  }

  #note(stream: ServerHttp2Stream, chunk: Buffer | null): void {
    const body = this.#open.get(stream);
    if (!body) return;
    if (chunk === null) return this.#end(body);
    const bytes = chunk.length + CHUNK_OVERHEAD_BYTES;
    body.bytes += bytes;
    body.owner.bytes += bytes;
    this.#bytes += bytes;
    if (body.owner.bytes > this.#limits.maxBodyBytesPerConnection) this.#refuse(body);
    else if (this.#bytes > this.#limits.maxBodyBytes) this.#makeRoom();
  }

  /** Those who hold the most pay for it: calls with little to say go on while somebody tries to fill our memory. */
  #makeRoom(): void {
    const goal = this.#limits.maxBodyBytes * (1 - FREED_SHARE);
    const owners = [...this.#owners.values()].sort((a, b) => b.bytes - a.bytes);
    for (const { bodies } of owners) {
      if (this.#bytes <= goal) return;
      for (const body of [...bodies]) this.#refuse(body);
    }
  }

  #refuse(body: Body): void {
    this.#refused++;
    this.#reset(body);
  }

  #reset(body: Body): void {
    this.#end(body);
    // A gRPC client reads it as RESOURCE_EXHAUSTED.
    body.stream.close(constants.NGHTTP2_ENHANCE_YOUR_CALM);
  }

  #end(body: Body): void {
    const { stream, owner, deadline } = body;
    if (!this.#open.delete(stream)) return;
    deadline.cancel();
    owner.bodies.delete(body);
    owner.bytes -= body.bytes;
    this.#bytes -= body.bytes;
    if (owner.bodies.size === 0) this.#owners.delete(owner.session);
  }
}

const UNIT_MS: Readonly<Record<string, Millis>> = { H: 3_600_000, M: 60_000, S: 1_000, m: 1, u: 1e-3, n: 1e-6 };

/** `grpc-timeout`: up to eight digits and a unit (gRPC over HTTP/2, "Timeout"); undefined when it is absent or malformed. */
function parseGrpcTimeout(text: string | undefined): Millis | undefined {
  const match = /^(\d{1,8})([HMSmun])$/.exec(text ?? "");
  if (!match) return undefined;
  return Number(match[1]) * (UNIT_MS[match[2] ?? ""] ?? 0);
}
