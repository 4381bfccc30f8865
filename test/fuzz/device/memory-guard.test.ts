import assert from "node:assert/strict";
import { test } from "node:test";
import { type Libc, libc, loadLibrary } from "#net/libc.ts";
import type { Aead } from "#wireguard/worker/aead.ts";
import { EvpAead } from "#wireguard/worker/aead-evp.ts";
import { PrimitiveAead } from "#wireguard/worker/aead-primitives.ts";
import { Arena } from "#wireguard/worker/arena.ts";
import { GuardError, MemoryGuard } from "./memory-guard.ts";

const guard = MemoryGuard.install();
const arena = new Arena(1 << 16);
/** Not a multiple of the alignment: a hole follows. */
const BYTES = 200;
const place = arena.take(BYTES);
const beyond = arena.take(64);
const address = arena.base + place;

/** No system call reaches the kernel: what the guard lets through is counted. */
let passed = 0;
guard.kernel = (name) => {
  if (/^(EVP|ChaCha|Poly)/.test(name)) return undefined;
  passed++;
  return 0;
};

function refuses(call: (c: Libc) => unknown): void {
  const before = { passed, violations: guard.violations.length };
  assert.throws(() => call(libc()), GuardError);
  assert.equal(passed, before.passed, "the call was made");
  assert.equal(guard.violations.length, before.violations + 1);
}

function lets(call: (c: Libc) => unknown): void {
  const before = passed;
  call(libc());
  assert.equal(passed, before + 1);
}

test("a buffer passes inside its region, to its last byte, and not one byte further on either side", () => {
  for (const [from, bytes] of [
    [0, BYTES],
    [BYTES - 1, 1],
    [BYTES, 0],
  ] as const) {
    lets((c) => c.read(0, address + from, bytes));
    lets((c) => c.readAt(0, address + from, bytes));
    lets((c) => c.write(0, address + from, bytes));
  }
  for (const [from, bytes] of [
    [0, BYTES + 1],
    [-1, 2],
    [BYTES, 1],
    [0, -1],
    [0, Number.NaN],
    [0, 0.5],
  ] as const) {
    refuses((c) => c.read(0, address + from, bytes));
    refuses((c) => c.write(0, address + from, bytes));
  }
  refuses((c) => c.write(0, 0, 1));
  refuses((c) => c.write(0, 4096, 1));
  refuses((c) => c.write(0, arena.base + (1 << 16) - 1, 1));
});

test("a typed array must be as long as the call says", () => {
  lets((c) => c.bind(0, new Uint8Array(16), 16));
  refuses((c) => c.bind(0, new Uint8Array(15), 16));
  refuses((c) => c.getsockopt(0, 0, 0, new Uint8Array(3), Uint32Array.of(4)));
});

test("memory that the program let go of is nobody's", async () => {
  const { setFlagsFromString } = await import("node:v8");
  setFlagsFromString("--expose-gc");
  const collect = (await import("node:vm")).runInNewContext("gc") as () => void;
  const gone = ((): number => libc().addressOf(new Uint8Array(new ArrayBuffer(1 << 20))))();
  for (let i = 0; i < 3; i++) {
    collect();
    await new Promise((done) => setImmediate(done));
  }
  refuses((c) => c.write(0, gone, 1));
});

test("iovecs, names and control data are followed, in each message", () => {
  const COUNT = 2;
  const headers = arena.take(COUNT * 64);
  const iovecs = arena.take(COUNT * 16);
  const reset = (): void => {
    for (let i = 0; i < COUNT; i++) {
      const header = headers + 64 * i;
      arena.setPointer(header, beyond);
      arena.setSize(header + 8, 28);
      arena.setPointer(header + 16, iovecs + 16 * i);
      arena.setSize(header + 24, 1);
      arena.setPointer(header + 32, beyond + 32);
      arena.setSize(header + 40, 24);
      arena.setPointer(iovecs + 16 * i, place);
      arena.setSize(iovecs + 16 * i + 8, BYTES);
    }
  };
  const calls: ((c: Libc) => unknown)[] = [
    (c) => c.sendmmsg(0, arena.base + headers, COUNT, 0),
    (c) => c.recvmmsg(0, arena.base + headers, COUNT, 0, null),
  ];
  const damages: (() => void)[] = [
    () => arena.setSize(headers + 64 + 8, 65),
    () => arena.setPointer(headers + 64, 1 << 16),
    () => arena.setPointer(headers + 64 + 16, 1 << 16),
    () => arena.setSize(headers + 64 + 24, 2),
    () => arena.setSize(headers + 64 + 24, 0),
    () => arena.setSize(headers + 64 + 40, 33),
    () => arena.setPointer(iovecs + 16, place + 1),
    () => arena.setSize(iovecs + 16 + 8, BYTES + 1),
  ];
  for (const call of calls) {
    reset();
    lets(call);
    for (const damage of damages) {
      reset();
      damage();
      refuses(call);
    }
  }
  reset();
  lets((c) => c.writev(0, arena.base + iovecs, COUNT));
  lets((c) => c.sendmsg(0, arena.base + headers, 0));
  arena.setSize(iovecs + 16 + 8, BYTES + 1);
  refuses((c) => c.writev(0, arena.base + iovecs, COUNT));
  refuses((c) => c.sendmmsg(0, arena.base + headers, COUNT + 1, 0));
});

for (const [name, open] of [
  ["EVP", (): Aead => new EvpAead(arena)],
  ["the primitives", (): Aead | undefined => PrimitiveAead.open(arena)],
] as const) {
  test(`OpenSSL by ${name} gets keys, text and tags inside`, (t) => {
    const aead = open();
    if (!aead) return t.skip("this OpenSSL does not export them");
    const key = new Uint8Array(new ArrayBuffer(32));
    const keyAddress = libc().addressOf(key);
    const seal = (keyAt: number, from: number, bytes: number): void =>
      aead.seal(keyAt, 0, 0, arena.base + from, bytes, arena.view, from, arena.base);
    const fails = (call: () => unknown): void => void assert.throws(call, GuardError);
    seal(keyAddress, place, BYTES - 16);
    assert.equal(aead.open(keyAddress, 0, 0, place, BYTES - 16), true);
    for (const bytes of [BYTES - 15, BYTES - 8, BYTES, BYTES + 1]) fails(() => seal(keyAddress, place, bytes));
    for (const bytes of [BYTES + 1, BYTES + 8]) fails(() => aead.open(keyAddress, 0, 0, place, bytes));
    fails(() => seal(keyAddress + 1, place, 16));
    fails(() => seal(keyAddress, place - 1, 16));
    aead.close();
    if (aead instanceof EvpAead) fails(() => seal(keyAddress, place, 16));
  });
}

test("a function without a rule is refused when it is declared", () => {
  assert.throws(() => loadLibrary(null).func("getpid", "int", []), GuardError);
  assert.match(guard.violations.at(-1)!, /getpid/);
});
