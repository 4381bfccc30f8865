import { Backoff } from "#base/backoff.ts";
import { messageOf, PerchError } from "#base/errors.ts";
import { formatPrefix } from "#base/ip.ts";
import type { Logger } from "#base/log.ts";
import type { Clock, Millis } from "#base/time.ts";
import type { AgentControl, AgentSettings, AgentStatus, LazySource } from "../control.ts";
import { DaemonError } from "./daemon-error.ts";
import {
  checkSettings,
  checkSetupKey,
  type ResolvedSettings,
  resolveSettings,
  type SettingValues,
  settingValue,
} from "./settings.ts";
import type { SettingsStore } from "./settings-store.ts";

/**
 * Failures that stay as they are until a person does something: another login, another setting. Everything else may pass, a
 * daemon that came up before its network, its server or a free port did must not stay down for good.
 */
const PERSON_NEEDED: ReadonlySet<string> = new Set([
  "needs-login",
  "permission-denied",
  "login-expired",
  "setup-key-invalid",
  "setup-key-malformed",
  "setting-missing",
  "setting-invalid",
  "value-invalid",
  "url-malformed",
  "unsupported-device",
  "key-malformed",
]);

export interface LifecycleDeps {
  readonly agent: AgentControl;
  readonly store: SettingsStore;
  readonly clock: Clock;
  readonly log: Logger;
  /** Settings in the daemon's own environment. */
  readonly environment: SettingValues;
  /** Takes settings that are the daemon's and not the agent's, before the tunnel changes. Its failure is that of the order. */
  readonly takeSettings?: (settings: ResolvedSettings) => Promise<void>;
}

export interface LifecycleOptions {
  /** Pause after the first failed attempt to come up by itself; doubles up to `retryCeiling`. */
  readonly retryStart?: Millis;
  readonly retryCeiling?: Millis;
}

export interface UpOrder {
  readonly flags: SettingValues;
  /** From the environment of the command. */
  readonly environment: SettingValues;
  readonly setupKey?: string | undefined;
}

interface Layers {
  readonly flag: SettingValues;
  readonly environment: SettingValues;
}

/**
 * Decides when the agent is up, and with which settings.
 *
 *   down --up--> coming up --map applied--> up --down--> down
 *     ^            |  ^                      |
 *     |   failed   |  '---- after a pause ---|  (only when the store says that it should be up)
 *     '------------'                         |
 *     '------------- deregister -------------'
 *
 * One order at a time: a newer one aborts an attempt under way (which fails with `superseded`) and waits for its cleanup.
 * What flags and the command's environment gave is stored once it worked, except lazy connections from an environment: an
 * environment is not a decision to keep.
 */
export class AgentLifecycle {
  readonly #deps: LifecycleDeps;
  readonly #backoff: Backoff;
  #layers: Layers;
  /** The order under way; aborted by the next one. */
  #current: AbortController | undefined;
  #last: Promise<unknown> = Promise.resolve();
  /** Settings the agent is up with. */
  #running: AgentSettings | undefined;
  #failure: string | undefined;
  #closed: Promise<void> | undefined;

