import { createRequire } from "node:module";
import { Arena } from "#wireguard/worker/arena.ts";
import { type Argument, RULES } from "./memory-rules.ts";

/*
 * Checks every foreign call of this thread before it is made: each address with its length must lie in memory that the
 * program asked an address for, and inside the arena in one region of those that were taken. It stands between koffi and the
 * program, so the program is what users run, a new system call is not forgotten (it has no rule and is refused), and without
 * a guard nothing costs anything.
 *
 *   program ── libc, OpenSSL tables ──▶ guard ──▶ koffi
 *                                        │ kernel?  a test may answer system calls itself
 *
 * Must be installed before the first call to `libc()` in the thread.
 */

/** What a test answers instead of the kernel: a result, or undefined to let the real call happen. */
export type Kernel = (name: string, args: readonly Argument[]) => number | undefined;

/** The call was not made. */
export class GuardError extends Error {}

interface Region {
  readonly address: number;
  readonly bytes: number;
  readonly buffer: WeakRef<ArrayBufferLike>;
  readonly byteOffset: number;
  /** Of an arena: the regions taken from it. */
  cuts: { address: number; bytes: number }[] | undefined;
}

type ForeignFunction = (...args: Argument[]) => unknown;
interface Koffi {
  load(path: string | null): { func(name: string, result: string, parameters: string[]): ForeignFunction };
  errno(): number;
  address(value: ArrayBufferView): bigint;
}

export class MemoryGuard {
  /** Everything that was refused, in order; a refused call throws too, which the program might swallow. */
  readonly violations: string[] = [];
  /** Told of each as it happens. */
  violated: (why: string) => void = () => {};
  /** Calls made, by name. */
  readonly calls = new Map<string, number>();
  /** Answers system calls in the kernel's place. */
  kernel: Kernel | undefined;
  /** What `errno` says after `kernel` answered with -1. */
  errno = 0;
  /** What OpenSSL said that a Poly1305 state takes. */
  poly1305Bytes = Number.NaN;
  #kernelAnswered = false;
  #regions: Region[] = [];
  readonly #contexts = new Set<number>();

  /** Replaces what `require("koffi")` gives in this thread, and notes what arenas hand out. */
  static install(): MemoryGuard {
    const guard = new MemoryGuard();
    const koffi = createRequire(import.meta.url)("koffi") as Koffi;
    const { load, errno, address } = koffi;
    koffi.load = (path) => {
      const library = load(path);
      return { func: (name, result, parameters) => guard.#guarded(name, library.func(name, result, parameters)) };
    };
    koffi.errno = () => (guard.#kernelAnswered ? guard.errno : errno());
    koffi.address = (view) => {
      const found = address(view);
      guard.#register(Number(found), view);
      return found;
    };
    const { take } = Arena.prototype;
    Arena.prototype.take = function (size, align) {
      const offset = take.call(this, size, align);
      guard.#cut(this.base, offset, size);
      return offset;
    };
    return guard;
  }

  /** Pieces of memory that the program may use. */
  get regions(): number {
    return this.#regions.length;
  }

  /** The memory at an address that the program may use. Throws GuardError. */
  at(address: Argument, bytes: number, what = "memory"): Uint8Array {
    if (ArrayBuffer.isView(address)) {
      if (address.byteLength < bytes) this.refuse(`${what}: ${bytes} bytes of an array of ${address.byteLength}`);
      return new Uint8Array(address.buffer, address.byteOffset, bytes);
    }
    const start = Number(address);
    if (!Number.isSafeInteger(start) || start <= 0) this.refuse(`${what}: ${String(address)} is no address`);
    if (!Number.isSafeInteger(bytes) || bytes < 0) this.refuse(`${what}: ${bytes} is no length`);
    for (const region of this.#regions) {
      if (!isWithin(region, start, bytes)) continue;
      const buffer = region.buffer.deref();
      if (!buffer) continue;
      if (region.cuts && !region.cuts.some((cut) => isWithin(cut, start, bytes)))
        this.refuse(`${what}: ${bytes} bytes at arena offset ${start - region.address} are in no region taken from it`);
      return new Uint8Array(buffer, region.byteOffset + start - region.address, bytes);
    }
    return this.refuse(`${what}: ${bytes} bytes at ${start.toString(16)} are nobody's`);
  }

  /** A 64-bit pointer or size stored at an address. */
  word(address: Argument, what: string): number {
    const bytes = this.at(address, 8, what);
    return Number(new DataView(bytes.buffer, bytes.byteOffset, 8).getBigUint64(0, true));
  }

  /** `context` must be an OpenSSL context that was made and not freed. */
  context(context: Argument): void {
    if (!this.#contexts.has(Number(context))) this.refuse(`${String(context)} is no live context`);
  }

  refuse(why: string): never {
    this.violations.push(why);
    this.violated(why);
    throw new GuardError(why);
  }

  #guarded(name: string, call: ForeignFunction): ForeignFunction {
    const rule = RULES[name] ?? this.refuse(`there is no rule for ${name}: add one to memory-rules.ts`);
    return (...args) => {
      this.calls.set(name, (this.calls.get(name) ?? 0) + 1);
      rule(this, args);
      const answer = this.kernel?.(name, args);
      this.#kernelAnswered = answer !== undefined;
      if (answer !== undefined) return answer;
      const result = call(...args);
      if (name === "Poly1305_ctx_size") this.poly1305Bytes = Number(result);
      if (name === "EVP_CIPHER_CTX_new") this.#contexts.add(Number(result));
      if (name === "EVP_CIPHER_CTX_free") this.#contexts.delete(Number(args[0]));
      return result;
    };
  }

  #register(address: number, view: ArrayBufferView): void {
    const bytes = view.byteLength;
    // Memory that was freed may be somebody else's now.
    this.#regions = this.#regions.filter(
      (region) => region.buffer.deref() !== undefined && !(region.address === address && region.bytes === bytes),
    );
    const { buffer, byteOffset } = view;
    this.#regions.push({ address, bytes, buffer: new WeakRef(buffer), byteOffset, cuts: undefined });
  }

  #cut(base: number, offset: number, bytes: number): void {
    const arena = this.#regions.find((region) => region.address === base);
    if (!arena) throw new GuardError("an arena was made before the memory guard");
    arena.cuts ??= [];
    arena.cuts.push({ address: base + offset, bytes });
  }
}

function isWithin(outer: { address: number; bytes: number }, address: number, bytes: number): boolean {
  return address >= outer.address && address + bytes <= outer.address + outer.bytes;
}
