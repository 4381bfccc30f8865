import { useEffect, useRef } from "react";
import uPlot from "uplot";
import { styleValue, useMedia } from "./use-browser.ts";

export interface Line {
  readonly label: string;
  /** Name of a colour in the style sheet. */
  readonly colour: string;
  readonly filled?: boolean;
}

interface Props {
  readonly title: string;
  readonly lines: readonly Line[];
  /** Wall clock seconds, then a column for each line; as uPlot wants them. */
  readonly data: uPlot.AlignedData;
  readonly format: (value: number) => string;
  readonly height: number;
  /** The value stays until the next one, instead of a slope between the two. */
  readonly steps?: boolean;
}

/** Lines over time on a canvas. The numbers under the pointer are written below; a screen reader hears the newest. */
export function Chart({ title, lines, data, format, height, steps = false }: Props) {
  const holder = useRef<HTMLDivElement>(null);
  const plot = useRef<uPlot>(null);
  const isDark = useMedia("(prefers-color-scheme: dark)");
  const newest = useRef(data);
  newest.current = data;

  // biome-ignore lint/correctness/useExhaustiveDependencies: colours are read anew when the scheme changes; lines and format are constants
  useEffect(() => {
    const element = holder.current!;
    const axis = { stroke: styleValue("--dim"), font: `11px ${styleValue("--font")}` };
    const grid = { stroke: styleValue("--line"), width: 1 };
    const made = new uPlot(
      {
        width: element.clientWidth,
        height,
        cursor: { y: false, points: { size: 6 } },
        legend: { live: true },
        scales: { y: { range: (_, _least, most) => [0, Math.max(1, most * 1.1)] } },
        axes: [
          { ...axis, grid: { show: false }, ticks: { show: false }, size: 28, space: 70, values: timeLabels },
          { ...axis, grid, ticks: { show: false }, size: 50, space: 32, values: (_, values) => values.map(format) },
        ],
        series: [
          { label: "Time", value: (_, at) => (at == null ? "" : WITH_SECONDS.format(at * 1000)) },
          ...lines.map(({ label, colour, filled }) => ({
            label,
            stroke: styleValue(colour),
            width: 1.5,
            points: { show: false },
            ...(filled ? { fill: `color-mix(in srgb, ${styleValue(colour)} 18%, transparent)` } : {}),
            ...(steps ? { paths: uPlot.paths.stepped!({ align: 1 }) } : {}),
            value: (_: uPlot, value: number | null) => (value == null ? "–" : format(value)),
          })),
        ],
      },
      newest.current,
      element,
    );
    plot.current = made;
    const resized = new ResizeObserver(() => made.setSize({ width: element.clientWidth, height }));
    resized.observe(element);
    return () => {
      resized.disconnect();
      made.destroy();
      plot.current = null;
    };
  }, [isDark, height, steps]);

  // biome-ignore lint/correctness/useExhaustiveDependencies: a new plot has to be told, too
  useEffect(() => {
    const { current } = plot;
    if (!current) return;
    current.setData(data);
    // Without a pointer the numbers are the newest ones.
    if (current.cursor.idx == null && data[0].length > 0) current.setLegend({ idx: data[0].length - 1 }, false);
  }, [data, isDark]);

  const words = lines.map(({ label }, index) => {
    const value = data[index + 1]?.at(-1);
    return `${label} ${value == null ? "unknown" : format(value)}`;
  });
  return (
    <figure className="chart">
      <figcaption>{title}</figcaption>
      <div ref={holder} role="img" aria-label={`${title}: now ${words.join(", ")}`} />
    </figure>
  );
}

const HOUR_AND_MINUTE = new Intl.DateTimeFormat(undefined, { hour: "2-digit", minute: "2-digit", hourCycle: "h23" });
const WITH_SECONDS = new Intl.DateTimeFormat(undefined, {
  hour: "2-digit",
  minute: "2-digit",
  second: "2-digit",
  hourCycle: "h23",
});

function timeLabels(_: uPlot, values: number[], _axis: number, _space: number, step: number): string[] {
  const format = step < 60 ? WITH_SECONDS : HOUR_AND_MINUTE;
  return values.map((at) => format.format(at * 1000));
}
