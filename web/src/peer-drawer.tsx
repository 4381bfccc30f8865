import { type KeyboardEvent, type ReactNode, useEffect, useMemo, useRef, useState } from "react";
import type uPlot from "uplot";
import type { Peer, TimelineEntry } from "../../src/gen/daemon_pb.ts";
import { Chart, type Line } from "./chart.tsx";
import { formatAge, formatBytes, formatDayAndTime, formatMillis } from "./format.ts";
import type { PeerRow } from "./peer-row.ts";
import type { DaemonClient } from "./session.ts";
import { StateMark } from "./state-mark.tsx";
import type { PeerSample, Store } from "./store.ts";
import { useNow } from "./use-browser.ts";
import { useCall } from "./use-call.ts";
import { Waterfall } from "./waterfall.tsx";

interface Props {
  readonly row: PeerRow;
  readonly store: Store;
  readonly client: DaemonClient;
  readonly close: () => void;
}

const LATENCY: readonly Line[] = [{ label: "Latency", colour: "--accent", filled: true }];
const TRAFFIC: readonly Line[] = [
  { label: "Received", colour: "--connected" },
  { label: "Sent", colour: "--accent" },
];

/** Everything about one peer. Esc closes it. */
export function PeerDrawer({ row, store, client, close }: Props) {
  const [detailed, setDetailed] = useState<Peer>();
  const { busy, failure, run } = useCall();
  const now = useNow(1000);
  const heading = useRef<HTMLHeadingElement>(null);
  const { peer, state } = row;
  const wanted = row.key;

  // biome-ignore lint/correctness/useExhaustiveDependencies: the stream is for the peer, not for a version of its row
  useEffect(() => {
    const leave = new AbortController();
    store.startPeer(row, leave.signal, setDetailed);
    return () => leave.abort();
  }, [store, wanted]);

  // Where the grid keeps the focus, the arrows go on through the rows; a pointer on a phone has the drawer in front.
  useEffect(() => {
    if (matchMedia("(max-width: 700px)").matches) heading.current?.focus();
  }, []);

  const history = store.historyOf(row.key);
  // biome-ignore lint/correctness/useExhaustiveDependencies: the history grows in place, with each new row
  const latency = useMemo(() => latencyData(history), [row]);
  // biome-ignore lint/correctness/useExhaustiveDependencies: as above
  const traffic = useMemo(() => trafficData(history), [row]);

  const onKeyDown = (event: KeyboardEvent): void => {
    if (event.key !== "Escape") return;
    event.stopPropagation();
    close();
  };
  const act = (name: string, call: () => Promise<unknown>) => (
    <button type="button" disabled={busy !== undefined} aria-busy={busy === name} onClick={() => run(name, call)}>
      {name}
    </button>
  );
  const which = { peer: row.key };
  return (
    <aside className="drawer" aria-labelledby="drawer-title" onKeyDown={onKeyDown}>
      <div className="drawer-head">
        <h2 id="drawer-title" ref={heading} tabIndex={-1}>
          {row.name}
          <span className="dim domain">{row.domain}</span>
        </h2>
        <button type="button" className="close" aria-label="Close" onClick={close}>
          ×
        </button>
      </div>
      <p className="now" aria-live="polite">
        <span className={`badge ${state.toLowerCase()}`}>
          <StateMark state={state} /> {state}
        </span>
        {peer.since > 0 && <span className="dim">for {formatAge(peer.since, now)}</span>}
        {peer.pinned && <span className="tag">pinned</span>}
      </p>
      <p className="reason">{peer.reason}</p>
      <div className="actions">
        {state === "Idle" ? act("Wake", () => client.wakePeer(which)) : act("Sleep", () => client.sleepPeer(which))}
        {peer.pinned
          ? act("Unpin", () => client.pinPeer({ ...which, pinned: false }))
          : act("Pin", () => client.pinPeer({ ...which, pinned: true }))}
      </div>
      {failure !== undefined && (
        <p className="failure" role="alert">
          {failure}
        </p>
      )}

      <SleepTalk timeline={detailed?.timeline ?? []} />

      <h3>Path</h3>
      <PathFacts peer={peer} />
      <h3>Last wakes</h3>
      {detailed ? <Waterfall timeline={detailed.timeline} /> : <p className="dim">Loading</p>}
      <h3>Since you opened the page</h3>
      {history.length < 2 ? (
        <p className="dim">Nothing has changed yet.</p>
      ) : (
        <>
          <Chart title="Latency" lines={LATENCY} data={latency} format={formatMillis} height={120} />
          <Chart title="Traffic" lines={TRAFFIC} data={traffic} format={perSecond} height={130} />
        </>
      )}
      <h3>Facts</h3>
      <dl>
        <Fact name="Addresses">{peer.addresses.join(", ")}</Fact>
        <Fact name="Routes">{peer.routes.join(", ")}</Fact>
        <Fact name="Lazy">{`${peer.lazy ? "May sleep" : "Stays connected"}: ${peer.lazyReason}`}</Fact>
        <Fact name="Last handshake">{formatDayAndTime(peer.lastHandshake)}</Fact>
        <Fact name="Received / sent">{`${formatBytes(peer.rxBytes)} / ${formatBytes(peer.txBytes)}`}</Fact>
        <Fact name="Agent">{peer.agentVersion}</Fact>
        <Fact name="Public key">
          <code>{row.key}</code>
        </Fact>
      </dl>
    </aside>
  );
}

