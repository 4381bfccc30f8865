import { hasSymbol, loadLibrary } from "#net/libc.ts";
import type { Aead } from "./aead.ts";
import type { Arena } from "./arena.ts";

const BLOCK_BYTES = 64;
const TAG_BYTES = 16;
/** Larger than any: 248 bytes on x86-64. */
const STATE_BYTES_MAX = 1024;

/** Addresses and lengths only, without results: see aead-evp.ts. */
interface Primitives {
  chacha(output: number, input: number, bytes: number, key: number, counter: number): void;
  polyInit(state: number, key: number): void;
  polyUpdate(state: number, input: number, bytes: number): void;
  polyFinal(state: number, tag: number): void;
}

/**
 * The AEAD's construction (RFC 8439 section 2.8) over OpenSSL's two primitives, whose assembly EVP calls too. EVP spends 0.4 us
 * of bookkeeping on each packet, which is as much as encrypting 1,280 bytes takes (docs/adr/0003).
 *
 * Unlike EVP it proves a packet before it decrypts it: of a forged one no plaintext ever exists.
 */
export class PrimitiveAead implements Aead {
  readonly name = "chacha20+poly1305";
  readonly #primitives: Primitives;
  readonly #arena: Arena;
  readonly #view: DataView;
  /** Offsets in the arena: 64 zeros; the first block of the key stream, which is the key of Poly1305. */
  readonly #zeros: number;
  readonly #block: number;
  /** ChaCha20's counter and nonce for block 0 and for those from block 1. */
  readonly #first: number;
  readonly #rest: number;
  readonly #state: number;
  readonly #tag: number;
  /** Zeros up to the next 16 bytes, then the lengths. */
  readonly #trailer: number;

  /** Undefined where the process does not have the primitives. */
  static open(arena: Arena): PrimitiveAead | undefined {
    const library = loadLibrary(null);
    const names = ["ChaCha20_ctr32", "Poly1305_ctx_size", "Poly1305_Init", "Poly1305_Update", "Poly1305_Final"];
    if (!names.every((name) => hasSymbol(library, name))) return undefined;
    const stateBytes = (library.func("Poly1305_ctx_size", "size_t", []) as () => number)();
    if (!(stateBytes > 0 && stateBytes <= STATE_BYTES_MAX)) return undefined;
    const bind = (symbol: string, parameters: number): never =>
      library.func(symbol, "void", new Array<string>(parameters).fill("size_t")) as never;
    return new PrimitiveAead(arena, stateBytes, {
      chacha: bind("ChaCha20_ctr32", 5),
      polyInit: bind("Poly1305_Init", 2),
      polyUpdate: bind("Poly1305_Update", 3),
      polyFinal: bind("Poly1305_Final", 2),
    });
  }

  private constructor(arena: Arena, stateBytes: number, primitives: Primitives) {
    this.#primitives = primitives;
    this.#arena = arena;
    this.#view = arena.view;
    this.#zeros = arena.take(BLOCK_BYTES);
    this.#block = arena.take(BLOCK_BYTES);
    this.#first = arena.take(16, 16);
    this.#rest = arena.take(16, 16);
    this.#state = arena.take(stateBytes);
    this.#tag = arena.take(TAG_BYTES);
    this.#trailer = arena.take(2 * TAG_BYTES);
    arena.view.setUint32(this.#rest, 1, true);
  }

  seal(
    key: number,
    counterLow: number,
    counterHigh: number,
    input: number,
    bytes: number,
    view: DataView,
    at: number,
    base: number,
  ): void {
    this.#setNonce(counterLow, counterHigh);
    const { base: arena } = this.#arena;
    const output = base + at;
    if (bytes > 0) this.#primitives.chacha(output, input, bytes, key, arena + this.#rest);
    // Where the tag will lie the lengths can stand before: one call instead of two.
    const inPlace = (bytes & 15) === 0;
    if (inPlace) writeLengths(view, at + bytes, bytes);
    this.#authenticate(key, output, bytes, inPlace);
    this.#primitives.polyFinal(arena + this.#state, output + bytes);
  }

  open(key: number, counterLow: number, counterHigh: number, at: number, bytes: number): boolean {
    this.#setNonce(counterLow, counterHigh);
    const view = this.#view;
    const { base } = this.#arena;
    const end = at + bytes;
    const t0 = view.getInt32(end);
    const t1 = view.getInt32(end + 4);
    const t2 = view.getInt32(end + 8);
    const t3 = view.getInt32(end + 12);
    const inPlace = (bytes & 15) === 0;
    if (inPlace) writeLengths(view, end, bytes);
    this.#authenticate(key, base + at, bytes, inPlace);
    const tag = this.#tag;
    this.#primitives.polyFinal(base + this.#state, base + tag);
    // All 16 bytes are compared, whatever they are: how long it takes tells nothing.
    const difference =
      (t0 ^ view.getInt32(tag)) |
      (t1 ^ view.getInt32(tag + 4)) |
      (t2 ^ view.getInt32(tag + 8)) |
      (t3 ^ view.getInt32(tag + 12));
    if (difference !== 0) return false;
    if (bytes > 0) this.#primitives.chacha(base + at, base + at, bytes, key, base + this.#rest);
    return true;
  }

  close(): void {
    this.#arena.bytes.fill(0, this.#block, this.#trailer + 2 * TAG_BYTES);
  }

  /** Runs Poly1305 over ciphertext at an address and what follows it; `inPlace`: the lengths lie behind it. */
  #authenticate(key: number, ciphertext: number, bytes: number, inPlace: boolean): void {
    const { chacha, polyInit, polyUpdate } = this.#primitives;
    const { base } = this.#arena;
    const state = base + this.#state;
    chacha(base + this.#block, base + this.#zeros, BLOCK_BYTES, key, base + this.#first);
    polyInit(state, base + this.#block);
    if (inPlace) {
      polyUpdate(state, ciphertext, bytes + TAG_BYTES);
      return;
    }
    polyUpdate(state, ciphertext, bytes);
    const padding = TAG_BYTES - (bytes & 15);
    this.#arena.bytes.fill(0, this.#trailer, this.#trailer + padding);
    writeLengths(this.#view, this.#trailer + padding, bytes);
    polyUpdate(state, base + this.#trailer, padding + TAG_BYTES);
  }

  #setNonce(low: number, high: number): void {
    const view = this.#view;
    view.setUint32(this.#first + 8, low, true);
    view.setUint32(this.#first + 12, high, true);
    view.setUint32(this.#rest + 8, low, true);
    view.setUint32(this.#rest + 12, high, true);
  }
}

/** Bytes of additional data (none) and of ciphertext, 64 bits each, little-endian. */
function writeLengths(view: DataView, at: number, bytes: number): void {
  view.setUint32(at, 0, true);
  view.setUint32(at + 4, 0, true);
  view.setUint32(at + 8, bytes, true);
  view.setUint32(at + 12, 0, true);
}
