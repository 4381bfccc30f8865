import type { MemoryGuard } from "./memory-guard.ts";

/** An argument of a foreign call as Perch makes it (net/libc.ts: `Address`); strings are paths. */
export type Argument = number | bigint | string | ArrayBufferView | null;

/** Refuses (throws) what may not be called with these arguments. */
type Rule = (guard: MemoryGuard, args: readonly Argument[]) => void;

const IOVEC_BYTES = 16;
const MSGHDR_BYTES = 56;
const MMSGHDR_BYTES = 64;
const POLLFD_BYTES = 8;
const LENGTH_BYTES = 4;
const KEY_BYTES = 32;
const NONCE_BYTES = 12;
/** ChaCha20's 32-bit block counter and the nonce. */
const COUNTER_BYTES = 16;
const TAG_BYTES = 16;
const IOV_MAX = 1024;

/** The one request whose argument is no pointer; all others that Perch makes take a `struct ifreq`. */
const TUNSETOFFLOAD = 0x400454d0;
const IFREQ_BYTES = 40;

const nothing: Rule = () => {};

/** `read(fd, buffer, bytes)` and the like. */
const buffer: Rule = (guard, [, at, bytes]) => void guard.at(at!, Number(bytes), "buffer");

const messages: Rule = (guard, [, at, count]) => {
  guard.at(at!, Number(count) * MMSGHDR_BYTES, "messages");
  if (Number(count) > IOV_MAX) guard.refuse(`${Number(count)} messages are more than the kernel takes`);
  for (let i = 0; i < Number(count); i++) message(guard, Number(at) + i * MMSGHDR_BYTES);
};

const one: Rule = (guard, [, at]) => {
  guard.at(at!, MSGHDR_BYTES, "message");
  if (!ArrayBuffer.isView(at)) return message(guard, Number(at));
  const header = new DataView(at.buffer, at.byteOffset, MSGHDR_BYTES);
  const word = (offset: number): number => Number(header.getBigUint64(offset, true));
  parts(guard, word(0), header.getUint32(8, true), word(16), word(24), word(32), word(40));
};

/** msghdr: name 0/8, name bytes 8/4, iov 16/8, iov count 24/8, control 32/8, control bytes 40/8. */
function message(guard: MemoryGuard, at: number): void {
  const nameBytes = guard.at(at + 8, LENGTH_BYTES, "name length");
  parts(
    guard,
    guard.word(at, "name pointer"),
    new DataView(nameBytes.buffer, nameBytes.byteOffset).getUint32(0, true),
    guard.word(at + 16, "iovec pointer"),
    guard.word(at + 24, "iovec count"),
    guard.word(at + 32, "control pointer"),
    guard.word(at + 40, "control length"),
  );
}

function parts(
  guard: MemoryGuard,
  name: number,
  nameBytes: number,
  iovecs: number,
  count: number,
  control: number,
  controlBytes: number,
): void {
  if (name !== 0 || nameBytes !== 0) guard.at(name, nameBytes, "name");
  if (control !== 0 || controlBytes !== 0) guard.at(control, controlBytes, "control");
  vector(guard, iovecs, count);
}

function vector(guard: MemoryGuard, at: Argument, count: number): void {
  if (!(count >= 1 && count <= IOV_MAX)) guard.refuse(`${count} iovecs are not 1 to ${IOV_MAX}`);
  guard.at(at, count * IOVEC_BYTES, "iovecs");
  for (let i = 0; i < count; i++) {
    const iovec = Number(at) + i * IOVEC_BYTES;
    guard.at(guard.word(iovec, "iovec base"), guard.word(iovec + 8, "iovec length"), "iovec");
  }
}

/** EVP_*Init_ex(context, cipher, engine, key, iv): key and nonce may be absent, 0. */
const cipherInit: Rule = (guard, [context, , , key, iv]) => {
  guard.context(context!);
  if (isGiven(key!)) guard.at(key!, KEY_BYTES, "key");
  if (isGiven(iv!)) guard.at(iv!, NONCE_BYTES, "nonce");
};

/** EVP_*Update(context, out, outBytes, in, bytes). */
const cipherUpdate: Rule = (guard, [context, out, outBytes, input, bytes]) => {
  guard.context(context!);
  guard.at(outBytes!, LENGTH_BYTES, "length of the output");
  guard.at(input!, Number(bytes), "input");
  guard.at(out!, Number(bytes), "output");
};

