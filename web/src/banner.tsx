import { formatTime } from "./format.ts";
import type { Link } from "./store.ts";

/** Says in one line that what is shown is not live; nothing while it is. */
export function Banner({ link }: { readonly link: Link }) {
  switch (link.kind) {
    case "live":
      return null;
    case "connecting":
      return (
        <output className="banner quiet">
          <span className="spinner" aria-hidden="true" /> Loading
        </output>
      );
    case "lost":
      return (
        <div className="banner" role="alert">
          <strong>The agent does not answer.</strong> What you see is from {formatTime(link.since)}. Trying again; if it
          was restarted, run <code>perch ui</code> for a new link.
        </div>
      );
    case "over":
      return (
        <div className="banner" role="alert">
          <strong>This session has ended.</strong> Run <code>perch ui</code> for a new link.
        </div>
      );
    default:
      return link satisfies never;
  }
}

/** The whole page without a session. */
export function Closed({ why }: { readonly why: string }) {
  return (
    <main className="closed">
      <img src="/icon.svg" width="48" height="48" alt="" />
      <h1>Perch</h1>
      <p role="alert">{why}</p>
      <p>
        On the machine of the agent, run <code>perch ui</code> and open the link that it prints. A link opens the page
        once.
      </p>
    </main>
  );
}
