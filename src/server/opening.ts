/** What a TCP client speaks, told by its first bytes. `more`: the bytes so far fit more than one. */
export type Opening = "tls" | "h2" | "http1" | "more";

/** First byte of a TLS record of type handshake (RFC 8446, section 5.1). */
const TLS_HANDSHAKE = 0x16;

/** First line of the HTTP/2 connection preface (RFC 9113, section 3.4); no HTTP/1.1 request starts with it. */
const H2_PREFACE = Buffer.from("PRI * HTTP/2.0");

/** Longest opening that is undecided, so the most that is ever held back. */
export const OPENING_MAX_BYTES = H2_PREFACE.length;

/** Anything that is neither TLS nor HTTP/2 goes to the HTTP/1.1 parser, which answers 400 to garbage. */
export function decideOpening(bytes: Uint8Array): Opening {
  if (bytes.length === 0) return "more";
  if (bytes[0] === TLS_HANDSHAKE) return "tls";
  const compared = Math.min(bytes.length, H2_PREFACE.length);
  for (let i = 0; i < compared; i++) if (bytes[i] !== H2_PREFACE[i]) return "http1";
  return compared === H2_PREFACE.length ? "h2" : "more";
}
