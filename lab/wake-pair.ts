import { createDaemonClient, type DaemonClient } from "#agent/daemon/daemon-client.ts";
import type { Millis } from "#base/time.ts";
import { type Peer, PeerState, type TimelineEntry } from "#gen/daemon_pb.ts";
import { AgentView } from "./agent-view.ts";
import type { LabAgent, PerchNetwork } from "./perch-network.ts";
import { Traffic, type TrafficOptions, type TrafficResult } from "./traffic.ts";
import { waitUntil } from "./wait-until.ts";

const SLEEP_TIMEOUT: Millis = 10_000;
/** What is under way when a pair is put to sleep has arrived by then. */
const SLEEP_CROSSING: Millis = 1000;

/** What one cold wake showed. */
export interface WakeRecord {
  readonly result: TrafficResult;
  /** The waking side's story from its wake on. */
  readonly timeline: readonly TimelineEntry[];
}

/** One end of a pair with what is needed to drive it. */
export class WakeEnd implements AsyncDisposable {
  readonly agent: LabAgent;
  readonly view: AgentView;
  readonly traffic: Traffic;
  readonly daemon: DaemonClient;

  private constructor(agent: LabAgent, traffic: Traffic) {
    this.agent = agent;
    this.traffic = traffic;
    this.view = new AgentView(agent.socket, () => {});
    this.daemon = createDaemonClient(agent.socket);
  }

  static async start(agent: LabAgent): Promise<WakeEnd> {
    return new WakeEnd(agent, await Traffic.start(agent.host));
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.view.close();
    await this.traffic[Symbol.asyncDispose]();
  }
}

/** Two agents that are put to sleep and woken again and again, by real packets of real programs. */
export class WakePair implements AsyncDisposable {
  readonly from: WakeEnd;
  readonly to: WakeEnd;

  private constructor(from: WakeEnd, to: WakeEnd) {
    this.from = from;
    this.to = to;
  }

  static async start(network: PerchNetwork, from: string, to: string): Promise<WakePair> {
    const ends = [await WakeEnd.start(network.agent(from)), await WakeEnd.start(network.agent(to))] as const;
    try {
      return await WakePair.of(...ends);
    } catch (error) {
      for (const end of ends) await end[Symbol.asyncDispose]();
      throw error;
    }
  }

  /** A pair of ends that are there already; disposing of it ends them too. */
  static async of(from: WakeEnd, to: WakeEnd): Promise<WakePair> {
    const pair = new WakePair(from, to);
    await pair.asleep();
    return pair;
  }

  /** How one end sees the other; undefined until its stream has told. */
  peerOf(end: WakeEnd): Peer | undefined {
    return end.view.find(end === this.from ? this.to.agent.name : this.from.agent.name);
  }

  /** Waits until both ends say Idle. */
  async asleep(timeoutMs = SLEEP_TIMEOUT): Promise<void> {
    const isIdle = (end: WakeEnd): boolean => this.peerOf(end)?.state === PeerState.IDLE;
    const names = `${this.from.agent.name} and ${this.to.agent.name}`;
    await waitUntil(() => isIdle(this.from) && isIdle(this.to), `${names} asleep`, timeoutMs);
  }

  /**
   * Puts the pair to sleep, from both ends at once: one that has just sent would call the other back. So does a handshake
   * that was still under way; then the pair is awake again, as it should be, and is asked once more.
   */
  async sleep(): Promise<void> {
    const deadline = performance.now() + SLEEP_TIMEOUT;
    const sleep = (end: WakeEnd, other: WakeEnd) => end.daemon.sleepPeer({ peer: other.agent.name });
    for (;;) {
      await Promise.all([sleep(this.from, this.to), sleep(this.to, this.from)]);
      try {
        return await this.asleep(SLEEP_CROSSING);
      } catch (error) {
        if (performance.now() > deadline) throw error;
      }
    }
  }

  /** Sends from one end into the sleeping pair. */
  async wake(protocol: "udp" | "tcp", options?: TrafficOptions, end: WakeEnd = this.from): Promise<WakeRecord> {
    const other = end === this.from ? this.to : this.from;
    const result = await end.traffic[protocol](other.agent.address, options);
    return { result, timeline: await this.story(end) };
  }

  /** What an end noted since its last wake, read from the daemon and not from the stream, which lags a moment. */
  async story(end: WakeEnd): Promise<readonly TimelineEntry[]> {
    const other = end === this.from ? this.to : this.from;
    const { timeline } = await end.daemon.explainPeer({ peer: other.agent.name });
    const start = timeline.findLastIndex(({ event }) => event === "wake");
    return timeline.slice(Math.max(0, start));
  }

  /** Waits until an end's packets take a direct path, and when that was, in ms since its wake. */
  async direct(end: WakeEnd = this.from, timeoutMs: Millis = 5000): Promise<Millis> {
    await waitUntil(() => this.peerOf(end)?.path?.path.case === "direct", "a direct path", timeoutMs);
    const entry = (await this.story(end)).find(({ event, detail }) => event === "path" && detail.startsWith("direct"));
    return entry?.sinceWakeMs ?? Number.NaN;
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.from[Symbol.asyncDispose]();
    await this.to[Symbol.asyncDispose]();
  }
}
