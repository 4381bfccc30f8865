import type { IncomingHttpHeaders } from "node:http";
import { Daemon } from "#gen/daemon_pb.ts";
import type { UiPass } from "./ui-sessions.ts";

/** Where a token is exchanged for a session. */
export const SESSION_PATH = "/session";
/** The page's half of a pass, in every call. */
export const PAGE_KEY_HEADER = "x-perch-page";

/** What the page may call: it looks, wakes, puts to sleep, pins and switches. Registration and settings are not the page's. */
const PAGE_CALLS: ReadonlySet<string> = new Set(
  [
    Daemon.method.watchStatus,
    Daemon.method.watchActivity,
    Daemon.method.wakePeer,
    Daemon.method.sleepPeer,
    Daemon.method.pinPeer,
    Daemon.method.diagnose,
    Daemon.method.setLazy,
  ].map(({ parent, name }) => `/${parent.typeName}/${name}`),
);

/** What is looked at of a request before anything else. */
export interface UiRequest {
  readonly method: string;
  readonly url: string;
  readonly headers: IncomingHttpHeaders;
}

/** What becomes of a request. A call's pass still has to be found among the sessions. */
export type Verdict =
  | { readonly kind: "refuse"; readonly status: number; readonly why: string }
  | { readonly kind: "file"; readonly path: string }
  | { readonly kind: "exchange"; readonly cookie: string | undefined }
  | { readonly kind: "call"; readonly pass: UiPass };

/**
 * Decides by its head alone what becomes of a request. What is not certainly the page itself is refused:
 *
 * 1. `Host` names the loopback address and port that is listened on: a name that an attacker's DNS answers with 127.0.0.1 does not.
 * 2. What is not a file is a POST of this origin: `Origin` is there and ours, `Sec-Fetch-Site`, where the browser says it, agrees.
 * 3. A call has both halves of a pass, and is one that the page makes.
 */
export function judge(request: UiRequest, hosts: ReadonlySet<string>): Verdict {
  const { headers, method } = request;
  const { host } = headers;
  if (host === undefined || !hosts.has(host)) return refuse(403, "this address is not served");
  const path = request.url.split("?", 1)[0]!;
  if (method === "GET" || method === "HEAD") return { kind: "file", path };
  if (method !== "POST") return refuse(405, "no such method");
  if (headers.origin !== `http://${host}`) return refuse(403, "not from this page");
  const site = headers["sec-fetch-site"];
  if (site !== undefined && site !== "same-origin") return refuse(403, "not from this page");
  const cookie = readCookie(headers.cookie ?? "", cookieName(host));
  if (path === SESSION_PATH) return { kind: "exchange", cookie };
  if (!PAGE_CALLS.has(path)) return refuse(404, "no such call");
  const pageKey = headers[PAGE_KEY_HEADER];
  if (cookie === undefined || typeof pageKey !== "string") return refuse(401, "no session");
  return { kind: "call", pass: { cookie, pageKey } };
}

/** Browsers keep cookies by address, not by port: the port in the name keeps the pages of several daemons apart. */
function cookieName(host: string): string {
  return `perch-ui-${host.slice(host.lastIndexOf(":") + 1)}`;
}

/** The Set-Cookie of a new session; gone with the browser, never sent along from another site, never read by a script. */
export function sessionCookie(host: string, value: string): string {
  return `${cookieName(host)}=${value}; Path=/; HttpOnly; SameSite=Strict`;
}

/** On every answer. Scripts and styles from files of ours only, no frames, nothing kept, nothing sent elsewhere. */
export const SECURITY_HEADERS: Readonly<Record<string, string>> = {
  "content-security-policy": [
    "default-src 'none'",
    "script-src 'self'",
    "style-src 'self'",
    "img-src 'self'",
    "connect-src 'self'",
    "base-uri 'none'",
    "form-action 'none'",
    "frame-ancestors 'none'",
    "require-trusted-types-for 'script'",
    "trusted-types 'none'",
  ].join("; "),
  "x-content-type-options": "nosniff",
  "x-frame-options": "DENY",
  "referrer-policy": "no-referrer",
  "cross-origin-opener-policy": "same-origin",
  "cross-origin-resource-policy": "same-origin",
  "permissions-policy": "camera=(), microphone=(), geolocation=(), usb=()",
  "cache-control": "no-store",
};

function readCookie(header: string, name: string): string | undefined {
  for (const pair of header.split(";")) {
    const at = pair.indexOf("=");
    if (at > 0 && pair.slice(0, at).trim() === name) return pair.slice(at + 1).trim();
  }
  return undefined;
}

function refuse(status: number, why: string): Verdict {
  return { kind: "refuse", status, why };
}
