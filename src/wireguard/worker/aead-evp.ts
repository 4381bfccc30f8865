import { type Address, hasSymbol, loadLibrary, NetError } from "#net/libc.ts";
import type { Aead } from "./aead.ts";
import type { Arena } from "./arena.ts";

const GET_TAG = 0x10;
const SET_TAG = 0x11;
const TAG_BYTES = 16;
/** LIBCRYPTO of OpenSSL 3, for a node that links it from the system and does not export its symbols. */
const SYSTEM_LIBRARY = "libcrypto.so.3";

/**
 * The calls of the packet path are declared without a result where nothing could be done about it (with a key set, they
 * do not fail): making a JavaScript number of each result took 7 % of the thread. Their pointers are declared as integers,
 * 0 for null: as pointers, koffi asks of each argument what it might be, which took a tenth of sealing a small packet.
 */
interface Evp {
  newContext(): bigint;
  freeContext(context: bigint): void;
  cipher(): bigint;
  encryptInit(context: bigint, cipher: Address, engine: null, key: Address, iv: Address): number;
  encryptUpdate(context: number, out: number, outBytes: number, input: number, bytes: number): void;
  encryptFinal(context: number, out: number, outBytes: number): void;
  control(context: number, what: number, bytes: number, tag: number): void;
  decryptInit(context: bigint, cipher: Address, engine: null, key: Address, iv: Address): number;
  /** The same two functions for setting key and nonce, declared without a result. */
  encryptSet(context: number, cipher: 0, engine: 0, key: number, iv: number): void;
  decryptSet(context: number, cipher: 0, engine: 0, key: number, iv: number): void;
  decryptUpdate(context: number, out: number, outBytes: number, input: number, bytes: number): void;
  decryptFinal(context: number, out: number, outBytes: number): number;
}

/**
 * ChaCha20-Poly1305 over raw addresses by OpenSSL's public interface, for a Node without the primitives of
 * aead-primitives.ts. One context per direction serves all sessions: setting the key with each packet costs 15 ns, a context
 * per session would have to be freed by hand.
 */
export class EvpAead implements Aead {
  readonly name = "evp";
  readonly #evp: Evp;
  readonly #contexts: readonly [bigint, bigint];
  /** Their addresses. */
  readonly #seal: number;
  readonly #open: number;
  readonly #view: DataView;
  readonly #base: number;
  readonly #iv: number;
  readonly #ivAddress: number;
  readonly #lengthAddress: number;

  /** Throws NetError `ffi-missing` where OpenSSL cannot be reached or does not have the cipher. */
  constructor(arena: Arena) {
    this.#evp = load();
    this.#view = arena.view;
    this.#base = arena.base;
    this.#iv = arena.take(16);
    this.#ivAddress = arena.base + this.#iv;
    this.#lengthAddress = arena.base + arena.take(16);
    const cipher = this.#evp.cipher();
    const [seal, open] = [this.#evp.newContext(), this.#evp.newContext()] as const;
    this.#contexts = [seal, open];
    this.#seal = Number(seal);
    this.#open = Number(open);
    const ready =
      cipher &&
      this.#evp.encryptInit(seal, cipher, null, null, null) > 0 &&
      this.#evp.decryptInit(open, cipher, null, null, null) > 0;
    if (!ready) throw new NetError("ffi-missing", "this OpenSSL has no ChaCha20-Poly1305");
  }

  seal(
    key: number,
    counterLow: number,
    counterHigh: number,
    input: number,
    bytes: number,
    _view: DataView,
    at: number,
    base: number,
  ): void {
    const evp = this.#evp;
    const output = base + at;
    this.#setNonce(counterLow, counterHigh);
    evp.encryptSet(this.#seal, 0, 0, key, this.#ivAddress);
    if (bytes > 0) evp.encryptUpdate(this.#seal, output, this.#lengthAddress, input, bytes);
    evp.encryptFinal(this.#seal, output + bytes, this.#lengthAddress);
    evp.control(this.#seal, GET_TAG, TAG_BYTES, output + bytes);
  }

  open(key: number, counterLow: number, counterHigh: number, at: number, bytes: number): boolean {
    const evp = this.#evp;
    const input = this.#base + at;
    this.#setNonce(counterLow, counterHigh);
    evp.decryptSet(this.#open, 0, 0, key, this.#ivAddress);
    if (bytes > 0) evp.decryptUpdate(this.#open, input, this.#lengthAddress, input, bytes);
    evp.control(this.#open, SET_TAG, TAG_BYTES, input + bytes);
    return evp.decryptFinal(this.#open, input + bytes, this.#lengthAddress) > 0;
  }

  close(): void {
    for (const context of this.#contexts) this.#evp.freeContext(context);
  }

  /** Nonce: four zero bytes, then the counter as 64 bits, little-endian. */
  #setNonce(low: number, high: number): void {
    this.#view.setUint32(this.#iv + 4, low, true);
    this.#view.setUint32(this.#iv + 8, high, true);
  }
}

function load(): Evp {
  let library = loadLibrary(null);
  if (!hasSymbol(library, "EVP_chacha20_poly1305")) library = loadLibrary(SYSTEM_LIBRARY);
  const init = ["void *", "void *", "void *", "void *", "void *"];
  const set = ["size_t", "size_t", "size_t", "size_t", "size_t"];
  const update = ["size_t", "size_t", "size_t", "size_t", "int"];
  const final = ["size_t", "size_t", "size_t"];
  // The table above says what each is; koffi knows it only from the strings.
  const bind = (symbol: string, result: string, parameters: string[]): never =>
    library.func(symbol, result, parameters) as never;
  return {
    newContext: bind("EVP_CIPHER_CTX_new", "void *", []),
    freeContext: bind("EVP_CIPHER_CTX_free", "void", ["void *"]),
    cipher: bind("EVP_chacha20_poly1305", "void *", []),
    encryptInit: bind("EVP_EncryptInit_ex", "int", init),
    encryptSet: bind("EVP_EncryptInit_ex", "void", set),
    encryptUpdate: bind("EVP_EncryptUpdate", "void", update),
    encryptFinal: bind("EVP_EncryptFinal_ex", "void", final),
    control: bind("EVP_CIPHER_CTX_ctrl", "void", ["size_t", "int", "int", "size_t"]),
    decryptInit: bind("EVP_DecryptInit_ex", "int", init),
    decryptSet: bind("EVP_DecryptInit_ex", "void", set),
    decryptUpdate: bind("EVP_DecryptUpdate", "void", update),
    decryptFinal: bind("EVP_DecryptFinal_ex", "int", final),
  };
}
