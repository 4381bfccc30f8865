import { create } from "@bufbuild/protobuf";
import { createRelayToken } from "#base/relay-token.ts";
import type { Clock, Millis } from "#base/time.ts";
import {
  HostConfig_Protocol,
  type NetbirdConfig,
  NetbirdConfigSchema,
  type RelayConfig,
  RelayConfigSchema,
} from "#gen/management_pb.ts";

export interface InfrastructureOptions {
  /** `host:port` of signal, and whether agents dial it with TLS. */
  readonly signal: { readonly uri: string; readonly tls: boolean };
  /** `rel://host:port` or `rels://host:port`; none: agents do not relay. */
  readonly relayUrls: readonly string[];
  /** `stun:host:port` */
  readonly stunUris: readonly string[];
  /** How long a relay token is good for. Default 12 h. */
  readonly relayTokenTtl?: Millis;
}

export const RELAY_TOKEN_TTL: Millis = 12 * 3_600_000;

/**
 * The NetbirdConfig messages of this server. A config without `relay` wipes an agent's relays, so every one has it when there is
 * a relay. Flow and metrics stay out: a flow without an interval would void the message. Sources: sections 3.4, 5.1 and 6.
 */
export class Infrastructure {
  readonly #clock: Clock;
  readonly #secret: string;
  readonly #options: InfrastructureOptions;

  constructor(clock: Clock, relaySecret: string, options: InfrastructureOptions) {
    this.#clock = clock;
    this.#secret = relaySecret;
    this.#options = options;
  }

  get relayTokenTtl(): Millis {
    return this.#options.relayTokenTtl ?? RELAY_TOKEN_TTL;
  }

  /** For the answer to Login: an agent takes signal from here and nowhere else. */
  forLogin(): NetbirdConfig {
    return create(NetbirdConfigSchema, { signal: this.#signal(), ...this.#relay() });
  }

  /** For the first message of a Sync stream: STUN comes before the first peers. */
  forSync(): NetbirdConfig {
    return create(NetbirdConfigSchema, {
      stuns: this.#options.stunUris.map((uri) => ({ uri, protocol: HostConfig_Protocol.UDP })),
      signal: this.#signal(),
      ...this.#relay(),
    });
  }

  /** Fresh relay credentials alone; undefined without relays. */
  forRefresh(): NetbirdConfig | undefined {
    const relay = this.#relay();
    return relay.relay && create(NetbirdConfigSchema, relay);
  }

  #signal(): { uri: string; protocol: HostConfig_Protocol } {
    const { uri, tls } = this.#options.signal;
    return { uri, protocol: tls ? HostConfig_Protocol.HTTPS : HostConfig_Protocol.HTTP };
  }

  #relay(): { relay?: RelayConfig } {
    const { relayUrls } = this.#options;
    if (relayUrls.length === 0) return {};
    const token = createRelayToken(this.#secret, (this.#clock.wall() + this.relayTokenTtl) / 1000);
    return {
      relay: create(RelayConfigSchema, {
        urls: [...relayUrls],
        tokenPayload: token.payload,
        tokenSignature: token.signatureBase64,
      }),
    };
  }
}
