import { Code, ConnectError } from "@connectrpc/connect";
import { messageOf } from "#base/errors.ts";
import { ManagementError } from "../errors.ts";
import { EnvelopeError } from "../protocol/envelope.ts";

/** What a stock server says, word for word, when a login has run out (protocol/management.md, section 1.7). */
const LOGIN_EXPIRED = "peer login has expired";

/** Node's codes for "the other side speaks something else". */
const WRONG_PROTOCOL = /^(ERR_HTTP2_|ERR_SSL_|EPROTO|HPE_)/;
/** What Node says when the other side hangs up on a TLS greeting, as servers of plaintext do. */
const NO_TLS = /before secure TLS connection/;

/** What the codes of the system mean to whoever gave the URL. */
const IN_WORDS: Readonly<Record<string, string>> = {
  ECONNREFUSED: "nothing listens there",
  ENOTFOUND: "there is no host of that name",
  EAI_AGAIN: "the name cannot be looked up now",
  EHOSTUNREACH: "there is no way to that host",
  ENETUNREACH: "there is no way to that network",
  ETIMEDOUT: "it does not answer",
};

/** Characters of a setup key that a message shows: enough to find it in `perch server setup-key list`. */
const KEY_PREFIX_LENGTH = 8;

export interface CallContext {
  readonly url: string;
  /** The call as the protocol names it. */
  readonly call: string;
  /** The setup key that the call carried: then a refusal is about the key. */
  readonly setupKey?: string | undefined;
}

/**
 * Turns whatever a call threw into a ManagementError. The status codes and what they mean: protocol/management.md,
 * sections 1.6 and 1.7.
 */
export function toManagementError(reason: unknown, context: CallContext): ManagementError {
  if (reason instanceof ManagementError) return reason;
  const { url, call } = context;
  if (reason instanceof EnvelopeError) {
    return new ManagementError("protocol", `${url}: the answer to ${call} cannot be read: ${reason.message}`, {
      cause: reason,
      retryable: true,
    });
  }
  const error = ConnectError.from(reason);
  const unreachable = (why: string): ManagementError =>
    new ManagementError("unreachable", `cannot reach management at ${url}: ${why}`, { cause: reason, retryable: true });
  // Status codes that no server chose: connect makes PERMISSION_DENIED of an HTTP 403 and of some HTTP/2 resets, and
  // acting on that would deregister a peer because of a proxy.
  if (/^(HTTP \d{3}|unsupported content type)/.test(error.rawMessage))
    return unreachable(`it answered ${JSON.stringify(error.rawMessage)} to ${call}, not gRPC`);
  if (error.rawMessage.startsWith("http/2 stream closed"))
    return unreachable(`${call} ended without an answer (${error.rawMessage})`);
  const cause = rootCause(error);
  if (cause) return unreachable(cause);
  const said = `${url} refused ${describeCall(context, error.rawMessage)}: ${error.rawMessage || Code[error.code]}`;
  switch (error.code) {
    case Code.PermissionDenied:
      if (error.rawMessage.includes(LOGIN_EXPIRED))
        return new ManagementError("login-expired", `${url}: the login of this peer has expired`, { cause: reason });
      return new ManagementError(context.setupKey ? "setup-key-invalid" : "permission-denied", said, { cause: reason });
    case Code.NotFound:
    case Code.FailedPrecondition:
      if (context.setupKey) return new ManagementError("setup-key-invalid", said, { cause: reason });
      return new ManagementError("server-error", said, { cause: reason });
    case Code.Unimplemented:
      return new ManagementError("unsupported", said, { cause: reason });
    case Code.DeadlineExceeded:
      return unreachable("it does not answer");
    case Code.Unavailable:
    case Code.Aborted:
    case Code.Canceled:
      return unreachable(error.rawMessage);
    default:
      return new ManagementError("server-error", said, { cause: reason, retryable: true });
  }
}

/** What was refused, naming the setup key unless the server has done so. */
function describeCall({ call, setupKey }: CallContext, reason: string): string {
  if (setupKey === undefined) return call;
  const prefix = setupKey.slice(0, KEY_PREFIX_LENGTH);
  return reason.toLowerCase().includes(prefix.toLowerCase()) ? "to register this machine" : `the setup key ${prefix}…`;
}

/** The innermost error of the system, in words; undefined when the server itself has spoken. */
function rootCause(error: ConnectError): string | undefined {
  let found: string | undefined;
  const seen = new Set<unknown>();
  for (let reason: unknown = error.cause; reason instanceof Error && !seen.has(reason); reason = reason.cause) {
    seen.add(reason);
    if (!("code" in reason) || typeof reason.code !== "string") continue;
    // A host with several addresses fails with an AggregateError whose own message is empty.
    const text = reason instanceof AggregateError ? reason.errors.map(messageOf).join(", ") : reason.message;
    const isOther = WRONG_PROTOCOL.test(reason.code) || NO_TLS.test(text);
    const hint = isOther ? " (is it http:// where https:// is meant, or the reverse?)" : "";
    const inWords = IN_WORDS[reason.code];
    found = inWords ? `${inWords} (${text || reason.code})` : `${text || reason.code}${hint}`;
  }
  return found;
}