  constructor(deps: LifecycleDeps, options: LifecycleOptions = {}) {
    this.#deps = deps;
    this.#layers = { flag: {}, environment: deps.environment };
    this.#backoff = new Backoff({
      start: options.retryStart ?? 1000,
      factor: 2,
      ceiling: options.retryCeiling ?? 60_000,
      jitter: 0.2,
    });
  }

  /** What is in force, and who decided it. */
  get settings(): ResolvedSettings {
    return resolveSettings({ ...this.#layers, setting: this.#deps.store.values });
  }

  /** Why the agent is not up although it should be. */
  get failure(): string | undefined {
    return this.#failure;
  }

  /**
   * Brings the agent up. Returns true when it was up with the same settings already. Changed settings take the tunnel down
   * and up again. `progress` gets a line for each thing that happened.
   */
  async up(order: UpOrder, signal: AbortSignal, progress: (line: string) => void): Promise<boolean> {
    const { layers, settings } = this.#accept(order);
    try {
      return await this.#up(order, layers, settings, signal, progress);
    } catch (error) {
      // It was up, or trying, before this order: that goes on with the settings that worked.
      if (!(error instanceof DaemonError && error.code === "superseded") || signal.aborted) this.resume();
      throw error;
    }
  }

  #up(
    order: UpOrder,
    layers: Layers,
    settings: AgentSettings,
    signal: AbortSignal,
    progress: (line: string) => void,
  ): Promise<boolean> {
    return this.#run(signal, async (running) => {
      const { agent, store, takeSettings } = this.#deps;
      await takeSettings?.(resolveSettings({ ...layers, setting: store.values }));
      if (agent.status().state === "up" && this.#running && sameSettings(this.#running, settings)) {
        this.#layers = layers;
        this.#keep(order);
        store.setWantUp(true);
        return true;
      }
      if (this.#running) {
        const changed = !sameSettings(this.#running, settings);
        progress(changed ? "taking the tunnel down to apply changed settings" : "starting again");
        this.#running = undefined;
        await agent.down();
      }
      await this.#bringUp(settings, running, progress);
      this.#layers = layers;
      this.#keep(order);
      store.setWantUp(true);
      return false;
    });
  }

  /** Registers and stores the settings; a tunnel that is up stays as it is. Returns true when the agent was up already. */
  login(order: UpOrder, signal: AbortSignal, progress: (line: string) => void): Promise<boolean> {
    const { settings } = this.#accept(order);
    return this.#run(signal, async (running) => {
      const { agent } = this.#deps;
      if (agent.status().state === "up") return true;
      progress(`registering at ${settings.managementUrl}`);
      await agent.login(settings, running);
      this.#keep(order);
      return false;
    });
  }

  /**
   * Takes the agent down and remembers that it shall stay so; throws `daemon-path` afterwards where it cannot. Returns true when it
   * was down before.
   */
  down(): Promise<boolean> {
    return this.#run(undefined, async () => {
      const { agent, store } = this.#deps;
      const already = !this.#running && agent.status().state === "down" && !store.wantUp;
      // First: a crash on the way must not bring it up again. A full disk must not keep it up.
      const unstored = failureOf(() => store.setWantUp(false));
      this.#running = undefined;
      this.#failure = undefined;
      await agent.down();
      if (unstored) {
        const { code, message } = unstored;
        throw new DaemonError(code, `the tunnel is down, and comes up again when the daemon starts: ${message}`);
      }
      return already;
    });
  }

  /** Forgets the registration on both sides. */
  deregister(): Promise<void> {
    return this.#run(undefined, async () => {
      await this.#deps.agent.deregister(toAgentSettings(this.settings, undefined));
      this.#running = undefined;
      this.#failure = undefined;
      this.#deps.store.setWantUp(false);
    });
  }

  /**
   * Comes up again after a start of the daemon, if it was up before; tries until it works, the failure is one that only a
   * person can mend, or another order comes. Works in the background, owned by `close`.
   */
  resume(): void {
    if (!this.#deps.store.wantUp || this.#closed) return;
    const { log } = this.#deps;
    this.#run(undefined, (signal) => this.#keepTrying(signal)).catch((error: unknown) => {
      if (!(error instanceof DaemonError && error.code === "superseded")) {
        log.error("cannot come up again, a person must act", { err: messageOf(error) });
      }
    });
  }

  async #keepTrying(signal: AbortSignal): Promise<void> {
    const { clock, log } = this.#deps;
    for (;;) {
      try {
        await this.#bringUp(toAgentSettings(this.settings, undefined), signal, (line) => log.info(line));
        this.#backoff.reset();
        return;
      } catch (error) {
        if (signal.aborted || (error instanceof PerchError && PERSON_NEEDED.has(error.code))) throw error;
        const delay = this.#backoff.next();
        log.warn("cannot come up again yet", { err: messageOf(error), retryInMs: Math.round(delay) });
        await sleep(clock, delay, signal);
      }
    }
  }

  /**
   * Switches lazy connections live and stores the switch; undefined leaves it to the network. A flag of the last `up` gives
   * way, an environment does not: then nothing changes now, and the answer says so.
   */
  setLazy(enabled: boolean | undefined): { readonly enabled: boolean; readonly source: LazySource } {
    const { agent, store } = this.#deps;
    if (enabled === undefined) store.remove("lazy");
    else store.merge({ lazy: enabled });
    this.#layers = { ...this.#layers, flag: { ...this.#layers.flag, lazy: undefined } };
    if (this.#layers.environment.lazy === undefined) {
      agent.setLazy(enabled);
      const lazy = enabled === undefined ? undefined : { enabled, source: "setting" as const };
      if (this.#running) this.#running = { ...this.#running, lazy };
    }
    const { lazy } = agent.status();
    return { enabled: lazy.enabled, source: lazy.source };
  }

  /** Takes the agent down without changing what the store wants; later orders fail with `superseded`. Idempotent. */
  close(): Promise<void> {
    if (!this.#closed) {
      const ended = this.#run(undefined, () => this.#deps.agent.down());
      this.#closed = ended;
    }
    return this.#closed;
  }

  #accept(order: UpOrder): { layers: Layers; settings: AgentSettings } {
    const flag = checkSettings(order.flags);
    const environment = {
      ...this.#deps.environment,
      ...withoutAbsent(checkSettings(order.environment, "environment: ")),
    };
    if (order.setupKey !== undefined) checkSetupKey(order.setupKey, "--setup-key");
    const layers = { flag, environment };
    const resolved = resolveSettings({ ...layers, setting: this.#deps.store.values });
    return { layers, settings: toAgentSettings(resolved, order.setupKey) };
  }

  #keep(order: UpOrder): void {
    this.#deps.store.merge({ ...withoutAbsent(order.environment), lazy: undefined, ...withoutAbsent(order.flags) });
  }

  async #bringUp(settings: AgentSettings, signal: AbortSignal, progress: (line: string) => void): Promise<void> {
    const { agent, log } = this.#deps;
    let before = agent.status();
    const unsubscribe = agent.onChange(() => {
      const now = agent.status();
      for (const line of describeProgress(before, now)) progress(line);
      before = now;
    });
    progress(`connecting to ${settings.managementUrl}`);
    try {
      await agent.up(settings, signal);
      this.#running = settings;
      this.#failure = undefined;
      const now = agent.status();
      for (const line of describeProgress(before, now)) progress(line);
      log.info("up", { interface: now.interfaceName, address: now.address && formatPrefix(now.address) });
    } catch (error) {
      this.#failure = messageOf(error);
      // Whatever got made on the way is taken away before the caller hears of it; `needs-login` is already an end.
      const { state } = agent.status();
      if (state !== "down" && state !== "needs-login") await agent.down();
      if (signal.aborted) throw abortReason(signal);
      throw error;
    } finally {
      unsubscribe();
    }
  }

  /** Runs one order after the earlier ones have ended, aborting the one under way. */
  #run<Result>(signal: AbortSignal | undefined, order: (signal: AbortSignal) => Promise<Result>): Promise<Result> {
    if (this.#closed) return Promise.reject(new DaemonError("superseded", "the daemon is stopping"));
    this.#current?.abort(new DaemonError("superseded", "a newer command took over"));
    const controller = new AbortController();
    this.#current = controller;
    const combined = signal ? AbortSignal.any([signal, controller.signal]) : controller.signal;
    const before = this.#last;
    const result = (async () => {
      await before;
      if (combined.aborted) throw abortReason(combined);
      return await order(combined);
    })();
    this.#last = result.then(
      () => {},
      () => {},
    );
    return result;
  }
}