/** What became of a wish to sleep: a Perch agent at the other end is asked, and may have a reason to stay awake. */
function SleepTalk({ timeline }: { readonly timeline: readonly TimelineEntry[] }) {
  const last = timeline.at(-1);
  switch (last?.event) {
    case "sleep-proposed":
      return <output className="dim">The other side is asked to sleep as well.</output>;
    case "sleep-refused":
      return <output className="dim">It stays awake: {last.detail}.</output>;
    default:
      return null;
  }
}

function PathFacts({ peer }: { readonly peer: Peer }) {
  const path = peer.path?.path;
  const relay = peer.relayServer && <Fact name="Relay">{peer.relayServer}</Fact>;
  switch (path?.case) {
    case "direct": {
      const { local, localKind, remote, remoteKind } = path.value;
      return (
        <dl>
          <Fact name="Kind">Direct</Fact>
          <Fact name="Here">{[local, localKind].filter(Boolean).join(" · ")}</Fact>
          <Fact name="There">{[remote, remoteKind].filter(Boolean).join(" · ")}</Fact>
          {relay}
          <Fact name="Latency">{peer.latencyMs === undefined ? "" : formatMillis(peer.latencyMs)}</Fact>
        </dl>
      );
    }
    case "relay":
      return (
        <dl>
          <Fact name="Kind">Relayed</Fact>
          <Fact name="Relay">{path.value}</Fact>
          <Fact name="Latency">{peer.latencyMs === undefined ? "" : formatMillis(peer.latencyMs)}</Fact>
        </dl>
      );
    default:
      return <p className="dim">None: no packet is on its way to this peer.</p>;
  }
}

/** Nothing when there is nothing to say. */
export function Fact({ name, children }: { readonly name: string; readonly children: ReactNode }) {
  if (!children) return null;
  return (
    <div>
      <dt>{name}</dt>
      <dd>{children}</dd>
    </div>
  );
}

function perSecond(value: number): string {
  return `${formatBytes(value)}/s`;
}

function latencyData(samples: readonly PeerSample[]): uPlot.AlignedData {
  return [samples.map(({ at }) => at / 1000), samples.map(({ latency }) => latency ?? null)];
}

/** Bytes per second between one sample and the next; a counter that went back began anew. */
function trafficData(samples: readonly PeerSample[]): uPlot.AlignedData {
  const times: number[] = [];
  const received: number[] = [];
  const sent: number[] = [];
  for (const [index, sample] of samples.entries()) {
    const before = samples[index - 1];
    if (!before) continue;
    const seconds = Math.max(0.1, (sample.at - before.at) / 1000);
    times.push(sample.at / 1000);
    received.push(Math.max(0, sample.rxBytes - before.rxBytes) / seconds);
    sent.push(Math.max(0, sample.txBytes - before.txBytes) / seconds);
  }
  return [times, received, sent];
}
