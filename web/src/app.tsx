import { useCallback, useEffect, useState, useSyncExternalStore } from "react";
import { AgentState, type StatusHead } from "../../src/gen/daemon_pb.ts";
import { Banner } from "./banner.tsx";
import { Overview } from "./overview.tsx";
import { PeerDrawer } from "./peer-drawer.tsx";
import { PeersView } from "./peers-view.tsx";
import type { DaemonClient } from "./session.ts";
import { SettingsView } from "./settings-view.tsx";
import type { Store } from "./store.ts";

const VIEWS = ["Peers", "Overview", "Settings"] as const;
type View = (typeof VIEWS)[number];

const AGENT_STATES: Readonly<Record<number, string>> = {
  [AgentState.DOWN]: "Down",
  [AgentState.STARTING]: "Starting",
  [AgentState.UP]: "Up",
  [AgentState.NEEDS_LOGIN]: "Needs login",
  [AgentState.STOPPING]: "Stopping",
};

export function App({ store, client }: { readonly store: Store; readonly client: DaemonClient }) {
  const picture = useSyncExternalStore(store.subscribe, store.picture);
  const [view, setView] = useState<View>("Peers");
  const [openKey, setOpenKey] = useState<string>();
  const { head, link, peers } = picture;
  const row = openKey === undefined ? undefined : peers.get(openKey);
  const close = useCallback(() => setOpenKey(undefined), []);

  useEffect(() => {
    const { connected = 0, total = 0 } = head?.peers ?? {};
    document.title = head ? `${connected}/${total} · ${head.hostname || "Perch"}` : "Perch";
  }, [head]);

  return (
    <div className="page">
      <header>
        <img src="/icon.svg" width="28" height="28" alt="Perch" />
        <Identity head={head} />
        <nav aria-label="Views">
          {VIEWS.map((name) => (
            <button
              key={name}
              type="button"
              aria-current={view === name ? "page" : undefined}
              onClick={() => setView(name)}
            >
              {name}
            </button>
          ))}
        </nav>
      </header>
      <Banner link={link} />
      <div className="body">
        <main className={view.toLowerCase()}>
          {view === "Peers" && (
            <PeersView rows={peers} isLive={link.kind === "live"} openKey={openKey} open={setOpenKey} />
          )}
          {view === "Overview" && <Overview picture={picture} store={store} />}
          {view === "Settings" && <SettingsView head={head} client={client} />}
        </main>
        {row && <PeerDrawer key={row.key} row={row} store={store} client={client} close={close} />}
      </div>
    </div>
  );
}

function Identity({ head }: { readonly head: StatusHead | undefined }) {
  if (!head) return <div className="identity" />;
  const state = AGENT_STATES[head.state] ?? "Unknown";
  return (
    <div className="identity">
      <strong>{head.fqdn || head.hostname || "This machine"}</strong>
      <span className="dim">
        {state}
        {head.address && ` · ${head.address.split("/")[0]}`}
        {head.reason && ` · ${head.reason}`}
      </span>
    </div>
  );
}
