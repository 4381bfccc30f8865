import type { TimelineEntry } from "../../src/gen/daemon_pb.ts";
import { formatDayAndTime, formatMillis } from "./format.ts";

/** Wakes shown, newest first. */
const WAKES_SHOWN = 5;
const STAGES_MAX = 14;
/** What comes later than this many times the time to the connection is written, not drawn. */
const DRAWN_TIMES_CONNECTED = 5;

interface Wake {
  readonly at: number;
  readonly cause: string;
  readonly stages: readonly Stage[];
  /** Milliseconds from the wake to its proof; undefined: not proven. */
  readonly took: number | undefined;
}

interface Stage {
  readonly event: string;
  readonly detail: string;
  /** Milliseconds since the wake, and since the stage before. */
  readonly at: number;
  readonly lasted: number;
}

/** The wakes of a timeline, newest first, each with what followed it until the next or until sleep. */
function wakesOf(timeline: readonly TimelineEntry[]): Wake[] {
  const wakes: { at: number; cause: string; stages: Stage[]; took: number | undefined }[] = [];
  let asleep = true;
  for (const { at, event, detail, sinceWakeMs } of timeline) {
    if (event === "wake") {
      wakes.unshift({ at, cause: detail, stages: [], took: undefined });
      asleep = false;
      continue;
    }
    const [wake] = wakes;
    if (event === "sleep") asleep = true;
    if (asleep || !wake || sinceWakeMs === undefined) continue;
    wake.stages.push({ event, detail, at: sinceWakeMs, lasted: sinceWakeMs - (wake.stages.at(-1)?.at ?? 0) });
    if (event === "connected") wake.took ??= sinceWakeMs;
  }
  return wakes;
}

/** The last wakes as bars: each stage from the end of the one before to its own. */
export function Waterfall({ timeline }: { readonly timeline: readonly TimelineEntry[] }) {
  const wakes = wakesOf(timeline).slice(0, WAKES_SHOWN);
  if (wakes.length === 0) return <p className="dim">It was not woken since the agent started.</p>;
  return (
    <ol className="waterfall">
      {wakes.map((wake) => (
        <li key={wake.at}>
          <WakeBars wake={wake} />
        </li>
      ))}
    </ol>
  );
}

function WakeBars({ wake }: { readonly wake: Wake }) {
  const { stages, took } = wake;
  const last = stages.at(-1)?.at ?? 0;
  const scale = Math.max(1, took === undefined ? last : Math.min(last, took * DRAWN_TIMES_CONNECTED));
  const drawn = stages.filter(({ at }) => at <= scale).slice(0, STAGES_MAX);
  const later = stages.length - drawn.length;
  return (
    <details open>
      <summary>
        <time dateTime={new Date(wake.at).toISOString()}>{formatDayAndTime(wake.at)}</time>
        <span className="took">{took === undefined ? "not connected" : `connected in ${formatMillis(took)}`}</span>
        <span className="dim cause">{wake.cause || "no cause given"}</span>
      </summary>
      <table>
        <colgroup>
          <col className="stages" />
          <col />
          <col className="times" />
        </colgroup>
        <thead className="unseen">
          <tr>
            <th>Stage</th>
            <th>Time</th>
            <th>Since the wake</th>
          </tr>
        </thead>
        <tbody>
          {drawn.map(({ event, detail, at, lasted }, index) => (
            // biome-ignore lint/suspicious/noArrayIndexKey: stages have no other name, and only grow
            <tr key={index} title={`${event}: ${detail}`}>
              <th scope="row">{event}</th>
              <td className="bars" aria-hidden="true">
                <span
                  className={`bar ${event === "connected" ? "proof" : ""}`}
                  style={{
                    left: `${((at - lasted) / scale) * 100}%`,
                    width: `${Math.max(0.8, (lasted / scale) * 100)}%`,
                  }}
                />
              </td>
              <td className="number">{formatMillis(at)}</td>
            </tr>
          ))}
        </tbody>
      </table>
      {later > 0 && (
        <p className="dim later">
          and {later} later, until {formatMillis(last)}
        </p>
      )}
    </details>
  );
}
