import { readFileSync } from "node:fs";

/** Texts that a string could hold of a secret: base64 of both alphabets, hex, and its bytes taken for characters. */
export function textsOf(secret: Uint8Array): string[] {
  const bytes = Buffer.from(secret);
  return [
    // Without what the next bytes would change at the end.
    bytes.toString("base64").slice(0, 42),
    bytes.toString("base64url").slice(0, 42),
    bytes.toString("hex"),
    bytes.toString("hex").toUpperCase(),
    bytes.toString("latin1"),
    bytes.toString("utf8"),
  ];
}

/** All strings of a heap snapshot, one a line. */
export function stringsOf(heapSnapshot: string): string {
  return (JSON.parse(readFileSync(heapSnapshot, "utf8")) as { strings: string[] }).strings.join("\n");
}

export function shows(text: string, secret: Uint8Array): boolean {
  return textsOf(secret).some((form) => text.includes(form));
}
