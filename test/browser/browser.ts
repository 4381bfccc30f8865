import { existsSync, mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { type BrowserContext, chromium, type Page } from "playwright-core";

/** Debian's; playwright-core brings none. */
export const CHROMIUM = "/usr/bin/chromium";

/** Nothing of the browser's own on the network, and no sandbox, which root cannot have. */
const FLAGS = [
  "--headless",
  "--no-sandbox",
  "--disable-gpu",
  "--disable-quic",
  "--no-first-run",
  "--disable-background-networking",
  "--disable-component-update",
  "--disable-sync",
];

export interface View {
  readonly width: number;
  readonly height: number;
  readonly scheme?: "light" | "dark";
  /** Device pixels per pixel. */
  readonly scale?: number;
}

/** Why tests in a browser cannot run here; false when they can. */
export function skipWithoutChromium(): string | false {
  return existsSync(CHROMIUM) ? false : "needs the Debian package chromium";
}

/** A browser with a profile of its own. */
export interface Browser extends AsyncDisposable {
  readonly context: BrowserContext;
  readonly page: Page;
  /** What the page could not do: exceptions, and what its security policy stopped. */
  readonly faults: string[];
}

export interface BrowserOptions {
  readonly flags?: readonly string[];
  /** Runs the browser's command, for one in another network namespace. */
  readonly executable?: string;
}

export async function startBrowser(
  view: View = { width: 1280, height: 800 },
  { flags = [], executable = CHROMIUM }: BrowserOptions = {},
): Promise<Browser> {
  const profile = mkdtempSync(join(tmpdir(), "perch-browser-"));
  await using undo = new AsyncDisposableStack();
  undo.defer(() => rmSync(profile, { recursive: true, force: true, maxRetries: 5 }));
  const context = await chromium.launchPersistentContext(profile, {
    executablePath: executable,
    args: [...FLAGS, ...flags],
    // Ours are above.
    chromiumSandbox: false,
    viewport: { width: view.width, height: view.height },
    deviceScaleFactor: view.scale ?? 1,
    colorScheme: view.scheme ?? "light",
    timeout: 30_000,
  });
  undo.defer(() => context.close());
  context.setDefaultTimeout(10_000);
  const page = context.pages()[0] ?? (await context.newPage());
  const faults: string[] = [];
  page.on("pageerror", (error) => faults.push(`exception: ${error.message}`));
  page.on("console", (message) => {
    if (message.type() === "error") faults.push(`console: ${message.text()}`);
  });
  const owned = undo.move();
  return { context, page, faults, [Symbol.asyncDispose]: () => owned.disposeAsync() };
}
