import { spawn } from "node:child_process";
import { accessSync, constants, mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { delimiter, join } from "node:path";
import { setTimeout as pause } from "node:timers/promises";
import { Command } from "commander";
import { type DaemonOptions, withDaemon, withDaemonOption } from "./daemon-connection.ts";
import { UsageError } from "./exit-codes.ts";
import { print, say } from "./terminal.ts";

interface UiOptions extends DaemonOptions {
  readonly port?: number;
  readonly open: boolean;
  readonly json?: boolean;
}

/** How long a browser that starts may take to read the file that leads it to the page. */
const BROWSER_PATIENCE_MS = 20_000;

export function uiCommand(): Command {
  return withDaemonOption(new Command("ui"))
    .description("Opens the agent's web page, which only this machine reaches. The link it prints opens the page once.")
    .option("--port <PORT>", "TCP port on loopback (default: the one in use, or any free one)", parsePort)
    .option("--no-open", "print the link, start no browser")
    .option("--json", "one line of JSON; starts no browser")
    .addHelpText(
      "after",
      [
        "",
        "Examples:",
        "  perch ui                          print the link, and open it where there is a desktop",
        "  perch ui --no-open --port 7400    from elsewhere: ssh -L 7400:127.0.0.1:7400 HOST, then the link",
      ].join("\n"),
    )
    .action(async (options: UiOptions) => {
      const link = await withDaemon(options, (client) => client.openUi({ port: options.port ?? 0 }));
      if (options.json)
        return print(JSON.stringify({ url: link.url, expiresAt: new Date(link.expiresAt).toISOString() }));
      print(link.url);
      const minutes = Math.round((link.expiresAt - Date.now()) / 60_000);
      say(`The link opens the page once, within ${minutes} minutes.`);
      if (options.open && hasDesktop(process.env)) await openBrowser(link.url, process.env);
    });
}

function parsePort(text: string): number {
  if (!/^\d{1,5}$/.test(text) || Number(text) > 65_535)
    throw new UsageError(`--port must be a whole number 0 to 65535, got ${JSON.stringify(text)}`);
  return Number(text);
}

/** Root's browser would run as root, in a desktop that is somebody else's. */
export function hasDesktop(environment: NodeJS.ProcessEnv, uid = process.getuid?.()): boolean {
  if (uid === 0 || !(environment.DISPLAY || environment.WAYLAND_DISPLAY)) return false;
  return (environment.PATH ?? "").split(delimiter).some((folder) => {
    try {
      accessSync(join(folder, "xdg-open"), constants.X_OK);
      return true;
    } catch {
      return false;
    }
  });
}

/**
 * Opens a file that leads on to the link, not the link itself: other users of the machine see the arguments of every process,
 * and the link is a key.
 */
export async function openBrowser(
  url: string,
  environment: NodeJS.ProcessEnv,
  patience = BROWSER_PATIENCE_MS,
): Promise<void> {
  const interrupted = new AbortController();
  const interrupt = (): void => interrupted.abort();
  process.once("SIGINT", interrupt).once("SIGTERM", interrupt);
  const folder = mkdtempSync(join(environment.XDG_RUNTIME_DIR || tmpdir(), "perch-ui-"));
  try {
    const file = join(folder, "open.html");
    writeFileSync(file, `<!doctype html><meta http-equiv="refresh" content="0; url=${url}"><title>Perch</title>\n`, {
      mode: 0o600,
    });
    const opener = spawn("xdg-open", [file], { stdio: "ignore", detached: true, env: environment });
    opener.once("error", (error) => say(`perch: no browser could be started: ${error.message}`));
    opener.unref();
    await pause(patience, undefined, { signal: interrupted.signal }).catch(() => {});
  } finally {
    process.off("SIGINT", interrupt).off("SIGTERM", interrupt);
    rmSync(folder, { recursive: true, force: true });
  }
}
