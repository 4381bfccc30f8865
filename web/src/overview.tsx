import { useEffect, useMemo } from "react";
import type uPlot from "uplot";
import type { StateSample, WakeRecord } from "../../src/gen/daemon_pb.ts";
import { Chart, type Line } from "./chart.tsx";
import { formatCount, formatMillis, formatTime, median } from "./format.ts";
import { STATES } from "./peer-row.ts";
import { StateMark } from "./state-mark.tsx";
import type { Picture, Store } from "./store.ts";
import { useNow } from "./use-browser.ts";

const HOUR_MS = 3_600_000;
const HOURS_SHOWN = 24;
const RECENT_SHOWN = 12;

const LINES: readonly Line[] = [
  { label: "Connected", colour: "--connected", filled: true },
  { label: "Connecting", colour: "--connecting" },
  { label: "Idle", colour: "--idle" },
];

const CAUSES: Readonly<Record<string, string>> = {
  tcp: "TCP packet from here",
  udp: "UDP packet from here",
  icmp: "Ping from here",
  "other-traffic": "Other packet from here",
  dns: "Its name was looked up",
  offer: "Its offer",
  handshake: "Its handshake",
  hand: "By hand",
  other: "Rule or route",
};

export function Overview({ picture, store }: { readonly picture: Picture; readonly store: Store }) {
  const { head, samples, wakes } = picture;
  const now = useNow(10_000);
  useEffect(() => {
    const leave = new AbortController();
    store.startActivity(leave.signal);
    return () => leave.abort();
  }, [store]);
  const all = useMemo(() => [...wakes.values()].sort((a, b) => b.at - a.at), [wakes]);
  const data = useMemo(() => stateData(samples), [samples]);
  const lastHour = all.filter(({ at }) => at > now - HOUR_MS);
  const middle = median(all.flatMap(({ tookMs }) => (tookMs === undefined ? [] : [tookMs])));
  const counts = { Idle: head?.peers?.idle, Connecting: head?.peers?.connecting, Connected: head?.peers?.connected };

  return (
    <div className="cards">
      <section className="card numbers" aria-label="Now">
        {STATES.map((state) => (
          <div key={state}>
            <span className="label">
              <StateMark state={state} /> {state}
            </span>
            <strong>{formatCount(counts[state] ?? 0)}</strong>
          </div>
        ))}
        <div>
          <span className="label">Wakes in the last hour</span>
          <strong>{formatCount(lastHour.length)}</strong>
        </div>
        <div>
          <span className="label">Median wake time</span>
          <strong>{middle === undefined ? "–" : formatMillis(middle)}</strong>
        </div>
      </section>
      <section className="card wide">
        <Chart title="Peers by state" lines={LINES} data={data} format={wholeNumber} height={220} steps />
      </section>
      <section className="card">
        <h3>Wakes per hour</h3>
        <HourBars wakes={all} now={now} />
      </section>
      <section className="card">
        <h3>What woke them</h3>
        <CauseBars wakes={all} />
      </section>
      <section className="card wide">
        <h3>Latest wakes</h3>
        <LatestWakes wakes={all.slice(0, RECENT_SHOWN)} />
      </section>
    </div>
  );
}

function HourBars({ wakes, now }: { readonly wakes: readonly WakeRecord[]; readonly now: number }) {
  const current = Math.floor(now / HOUR_MS);
  const counts = new Array<number>(HOURS_SHOWN).fill(0);
  for (const { at } of wakes) {
    const ago = current - Math.floor(at / HOUR_MS);
    if (ago >= 0 && ago < HOURS_SHOWN) counts[HOURS_SHOWN - 1 - ago]!++;
  }
  const most = Math.max(1, ...counts);
  return (
    <ol className="hours" aria-label={`Wakes in each of the last ${HOURS_SHOWN} hours`}>
      {counts.map((count, index) => {
        const hour = (current - HOURS_SHOWN + 1 + index) * HOUR_MS;
        const words = `${String(new Date(hour).getHours()).padStart(2, "0")}:00: ${count}`;
        return (
          <li key={hour} title={words}>
            <span className="column" style={{ height: `${(count / most) * 100}%` }} />
            <span className="unseen">{words}</span>
            <span className="hour" aria-hidden="true">
              {index % 6 === 5 ? new Date(hour).getHours() : ""}
            </span>
          </li>
        );
      })}
    </ol>
  );
}

function CauseBars({ wakes }: { readonly wakes: readonly WakeRecord[] }) {
  const counts = new Map<string, number>();
  for (const { kind } of wakes) counts.set(kind, (counts.get(kind) ?? 0) + 1);
  if (counts.size === 0) return <p className="dim">Nothing yet.</p>;
  const sorted = [...counts].sort(([, a], [, b]) => b - a);
  const most = sorted[0]![1];
  return (
    <dl className="causes">
      {sorted.map(([kind, count]) => (
        <div key={kind}>
          <dt>{CAUSES[kind] ?? kind}</dt>
          <dd>
            <span className="bar" style={{ width: `${(count / most) * 100}%` }} />
            <span className="number">{formatCount(count)}</span>
          </dd>
        </div>
      ))}
    </dl>
  );
}

function LatestWakes({ wakes }: { readonly wakes: readonly WakeRecord[] }) {
  if (wakes.length === 0) return <p className="dim">No peer was woken since the agent started.</p>;
  return (
    <table className="latest">
      <thead>
        <tr>
          <th scope="col">At</th>
          <th scope="col">Peer</th>
          <th scope="col">Woken by</th>
          <th scope="col">Connected in</th>
        </tr>
      </thead>
      <tbody>
        {wakes.map(({ id, at, fqdn, detail, tookMs }) => (
          <tr key={id}>
            <td>{formatTime(at)}</td>
            <td>{fqdn.split(".", 1)[0]}</td>
            <td className="detail">{detail}</td>
            <td className="number">{tookMs === undefined ? "not yet" : formatMillis(tookMs)}</td>
          </tr>
        ))}
      </tbody>
    </table>
  );
}

function stateData(samples: readonly StateSample[]): uPlot.AlignedData {
  return [
    samples.map(({ at }) => at / 1000),
    samples.map(({ connected }) => connected),
    samples.map(({ connecting }) => connecting),
    samples.map(({ idle }) => idle),
  ];
}

function wholeNumber(value: number): string {
  return Number.isInteger(value) ? formatCount(value) : "";
}
