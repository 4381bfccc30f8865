/*
 * The internet checksum (RFC 1071) over arena views. Sums are taken over little-endian 16-bit words: one's complement sums
 * do not care about the byte order as long as the result is stored the way the words were read, so results are stored
 * little-endian and only constants (protocol, length) are swapped before they are added.
 */

/** Adds `length` bytes at `offset`, as words counted from `offset`, to a sum that is not folded yet. */
export function addBytes(view: DataView, offset: number, length: number, sum: number): number {
  // Two 16-bit halves in 32-bit integers: 64 KiB cannot overflow them, and the loop needs no floating point.
  let low = 0;
  let high = 0;
  let at = offset;
  const end = offset + (length & ~15);
  while (at < end) {
    const a = view.getUint32(at, true);
    const b = view.getUint32(at + 4, true);
    const c = view.getUint32(at + 8, true);
    const d = view.getUint32(at + 12, true);
    low = (low + (a & 0xffff) + (b & 0xffff) + (c & 0xffff) + (d & 0xffff)) | 0;
    high = (high + (a >>> 16) + (b >>> 16) + (c >>> 16) + (d >>> 16)) | 0;
    at += 16;
  }
  const evenEnd = offset + (length & ~1);
  while (at < evenEnd) {
    low = (low + view.getUint16(at, true)) | 0;
    at += 2;
  }
  if ((length & 1) !== 0) low = (low + view.getUint8(at)) | 0;
  return sum + low + high;
}

/** Folds a sum into 16 bits, not complemented. */
export function fold(sum: number): number {
  let folded = (sum % 0x10000) + Math.floor(sum / 0x10000);
  folded = (folded & 0xffff) + (folded >>> 16);
  return (folded & 0xffff) + (folded >>> 16);
}

/** The checksum to store, little-endian. */
export function finish(sum: number): number {
  return ~fold(sum) & 0xffff;
}

/** A 16-bit constant as its bytes appear on the wire, for adding to a sum. */
function swap16(value: number): number {
  return ((value & 0xff) << 8) | ((value >>> 8) & 0xff);
}

/**
 * Pseudo-header sum (RFC 793, RFC 768, RFC 8200 section 8.1) of the IP packet at `ip`: addresses, protocol, and
 * `length` bytes of transport header and payload.
 */
export function pseudoHeader(view: DataView, ip: number, isV6: boolean, protocol: number, length: number): number {
  const sum = isV6 ? addBytes(view, ip + 8, 32, 0) : addBytes(view, ip + 12, 8, 0);
  return sum + swap16(protocol) + swap16(length);
}