function abortReason(signal: AbortSignal): DaemonError {
  if (signal.reason instanceof DaemonError) return signal.reason;
  return new DaemonError("superseded", "given up by the caller", { cause: signal.reason });
}

function withoutAbsent(values: SettingValues): SettingValues {
  return Object.fromEntries(Object.entries(values).filter(([, value]) => value !== undefined));
}

function failureOf(action: () => void): DaemonError | undefined {
  try {
    action();
    return undefined;
  } catch (error) {
    if (error instanceof DaemonError) return error;
    throw error;
  }
}

/** Throws DaemonError `setting-missing`. */
export function toAgentSettings(resolved: ResolvedSettings, setupKey: string | undefined): AgentSettings {
  const managementUrl = settingValue(resolved, "managementUrl");
  if (managementUrl === undefined) {
    throw new DaemonError("setting-missing", "no server is known yet: give --management-url URL");
  }
  const lazy = resolved.get("lazy");
  const dns = settingValue(resolved, "dns");
  return {
    managementUrl,
    setupKey,
    hostname: settingValue(resolved, "hostname")!,
    interfaceName: settingValue(resolved, "interfaceName")!,
    wireguardPort: settingValue(resolved, "wireguardPort")!,
    mtu: settingValue(resolved, "mtu")!,
    device: settingValue(resolved, "device")!,
    presharedKey: settingValue(resolved, "presharedKey"),
    ...(lazy && lazy.source !== "default" ? { lazy: { enabled: lazy.value === true, source: lazy.source } } : {}),
    inactivityThreshold: settingValue(resolved, "inactivityThreshold")!,
    forceRelay: settingValue(resolved, "forceRelay")!,
    dns: dns === undefined ? undefined : { enabled: dns },
    dnsWake: settingValue(resolved, "dnsWake")!,
  };
}