/** EVP_*Final_ex(context, out, outBytes): a stream cipher writes nothing more. */
const cipherFinal: Rule = (guard, [context, out, outBytes]) => {
  guard.context(context!);
  guard.at(out!, 0, "end of the output");
  guard.at(outBytes!, LENGTH_BYTES, "length of the output");
};

/** EVP_CIPHER_CTX_ctrl(context, what, bytes, pointer). */
const cipherControl: Rule = (guard, [context, , bytes, at]) => {
  guard.context(context!);
  guard.at(at!, Number(bytes), "tag");
};

/** Each foreign function that Perch declares, by its C name. */
export const RULES: Readonly<Record<string, Rule>> = {
  open: nothing,
  close: nothing,
  socket: nothing,
  eventfd: nothing,
  ioctl: (guard, [, request, argument]) => {
    if (Number(request) !== TUNSETOFFLOAD) guard.at(argument!, IFREQ_BYTES, "ifreq");
  },
  read: buffer,
  write: buffer,
  writev: (guard, [, at, count]) => vector(guard, at!, Number(count)),
  poll: (guard, [at, count]) => void guard.at(at!, Number(count) * POLLFD_BYTES, "pollfds"),
  socketpair: (guard, [, , , pair]) => void guard.at(pair!, 8, "descriptors"),
  connect: (guard, [, at, bytes]) => void guard.at(at!, Number(bytes), "address"),
  bind: (guard, [, at, bytes]) => void guard.at(at!, Number(bytes), "address"),
  getsockname: (guard, [, at, bytes]) => sized(guard, at!, bytes!, "address"),
  setsockopt: (guard, [, , , at, bytes]) => void guard.at(at!, Number(bytes), "option"),
  getsockopt: (guard, [, , , at, bytes]) => sized(guard, at!, bytes!, "option"),
  sendto: (guard, [, at, bytes, , to, toBytes]) => {
    guard.at(at!, Number(bytes), "datagram");
    guard.at(to!, Number(toBytes), "address");
  },
  sendmsg: one,
  recvmsg: one,
  sendmmsg: messages,
  recvmmsg: (guard, args) => {
    if (args[4] !== null) guard.refuse("recvmmsg with a timeout has no rule");
    messages(guard, args);
  },

  ChaCha20_ctr32: (guard, [out, input, bytes, key, counter]) => {
    guard.at(input!, Number(bytes), "input");
    guard.at(out!, Number(bytes), "output");
    guard.at(key!, KEY_BYTES, "key");
    guard.at(counter!, COUNTER_BYTES, "counter");
  },
  Poly1305_ctx_size: nothing,
  Poly1305_Init: (guard, [state, key]) => {
    guard.at(state!, guard.poly1305Bytes, "Poly1305 state");
    guard.at(key!, KEY_BYTES, "key");
  },
  Poly1305_Update: (guard, [state, input, bytes]) => {
    guard.at(state!, guard.poly1305Bytes, "Poly1305 state");
    guard.at(input!, Number(bytes), "input");
  },
  Poly1305_Final: (guard, [state, tag]) => {
    guard.at(state!, guard.poly1305Bytes, "Poly1305 state");
    guard.at(tag!, TAG_BYTES, "tag");
  },

  EVP_CIPHER_CTX_new: nothing,
  EVP_CIPHER_CTX_free: (guard, [context]) => guard.context(context!),
  EVP_chacha20_poly1305: nothing,
  EVP_EncryptInit_ex: cipherInit,
  EVP_DecryptInit_ex: cipherInit,
  EVP_EncryptUpdate: cipherUpdate,
  EVP_DecryptUpdate: cipherUpdate,
  EVP_EncryptFinal_ex: cipherFinal,
  EVP_DecryptFinal_ex: cipherFinal,
  EVP_CIPHER_CTX_ctrl: cipherControl,
};

/** A buffer whose length lies in a 32-bit word that the call overwrites. */
function sized(guard: MemoryGuard, at: Argument, length: Argument, what: string): void {
  const bytes = guard.at(length, LENGTH_BYTES, `length of the ${what}`);
  guard.at(at, new DataView(bytes.buffer, bytes.byteOffset).getUint32(0, true), what);
}

function isGiven(address: Argument): boolean {
  return address !== null && Number(address) !== 0;
}
