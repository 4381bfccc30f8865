import assert from "node:assert/strict";
import { chmodSync, mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { after, before, describe, test } from "node:test";
import { createLab, type Lab } from "../../lab/lab.ts";
import { NAT } from "../../lab/nat.ts";
import { type LabAgent, PerchNetwork } from "../../lab/perch-network.ts";
import { skipWithoutLab } from "../../lab/rootless.ts";
import { type Browser, CHROMIUM, skipWithoutChromium, startBrowser } from "./browser.ts";

const PEERS = ["birch", "cedar"];
const AGENTS = ["alder", ...PEERS];

describe("the page of a real agent", {
  skip: skipWithoutChromium() || (await skipWithoutLab()),
  timeout: 110_000,
}, () => {
  let lab: Lab;
  let network: PerchNetwork;
  let alder: LabAgent;
  let browser: Browser;
  const folder = mkdtempSync(join(tmpdir(), "perch-browser-lab-"));

  before(async () => {
    const site = (name: string) => ({ name, latencyMs: 10 });
    lab = await createLab({
      sites: [site("hub"), ...AGENTS.map((name) => ({ ...site(name), nat: NAT.portRestricted }))],
      hosts: ["hub", ...AGENTS].map((name) => ({ name, site: name })),
    });
    network = await PerchNetwork.start(lab, { server: "hub", agents: AGENTS });
    alder = network.agent("alder");
    // The page is on the loopback of the agent's machine, and nowhere else.
    const executable = join(folder, "chromium");
    writeFileSync(executable, `#!/bin/sh\nexec ip netns exec ${alder.host.namespace} ${CHROMIUM} "$@"\n`);
    chmodSync(executable, 0o755);
    browser = await startBrowser(undefined, { executable });
  });
  after(async () => {
    await browser?.[Symbol.asyncDispose]();
    await network?.close();
    await lab?.close();
    rmSync(folder, { recursive: true, force: true });
  });

  const inState = (name: string, state: string) => browser.page.locator(`[data-peer="${name}"][data-state="${state}"]`);
  const statuses = async () => (await alder.status()).peers.details.map(({ status }) => status);

  test("the link of perch ui opens it; a ping wakes a peer and its row changes, with its path and its wake", async () => {
    const { page } = browser;
    const { url } = JSON.parse(await alder.mustPerch(["ui", "--json"])) as { readonly url: string };
    assert.match(url, /^http:\/\/127\.0\.0\.1:\d+\/#token=[\w-]{43}$/);
    await page.goto(url);
    for (const name of PEERS) await inState(name, "Idle").waitFor();

    const { code } = await alder.host.exec("ping", ["-c", "1", "-W", "5", network.agent("birch").address]);
    assert.equal(code, 0);
    await inState("birch", "Connected").waitFor();
    await inState("cedar", "Idle").waitFor();
    await page.locator('[data-peer="birch"]').click();
    const drawer = page.getByRole("complementary");
    await drawer
      .getByText(/^connected in \d/)
      .first()
      .waitFor();
    await drawer
      .locator(".waterfall")
      .getByText(/^icmp 100\./)
      .first()
      .waitFor();
    assert.ok((await drawer.locator(".waterfall tbody tr").count()) >= 2);
    await drawer.getByText("Direct", { exact: true }).waitFor({ timeout: 20_000 });
    await drawer.getByRole("button", { name: "Sleep" }).click();
    await drawer
      .getByText(/^(It stays awake|no traffic|put to sleep|perch peers sleep)/)
      .first()
      .waitFor();
    // Who had traffic a moment ago refuses (docs/adr/0004-agreed-sleep.md).
    await page.waitForTimeout(2500);
    if (await inState("birch", "Connected").isVisible()) await drawer.getByRole("button", { name: "Sleep" }).click();
    await inState("birch", "Idle").waitFor();
    await page.keyboard.press("Escape");
  });

  test("the lazy switch moves all peers, and perch status agrees", async () => {
    const { page } = browser;
    await page.getByRole("button", { name: "Settings" }).click();
    const lazy = page.getByRole("switch", { name: "Lazy connections" });
    await lazy.click();
    await page.getByText("Decided by your setting.").waitFor();
    await page.getByRole("button", { name: "Peers" }).click();
    for (const name of PEERS) await inState(name, "Connected").waitFor({ timeout: 20_000 });
    assert.deepEqual(await statuses(), ["Connected", "Connected"]);
    const { lazyConnectionEnabled } = JSON.parse(await alder.mustPerch(["status", "--json"])) as {
      readonly lazyConnectionEnabled: boolean;
    };
    assert.equal(lazyConnectionEnabled, false);

    await alder.mustPerch(["lazy", "on"]);
    await page.getByRole("button", { name: "Settings" }).click();
    await page.locator('[role=switch][aria-checked="true"]').waitFor();
    await page.getByRole("button", { name: "Peers" }).click();
    await page.locator('[data-peer="birch"]').click();
    await page.getByText(/^May sleep/).waitFor();
    assert.deepEqual(browser.faults, []);
  });

  test("nothing of the page is on the network: its port answers on loopback alone", async () => {
    const port = new URL(browser.page.url()).port;
    const { stdout } = await alder.host.exec("ss", ["-Hltn", `sport = :${port}`]);
    const addresses = stdout
      .trim()
      .split("\n")
      .map((line) => line.trim().split(/\s+/)[3]);
    assert.deepEqual(addresses.sort(), [`127.0.0.1:${port}`, `[::1]:${port}`]);
  });
});
