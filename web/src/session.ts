import { type Client, Code, ConnectError, createClient } from "@connectrpc/connect";
import { createConnectTransport } from "@connectrpc/connect-web";
import { Daemon } from "../../src/gen/daemon_pb.ts";

export type DaemonClient = Client<typeof Daemon>;

/** Where the page keeps its half of the session for as long as the tab lives; other ports of this address cannot read it. */
const PAGE_KEY = "perch-page-key";
const PAGE_KEY_HEADER = "X-Perch-Page";

/** What the page may do. */
export type Session =
  | { readonly kind: "open"; readonly client: DaemonClient }
  | { readonly kind: "closed"; readonly why: string };

/**
 * Takes the one-time token out of the address, so that neither the history nor a copied address holds it, and exchanges it for
 * a session. Without a token the session of this tab goes on.
 */
export async function openSession(): Promise<Session> {
  const token = new URLSearchParams(location.hash.slice(1)).get("token");
  if (token !== null) {
    history.replaceState(null, "", location.pathname);
    const answer = await fetch("/session", { method: "POST", body: token });
    if (answer.ok) {
      const { pageKey } = (await answer.json()) as { readonly pageKey: string };
      sessionStorage.setItem(PAGE_KEY, pageKey);
    } else if (sessionStorage.getItem(PAGE_KEY) === null) {
      return { kind: "closed", why: await answer.text() };
    }
  }
  const pageKey = sessionStorage.getItem(PAGE_KEY);
  if (pageKey === null) return { kind: "closed", why: "This page opens with a link of its own." };
  const transport = createConnectTransport({
    baseUrl: location.origin,
    useBinaryFormat: true,
    interceptors: [
      (next) => (request) => {
        request.header.set(PAGE_KEY_HEADER, pageKey);
        return next(request);
      },
    ],
  });
  return { kind: "open", client: createClient(Daemon, transport) };
}

/** The daemon answered, and does not know this session (any more). */
export function isSessionOver(reason: unknown): boolean {
  return reason instanceof ConnectError && reason.code === Code.Unauthenticated;
}

export function forgetSession(): void {
  sessionStorage.removeItem(PAGE_KEY);
}
