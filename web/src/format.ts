/** 21.25 -> `21 ms`, 3200 -> `3.2 s`; one decimal below ten. */
export function formatMillis(value: number): string {
  if (value < 1000) return `${value < 9.95 ? value.toFixed(1) : Math.round(value)} ms`;
  return `${(value / 1000).toFixed(value < 9950 ? 1 : 0)} s`;
}

/** 3500000 -> `3.5 MB`. */
export function formatBytes(value: number): string {
  let rest = value;
  for (const unit of ["B", "kB", "MB", "GB"]) {
    if (rest < 1000) return `${unit === "B" || rest >= 99.95 ? Math.round(rest) : rest.toFixed(1)} ${unit}`;
    rest /= 1000;
  }
  return `${rest.toFixed(1)} TB`;
}

/** How long ago, coarse as people say it: `12 s`, `3 min`, `2 h`, `5 d`. */
export function formatAge(at: number, now: number): string {
  const seconds = Math.max(0, Math.round((now - at) / 1000));
  if (seconds < 60) return `${seconds} s`;
  if (seconds < 3600) return `${Math.floor(seconds / 60)} min`;
  if (seconds < 86_400) return `${Math.floor(seconds / 3600)} h`;
  return `${Math.floor(seconds / 86_400)} d`;
}

/** 900000 -> `15 min`, 5400000 -> `1 h 30 min`. */
export function formatDuration(ms: number): string {
  const seconds = Math.round(ms / 1000);
  const parts = [
    [Math.floor(seconds / 86_400), "d"],
    [Math.floor(seconds / 3600) % 24, "h"],
    [Math.floor(seconds / 60) % 60, "min"],
    [seconds % 60, "s"],
  ] as const;
  return parts.flatMap(([amount, unit]) => (amount > 0 ? [`${amount} ${unit}`] : [])).join(" ") || "0 s";
}

const TIME = new Intl.DateTimeFormat(undefined, {
  hour: "2-digit",
  minute: "2-digit",
  second: "2-digit",
  hourCycle: "h23",
});
const DAY_AND_TIME = new Intl.DateTimeFormat(undefined, { dateStyle: "medium", timeStyle: "medium", hourCycle: "h23" });

export function formatTime(at: number): string {
  return TIME.format(at);
}

export function formatDayAndTime(at: number): string {
  return at > 0 ? DAY_AND_TIME.format(at) : "never";
}

export function formatCount(value: number): string {
  return value.toLocaleString("en").replaceAll(",", "\u202f");
}

/** The middle of the values; undefined without any. */
export function median(values: readonly number[]): number | undefined {
  if (values.length === 0) return undefined;
  const sorted = [...values].sort((a, b) => a - b);
  const middle = sorted.length >> 1;
  return sorted.length % 2 === 1 ? sorted[middle] : (sorted[middle - 1]! + sorted[middle]!) / 2;
}
