import { accessSync, constants, readFileSync, renameSync, rmdirSync } from "node:fs";
import { dirname, join } from "node:path";
import { z } from "zod";
import { writeFileAtomically } from "#base/atomic-file.ts";
import type { Logger } from "#base/log.ts";
import { makeDirectory } from "#base/make-directory.ts";
import { DaemonError } from "./daemon-error.ts";
import { checkSettings, SETTING_NAMES, type SettingName, type SettingValues } from "./settings.ts";

/**
 * Makes the state directory (0700) where it is missing. Disposing takes it away again if it was made here and is still empty.
 * Throws DaemonError `daemon-path`.
 */
export function makeStateDir(path: string): Disposable {
  try {
    const made = makeDirectory(path, 0o700);
    accessSync(path, constants.R_OK | constants.W_OK | constants.X_OK);
    return { [Symbol.dispose]: () => made !== undefined && removeEmpty(path, made) };
  } catch (cause) {
    const { code, message } = cause as NodeJS.ErrnoException;
    const hint = code === "EACCES" || code === "EPERM" ? "; run it as root, or choose another --state-dir" : "";
    throw new DaemonError("daemon-path", `cannot use the state directory ${path}: ${message}${hint}`, { cause });
  }
}

/** Removes a directory and those above it up to `top`, as long as they are empty. */
function removeEmpty(path: string, top: string): void {
  try {
    rmdirSync(path);
  } catch {
    return;
  }
  if (path !== top) removeEmpty(dirname(path), top);
}

/** File in the state directory. */
export const SETTINGS_FILE = "settings.json";

/**
 * What the daemon remembers. Unknown keys belong to a newer or older Perch and are written back as they were read; a known
 * key with a wrong value is reported and ignored.
 */
const StoredSchema = z.looseObject({
  version: z.number().default(1),
  /** The agent was up when the daemon ended, and comes up again when it starts. */
  wantUp: z.boolean().catch(false),
  settings: z.looseObject({}).catch({}),
});
type Stored = z.infer<typeof StoredSchema>;

const VALUE_SCHEMAS: { readonly [Name in SettingName]: z.ZodType } = {
  managementUrl: z.string(),
  hostname: z.string(),
  interfaceName: z.string(),
  wireguardPort: z.number(),
  mtu: z.number(),
  device: z.string(),
  presharedKey: z.string(),
  lazy: z.boolean(),
  inactivityThreshold: z.number(),
  forceRelay: z.boolean(),
  dns: z.boolean(),
  dnsWake: z.boolean(),
  metrics: z.string(),
};

/**
 * The settings file (0600). Each change is written to a new file, synced and renamed over the old one, so that a crash or a
 * full disk leaves the old or the new content, never half of one.
 */
export class SettingsStore {
  readonly path: string;
  readonly #log: Logger;
  #stored: Stored;
  #values: SettingValues;

  /** Reads `settings.json` of a directory that exists. Throws DaemonError `daemon-path`. */
  constructor(stateDir: string, log: Logger) {
    this.path = join(stateDir, SETTINGS_FILE);
    this.#log = log;
    try {
      this.#stored = this.#read();
    } catch (cause) {
      throw new DaemonError("daemon-path", `cannot read ${this.path}: ${(cause as Error).message}`, { cause });
    }
    this.#values = this.#valid();
  }

  get wantUp(): boolean {
    return this.#stored.wantUp;
  }

  /** Stored values within their limits. */
  get values(): SettingValues {
    return this.#values;
  }

  #valid(): SettingValues {
    const values: Record<string, unknown> = {};
    for (const name of SETTING_NAMES) {
      const raw = this.#stored.settings[name];
      if (raw === undefined) continue;
      const parsed = VALUE_SCHEMAS[name].safeParse(raw);
      try {
        if (!parsed.success) throw new DaemonError("value-invalid", `${name} has the wrong type`);
        Object.assign(values, checkSettings({ [name]: parsed.data } as SettingValues, ""));
      } catch (error) {
        this.#log.warn("a stored setting is ignored", { path: this.path, name, err: (error as Error).message });
      }
    }
    return values as SettingValues;
  }

  /** Keeps what `values` gives on top of what is stored; an empty text removes. Throws DaemonError `daemon-path`. */
  merge(values: SettingValues): void {
    const settings: Record<string, unknown> = { ...this.#stored.settings };
    for (const name of SETTING_NAMES) {
      const value = values[name];
      if (value === "") delete settings[name];
      else if (value !== undefined) settings[name] = value;
    }
    this.#write({ ...this.#stored, settings });
  }

  remove(name: SettingName): void {
    const settings: Record<string, unknown> = { ...this.#stored.settings };
    delete settings[name];
    this.#write({ ...this.#stored, settings });
  }

  setWantUp(wantUp: boolean): void {
    if (wantUp !== this.#stored.wantUp) this.#write({ ...this.#stored, wantUp });
  }

  #read(): Stored {
    let text: string;
    try {
      text = readFileSync(this.path, "utf8");
    } catch (error) {
      if ((error as NodeJS.ErrnoException).code === "ENOENT")
        return StoredSchema.parse({ wantUp: false, settings: {} });
      throw error;
    }
    try {
      return StoredSchema.parse(JSON.parse(text));
    } catch (error) {
      // Written by hand or by a failing disk: kept for the owner to look at, and no reason to keep the machine offline.
      const aside = `${this.path}.unreadable`;
      renameSync(this.path, aside);
      this.#log.error("the settings file is unreadable and was set aside", {
        path: this.path,
        aside,
        err: (error as Error).message,
      });
      return StoredSchema.parse({ wantUp: false, settings: {} });
    }
  }

  #write(next: Stored): void {
    try {
      writeFileAtomically(this.path, `${JSON.stringify(next, undefined, 2)}\n`);
    } catch (cause) {
      throw new DaemonError("daemon-path", `cannot write ${this.path}: ${(cause as Error).message}`, { cause });
    }
    this.#stored = next;
    this.#values = this.#valid();
  }
}
