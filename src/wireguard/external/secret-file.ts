import { randomBytes } from "node:crypto";
import { closeSync, constants, openSync, unlinkSync, writeSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";

/** In memory, where they are; the last one may be on a disk. */
const FOLDERS = ["/run", "/dev/shm", tmpdir()];

/**
 * A file without a name that holds a secret for a program which wants to read it from a file: whoever has the descriptor can, and it is
 * gone with the descriptor, also when we are killed. It is nameless before the secret is in it. Wipes `bytes`.
 * Throws what the file system throws.
 */
export function openSecretFile(bytes: Uint8Array): number {
  const file = openNameless();
  try {
    for (let at = 0; at < bytes.length; ) at += writeSync(file, bytes, at);
    return file;
  } catch (error) {
    closeSync(file);
    throw error;
  } finally {
    bytes.fill(0);
  }
}

function openNameless(): number {
  const name = `perch-${randomBytes(12).toString("hex")}`;
  const { O_RDWR, O_CREAT, O_EXCL } = constants;
  for (const [index, folder] of FOLDERS.entries()) {
    const path = join(folder, name);
    try {
      const file = openSync(path, O_RDWR | O_CREAT | O_EXCL, 0o600);
      unlinkSync(path);
      return file;
    } catch (error) {
      if (index === FOLDERS.length - 1) throw error;
    }
  }
  throw new Error("no folder for a file");
}