function sameSettings(a: AgentSettings, b: AgentSettings): boolean {
  return (
    a.managementUrl === b.managementUrl &&
    a.hostname === b.hostname &&
    a.interfaceName === b.interfaceName &&
    a.wireguardPort === b.wireguardPort &&
    a.mtu === b.mtu &&
    a.device === b.device &&
    a.presharedKey === b.presharedKey &&
    a.lazy?.enabled === b.lazy?.enabled &&
    a.inactivityThreshold === b.inactivityThreshold &&
    a.forceRelay === b.forceRelay &&
    a.dns?.enabled === b.dns?.enabled &&
    a.dnsWake === b.dnsWake
  );
}

/** What a person who waits for `perch up` wants to hear about a change. */
function describeProgress(before: AgentStatus, now: AgentStatus): readonly string[] {
  const lines: string[] = [];
  if (now.management.connected && !before.management.connected) lines.push(`connected to ${now.management.url}`);
  if (now.management.error && now.management.error !== before.management.error) {
    lines.push(`${now.management.url}: ${now.management.error}`);
  }
  if (now.fqdn && now.fqdn !== before.fqdn) lines.push(`known as ${now.fqdn}`);
  if (now.address && now.interfaceName && !(before.address && before.interfaceName)) {
    lines.push(`interface ${now.interfaceName} has ${formatPrefix(now.address)}`);
  }
  if (now.signal.connected && !before.signal.connected) lines.push(`signal connected at ${now.signal.url}`);
  return lines;
}

/** Resolves after the delay, rejects with the signal's reason as soon as it aborts. */
function sleep(clock: Clock, delay: Millis, signal: AbortSignal): Promise<void> {
  if (signal.aborted) return Promise.reject(abortReason(signal));
  const { promise, resolve, reject } = Promise.withResolvers<void>();
  const stop = (): void => {
    timer.cancel();
    reject(abortReason(signal));
  };
  const timer = clock.after(delay, () => {
    signal.removeEventListener("abort", stop);
    resolve();
  });
  signal.addEventListener("abort", stop, { once: true });
  return promise;
}
