import assert from "node:assert/strict";
import { mkdtempSync, readFileSync, rmSync, statSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { test } from "node:test";
import { PrivateKey } from "#base/keys.ts";
import { IDENTITY_FILE, loadIdentity } from "./identity.ts";

function directory(): { path: string; file: string } & Disposable {
  const path = mkdtempSync(join(tmpdir(), "perch-identity-"));
  return {
    path,
    file: join(path, IDENTITY_FILE),
    [Symbol.dispose]: () => rmSync(path, { recursive: true }),
  };
}

test("the key is made once, kept as `wg genkey` writes it, for its owner alone, and loaded again", () => {
  using state = directory();
  const made = loadIdentity(state.path);
  assert.equal(readFileSync(state.file, "latin1"), `${made.toBase64()}\n`);
  assert.equal(statSync(state.file).mode & 0o777, 0o600);
  assert.equal(loadIdentity(state.path).toBase64(), made.toBase64());
});

test("space around the key does not matter", () => {
  using state = directory();
  const key = PrivateKey.generate().toBase64();
  for (const text of [key, `${key}\n`, `\t ${key}\r\n\n`]) {
    writeFileSync(state.file, text);
    assert.equal(loadIdentity(state.path).toBase64(), key);
  }
});

test("a damaged file is named, stays as it is, and its content is in no message", () => {
  using state = directory();
  const secret = PrivateKey.generate().toBase64();
  for (const text of ["", "\n", secret.slice(1), `${secret}${secret}`, secret.replace(/.$/, "é")]) {
    writeFileSync(state.file, text);
    assert.throws(
      () => loadIdentity(state.path),
      (error: Error & { code?: string }) => {
        assert.equal(error.code, "state-dir");
        assert.match(error.message, /private\.key: private key must be 44 characters/);
        for (let cause: unknown = error; cause instanceof Error; cause = cause.cause)
          assert.ok(!`${cause.message}${cause.stack}`.includes(secret.slice(1, 20)));
        return true;
      },
    );
    assert.equal(readFileSync(state.file, "utf8"), text);
  }
});

test("no key that was made or loaded lies in the memory that small buffers share", () => {
  using state = directory();
  const pool = (): Buffer => Buffer.from(Buffer.from("x").buffer);
  for (const key of [loadIdentity(state.path), loadIdentity(state.path)]) {
    assert.equal(pool().indexOf(key.encode()), -1);
    assert.equal(pool().indexOf(key.bytes()), -1);
  }
});
