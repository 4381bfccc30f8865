import type { AgentStatus } from "../control.ts";
import type { Family, Sample } from "./exposition.ts";
import { WAKE_BUCKETS, type WakeTotals } from "./wake-meter.ts";

/** What is known of the process itself. */
export interface ProcessFacts {
  readonly version: string;
  readonly runtime: string;
  /** Wall clock ms. */
  readonly startedAt: number;
  /** Delays of the event loop since the last scrape, in seconds. */
  readonly loopDelay: { readonly p50: number; readonly p99: number; readonly max: number };
  /** Bytes of memory that is in use by the process. */
  readonly residentBytes: number;
}

/**
 * Metrics of an agent from its status. None has a label for a peer: 10,000 peers are as many lines as none, and the cost of
 * a scrape is that of the counts, which look at peers that do not sleep.
 */
export function agentMetrics(status: AgentStatus, facts: ProcessFacts): Family[] {
  const { counts, counters, wakeTotals } = status;
  const count = (name: string): number => counters.get(name) ?? 0;
  const labelled = (label: string, values: Iterable<readonly [string, number]>): Sample[] =>
    [...values].map(([text, value]) => ({ labels: { [label]: text }, value }));
  const drops = [...counters].filter(([name]) => name.startsWith("drop-"));
  const states = Object.entries({ idle: counts.idle, connecting: counts.connecting, connected: counts.connected });
  /** None where the device does not count them: a 0 would say that nothing moved. */
  const directions = (name: string, help: string, unit: "bytes" | "packets"): Family[] => {
    if (status.device && status.device.kind !== "embedded" && !counters.has(`rx-${unit}`)) return [];
    const values = [["received", count(`rx-${unit}`)] as const, ["sent", count(`tx-${unit}`)] as const];
    return [counter(name, help, labelled("direction", values))];
  };
  const services = [
    ["management", Number(status.management.connected)],
    ["signal", Number(status.signal.connected)],
    ["relay", Number(status.relays.some(({ available }) => available))],
  ] as const;
  const { p50, p99, max } = facts.loopDelay;
  return [
    gauge("perch_build_info", "Always 1; the labels say what runs.", [
      { labels: { version: facts.version, runtime: facts.runtime }, value: 1 },
    ]),
    gauge("perch_up", "1 while the tunnel is up.", [{ value: Number(status.state === "up") }]),
    gauge("perch_start_time_seconds", "When the daemon started, seconds since the epoch.", [
      { value: facts.startedAt / 1000 },
    ]),
    gauge("perch_lazy_connections", "1 while lazy connections are on.", [{ value: Number(status.lazy.enabled) }]),
    gauge(
      "perch_service_connected",
      "1 while the connection to a server of the network is there.",
      labelled("service", services),
    ),
    gauge("perch_peers", "Peers by state.", labelled("state", states)),
    gauge(
      "perch_peer_paths",
      "Peers that are connected, by the kind of their path.",
      labelled("path", Object.entries(status.paths)),
    ),
    counter("perch_wakes_total", "Wakes of peers, by what woke them.", labelled("cause", wakeTotals.byKind)),
    wakeHistogram(wakeTotals),
    gauge("perch_wakes_waiting", "Wakes that wait for a place or for the budget of messages.", [
      { value: status.wakes?.waiting ?? 0 },
    ]),
    gauge("perch_wakes_held", "Wakes that are held back as part of a sweep.", [{ value: status.wakes?.held ?? 0 }]),
    ...directions("perch_bytes_total", "Bytes of WireGuard datagrams, handshakes included.", "bytes"),
    ...directions("perch_packets_total", "WireGuard data packets.", "packets"),
    counter(
      "perch_dropped_total",
      "Packets and messages that were dropped, by reason.",
      drops.map(([name, value]) => ({ labels: { reason: name.slice("drop-".length) }, value })),
    ),
    gauge("perch_staged_bytes", "Bytes of packets that wait for a session.", [{ value: count("staged-bytes") }]),
    counter("perch_dns_questions_total", "Questions about names.", [{ value: count("dns-questions") }]),
    counter("perch_worker_restarts_total", "Data workers, or runs of wireguard-go, that died and were replaced.", [
      { value: count("worker-restarts") },
    ]),
    gauge("perch_event_loop_delay_seconds", "Delay of the event loop since the last scrape.", [
      { labels: { quantile: "0.5" }, value: p50 },
      { labels: { quantile: "0.99" }, value: p99 },
      { labels: { quantile: "1" }, value: max },
    ]),
    gauge("perch_resident_memory_bytes", "Memory that the process has in use.", [{ value: facts.residentBytes }]),
  ];
}

function wakeHistogram({ buckets, sum, proven }: WakeTotals): Family {
  let upTo = 0;
  const samples: Sample[] = WAKE_BUCKETS.map((bound, index) => {
    upTo += buckets[index]!;
    return { suffix: "_bucket", labels: { le: String(bound) }, value: upTo };
  });
  samples.push(
    { suffix: "_bucket", labels: { le: "+Inf" }, value: proven },
    { suffix: "_sum", value: sum / 1000 },
    { suffix: "_count", value: proven },
  );
  const help = "Time from a wake to the handshake that proved it.";
  return { name: "perch_wake_duration_seconds", help, type: "histogram", samples };
}

function gauge(name: string, help: string, samples: readonly Sample[]): Family {
  return { name, help, type: "gauge", samples };
}

function counter(name: string, help: string, samples: readonly Sample[]): Family {
  return { name, help, type: "counter", samples };
}
