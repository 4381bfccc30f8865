/**
 * Masks or unmasks `bytes[from, end)` in place with the four bytes of a key (RFC 6455, 5.3): in words of the memory's own
 * alignment, with the key turned to where they begin.
 */
export function applyMask(
  bytes: Uint8Array,
  from: number,
  end: number,
  key: readonly [number, number, number, number],
): void {
  const aligned = from + (-(bytes.byteOffset + from) & 3);
  const wordsFrom = aligned <= end ? aligned : from;
  for (let i = from; i < wordsFrom; i++) bytes[i]! ^= key[(i - from) & 3]!;
  const wordCount = aligned <= end ? (end - wordsFrom) >> 2 : 0;
  const words = new Int32Array(bytes.buffer, wordCount > 0 ? bytes.byteOffset + wordsFrom : 0, wordCount);
  const turn = (wordsFrom - from) & 3;
  const word = key[turn]! | (key[(turn + 1) & 3]! << 8) | (key[(turn + 2) & 3]! << 16) | (key[(turn + 3) & 3]! << 24);
  for (let i = 0; i < wordCount; i++) words[i]! ^= word;
  for (let i = wordsFrom + 4 * wordCount; i < end; i++) bytes[i]! ^= key[(i - from) & 3]!;
}
