import { readFileSync } from "node:fs";
import { type Command, Option } from "commander";
import {
  checkSetupKey,
  SETTING_NAMES,
  SETTINGS,
  type Setting,
  type SettingValues,
  settingsFromEnvironment,
} from "#agent/daemon/settings.ts";
import { messageOf } from "#base/errors.ts";
import { UsageError } from "./exit-codes.ts";
import { say } from "./terminal.ts";

/** Bytes of a setup key file that are looked at; a key has 36. */
const KEY_FILE_MAX_BYTES = 4096;

/** Adds the flags of all settings and of the setup key. */
export function withSettingFlags(command: Command): Command {
  for (const name of SETTING_NAMES) {
    const { flag, placeholder, help } = SETTINGS[name];
    const value = placeholder === "BOOL" ? "[BOOL]" : `<${placeholder}>`;
    command.addOption(new Option(`--${flag} ${value}`, help));
  }
  return command
    .option("--setup-key <KEY>", "registers this machine; visible to others in the process list")
    .option("--setup-key-file <FILE>", "reads the setup key from a file, - for standard input");
}

/** Values of the flags that were given. Throws DaemonError `value-invalid`, naming the flag. */
export function settingsFromFlags(options: Readonly<Record<string, unknown>>): SettingValues {
  const values: Record<string, unknown> = {};
  for (const name of SETTING_NAMES) {
    const setting = SETTINGS[name] as Setting<unknown>;
    const given = options[new Option(`--${setting.flag}`).attributeName()];
    // An optional value that was left out is `true`.
    if (given !== undefined) values[name] = given === true ? true : setting.parse(String(given), `--${setting.flag}`);
  }
  return values as SettingValues;
}

/** Values of PERCH_ and NB_ variables. A wrong PERCH_ one is an error, a wrong NB_ one is ignored as stock agents do. */
export function settingsFromVariables(): SettingValues {
  return settingsFromEnvironment(process.env, (error) => {
    if (!error.message.startsWith("NB_")) throw error;
    say(`perch: ${error.message}; it is ignored`);
  });
}

/** The setup key of `--setup-key` or `--setup-key-file`. Throws when both are given, or the key is none. */
export function setupKeyFrom(options: {
  readonly setupKey?: string;
  readonly setupKeyFile?: string;
}): string | undefined {
  const { setupKey, setupKeyFile } = options;
  if (setupKey !== undefined && setupKeyFile !== undefined) {
    throw new UsageError("--setup-key and --setup-key-file exclude each other");
  }
  if (setupKey !== undefined) return checkSetupKey(setupKey.trim(), "--setup-key");
  if (setupKeyFile === undefined) return undefined;
  let text: string;
  try {
    text = readFileSync(setupKeyFile === "-" ? 0 : setupKeyFile, "utf8");
  } catch (cause) {
    throw new UsageError(`--setup-key-file: ${messageOf(cause)}`);
  }
  return checkSetupKey(text.slice(0, KEY_FILE_MAX_BYTES).trim(), `the key in ${setupKeyFile}`);
}
