import crypto from "node:crypto";
import { syncBuiltinESMExports } from "node:module";

/**
 * Makes Math.random and what the agents draw from node:crypto (session indices, credentials, ids) follow from `random` until
 * disposed. Session indices decide which of two crossing handshakes stays, so a life is the same again only with them.
 * Handshake keys stay random: nothing depends on their values.
 */
export class SeededRandomness implements Disposable {
  readonly #random = Math.random;
  readonly #functions = {
    randomBytes: crypto.randomBytes,
    randomFillSync: crypto.randomFillSync,
    randomInt: crypto.randomInt,
  };

  constructor(random: () => number) {
    const fill = <T extends NodeJS.ArrayBufferView>(view: T): T => {
      const bytes = new Uint8Array(view.buffer, view.byteOffset, view.byteLength);
      for (let at = 0; at < bytes.length; at++) bytes[at] = Math.floor(random() * 256);
      return view;
    };
    Math.random = random;
    install({
      randomBytes: ((size: number) => fill(Buffer.alloc(size))) as typeof crypto.randomBytes,
      randomFillSync: fill as typeof crypto.randomFillSync,
      randomInt: ((max: number) => Math.floor(random() * max)) as typeof crypto.randomInt,
    });
  }

  [Symbol.dispose](): void {
    Math.random = this.#random;
    install(this.#functions);
  }
}

function install(functions: Pick<typeof crypto, "randomBytes" | "randomFillSync" | "randomInt">): void {
  Object.assign(crypto, functions);
  syncBuiltinESMExports();
}
