import assert from "node:assert/strict";
import { createServer } from "node:http";
import { after, afterEach, before, describe, test } from "node:test";
import type { Page } from "playwright-core";
import { keyOf, makePeers } from "#agent/daemon/testing/fake-agent.ts";
import { type Browser, skipWithoutChromium, startBrowser } from "./browser.ts";
import { startCuttablePort } from "./cuttable-port.ts";
import { type FakeDaemon, startFakeDaemon } from "./fake-daemon.ts";

/** Many, and more than the parts of a status stream hold. */
const MANY = 2000;

describe("the web page in Chromium", { skip: skipWithoutChromium(), timeout: 120_000 }, () => {
  let daemon: FakeDaemon;
  let browser: Browser;
  let page: Page;
  const extra: AsyncDisposable[] = [];

  before(async () => {
    daemon = await startFakeDaemon(makePeers(MANY));
    browser = await startBrowser(undefined, { flags: ["--host-resolver-rules=MAP rebind.test 127.0.0.1"] });
    page = browser.page;
    await page.goto(await daemon.link());
    await row("peer-1").waitFor();
  });
  after(async () => {
    for (const each of extra) await each[Symbol.asyncDispose]();
    await browser?.[Symbol.asyncDispose]();
    await daemon?.[Symbol.asyncDispose]();
  });
  afterEach(async () => {
    assert.deepEqual(browser.faults, [], "nothing failed in the page, nothing was stopped by its policy");
  });

  const row = (name: string) => page.locator(`[data-peer="${name}"]`);
  const view = (name: string) => page.getByRole("navigation").getByRole("button", { name }).click();
  const chip = (name: string) => page.getByRole("group").getByRole("button", { name: new RegExp(`^${name}`) });

  test("the token is out of the address at once, and opens nothing a second time", async () => {
    assert.equal(new URL(page.url()).hash, "");
    assert.equal(await page.evaluate("document.cookie"), "", "no script reads the cookie");
    const link = await daemon.link();
    const first = await browser.context.newPage();
    await first.goto(link);
    await first.getByRole("grid").waitFor();
    await first.close();
    const second = await browser.context.newPage();
    await second.goto(link);
    await second.getByText("this link was used or has expired").waitFor();
    assert.equal(await second.getByRole("grid").count(), 0);
    await second.close();
    browser.faults.length = 0;
  });

  test("a reload needs no new link, also after another tab was opened", async () => {
    await page.reload();
    await row("peer-1").waitFor();
  });

  test("a peer wakes by its button and its row changes without a reload", async () => {
    await page.evaluate("globalThis.stillHere = true");
    await row("peer-1").click();
    await page.getByRole("complementary").getByRole("button", { name: "Wake" }).click();
    await page.locator('[data-peer="peer-1"][data-state="Connecting"]').waitFor();
    daemon.agent.changePeer(keyOf(1), { state: "connected", latencyMs: 12.5, reason: "direct path proven" });
    await page.locator('[data-peer="peer-1"][data-state="Connected"]').waitFor();
    await page.getByRole("complementary").getByText("direct path proven").waitFor();
    await page.getByRole("complementary").getByRole("button", { name: "Sleep" }).click();
    await page.locator('[data-peer="peer-1"][data-state="Idle"]').waitFor();
    await page.getByRole("complementary").getByRole("button", { name: "Pin" }).click();
    await page.getByRole("complementary").getByRole("button", { name: "Unpin" }).waitFor();
    assert.equal(daemon.agent.peerStatus(keyOf(1))?.pinned, true);
    await row("peer-1").getByText("pinned").waitFor();
    assert.equal(await page.evaluate("globalThis.stillHere"), true);
    await page.getByRole("button", { name: "Close" }).click();
  });

  test("the drawer tells the path and the stages of a wake in milliseconds, and follows both", async () => {
    await row("peer-3").click();
    const drawer = page.getByRole("complementary");
    await drawer.getByText("203.0.113.7:51820 · srflx").waitFor();
    const stages = drawer.locator(".waterfall tbody tr");
    assert.deepEqual(
      (await stages.allInnerTexts()).map((text) => text.replace(/\s+/g, " ")),
      ["relay 42 ms", "direct 180 ms"],
    );
    const { timeline } = daemon.agent.peerStatus(keyOf(3))!;
    const at = timeline[0]!.at + 250;
    daemon.agent.changePeer(keyOf(3), {
      timeline: [...timeline, { at, event: "connected", detail: "handshake by relay", sinceWake: 250 }],
    });
    await drawer.getByText("connected in 250 ms").waitFor();
    assert.equal(await stages.count(), 3);
    await page.getByRole("button", { name: "Close" }).click();
  });

  test("the keyboard alone finds a peer, opens it, goes on to the next and comes back", async () => {
    await page.keyboard.press("/");
    await page.keyboard.type("PEER-10.perch 100.64");
    await page.getByText("1 of 2").waitFor();
    assert.equal(await page.getByRole("grid").getByRole("row").count(), 2, "titles and one peer");
    await page.getByLabel("Search peers").fill("");
    await page.getByRole("grid").focus();
    for (const key of ["Home", "ArrowDown", "ArrowDown", "ArrowUp"]) await page.keyboard.press(key);
    assert.equal(await selected(), "peer-2");
    await page.keyboard.press("Enter");
    await page.getByRole("complementary", { name: "peer-2" }).waitFor();
    await page.keyboard.press("ArrowDown");
    await page.getByRole("complementary", { name: "peer-3" }).waitFor();
    await page.keyboard.press("Escape");
    await page.getByRole("complementary").waitFor({ state: "detached" });
    await page.keyboard.press("End");
    await row(`peer-${MANY}`).waitFor();
    assert.equal(await selected(), `peer-${MANY}`);
    await page.keyboard.press("Home");
    await row("peer-1").waitFor();
  });

  const selected = () => page.locator('[role=row][aria-selected="true"]').getAttribute("data-peer");

  test("states filter and columns sort, by number where there are numbers", async () => {
    await chip("Connecting").click();
    await page.getByText(`${MANY / 4} of 2`).waitFor();
    const states = await page
      .locator("[data-state]")
      .evaluateAll((rows) => rows.map((each) => each.getAttribute("data-state")));
    assert.deepEqual([...new Set(states)], ["Connecting"]);
    await chip("Connecting").click();
    const name = page.getByRole("columnheader", { name: "Name" });
    await name.getByRole("button").click();
    assert.equal(await name.getAttribute("aria-sort"), "descending");
    await row(`peer-${MANY}`).waitFor();
    await name.getByRole("button").click();
    await row("peer-1").waitFor();
  });

  test("a peer that goes leaves the table, one that is renamed moves in it", async () => {
    daemon.agent.changePeer(keyOf(5), { fqdn: "aardvark.perch.test" });
    await row("aardvark").waitFor();
    assert.equal(await row("aardvark").getAttribute("aria-rowindex"), "2");
    daemon.agent.removePeer(keyOf(5));
    await row("aardvark").waitFor({ state: "detached" });
    await page
      .locator(".total")
      .getByText(/^1.999 peers$/)
      .waitFor();
  });

  test("the lazy switch acts at once, says who decided and gives the decision back", async () => {
    await view("Settings");
    const lazy = page.getByRole("switch", { name: "Lazy connections" });
    assert.equal(await lazy.getAttribute("aria-checked"), "true");
    await page.getByText("Decided by the network.").waitFor();
    await lazy.click();
    await page.locator('[role=switch][aria-checked="false"]').waitFor();
    await page.getByText("Decided by your setting.").waitFor();
    assert.deepEqual(
      daemon.agent.calls.filter((call) => call.startsWith("lazy")),
      ["lazy false"],
    );
    const decided = page.locator('[data-setting="enable-lazy-connection"]');
    assert.match(await decided.innerText(), /false\s+your setting/);
    await daemon.client.setLazy({ enabled: true });
    await page.locator('[role=switch][aria-checked="true"]').waitFor();
    await page.getByRole("button", { name: "Let the network decide" }).click();
    await page.getByText("Decided by the network.").waitFor();
    await view("Peers");
  });

  test("the overview counts states and wakes as they happen", async () => {
    await view("Overview");
    const wakes = page.locator(".numbers > div").nth(3).locator("strong");
    await page.getByRole("img", { name: /^Peers by state: now Connected/ }).waitFor();
    const before = Number(await wakes.innerText());
    const at = Date.now();
    const woken = { at, event: "wake", detail: "icmp 100.64.0.1 -> 100.64.0.9", sinceWake: 0 };
    const proven = { at: at + 33, event: "connected", detail: "handshake by relay", sinceWake: 33 };
    daemon.agent.changePeer(keyOf(9), { state: "connected", timeline: [woken, proven] });
    await wakes.getByText(String(before + 1), { exact: true }).waitFor();
    const latest = page.locator(".latest tbody tr").first();
    assert.match(await latest.innerText(), /peer-9\s+icmp 100.64.0.1 -> 100.64.0.9\s+33 ms/);
    await page.locator(".causes").getByText("Ping from here").waitFor();
    await view("Peers");
  });

  test("nothing is wider than a phone", async () => {
    await page.setViewportSize({ width: 390, height: 844 });
    for (const name of ["Peers", "Overview", "Settings"]) {
      await view(name);
      assert.equal(await page.evaluate("document.documentElement.scrollWidth"), 390, name);
    }
    await view("Peers");
    await row("peer-3").click();
    const box = await page.getByRole("complementary").boundingBox();
    assert.deepEqual([box?.x, box?.width], [0, 390], "the drawer covers the page");
    assert.equal(await page.evaluate("document.querySelector('aside').scrollWidth"), 390);
    await page.keyboard.press("Escape");
    await page.setViewportSize({ width: 1280, height: 800 });
  });

  test("a page of another origin reaches nothing, though the browser has the cookie", async () => {
    const { origin } = new URL(page.url());
    const foreign = createServer((_, response) =>
      response.writeHead(200, { "content-type": "text/html" }).end("<!doctype html><title>foreign</title>"),
    );
    await new Promise<void>((resolve) => foreign.listen(0, "127.0.0.1", resolve));
    after(() => {
      foreign.close();
      foreign.closeAllConnections();
    });
    const other = await browser.context.newPage();
    await other.goto(`http://127.0.0.1:${(foreign.address() as { port: number }).port}/`);
    const call = `${origin}/perch.daemon.v1.Daemon/SetLazy`;
    const calls = daemon.agent.calls.length;
    const refused = daemon.refusals.length;
    // Simple requests need no preflight, and carry the cookie: ports of one address are one site.
    const plain = `fetch(${JSON.stringify(call)}, { method: "POST", mode: "no-cors", credentials: "include", body: "{}" })`;
    await other.evaluate(`${plain}.then(() => "sent", () => "refused")`);
    const json = plain.replace('mode: "no-cors"', 'headers: { "content-type": "application/json" }');
    assert.equal(await other.evaluate(`${json}.then(() => "read", () => "refused")`), "refused");
    assert.deepEqual(
      daemon.refusals.slice(refused),
      [403, 405],
      "the plain one for its origin, the preflight of the other",
    );
    assert.equal(daemon.agent.calls.length, calls);
    const framed = `new Promise((resolve) => {
      const frame = document.createElement("iframe");
      frame.src = ${JSON.stringify(origin)};
      frame.onload = () => resolve(frame.contentDocument === null ? "opaque" : frame.contentDocument.title);
      document.body.append(frame);
    })`;
    assert.equal(await other.evaluate(framed), "opaque", "an error page stands in the frame");
    assert.ok(!other.frames().some((frame) => frame.url().startsWith(origin)));
    await other.close();
  });

  test("a foreign name for this machine is refused", async () => {
    const other = await browser.context.newPage();
    const answer = await other.goto(`http://rebind.test:${new URL(page.url()).port}/`);
    assert.equal(answer?.status(), 403);
    assert.equal(await other.locator("script").count(), 0);
    await other.close();
  });

  test("two daemons of one machine have a page each in one browser", async () => {
    const second = await startFakeDaemon(makePeers(3));
    extra.push(second);
    const other = await browser.context.newPage();
    await other.goto(await second.link());
    await other.getByText("3 peers").waitFor();
    await other.reload();
    await other.getByText("3 peers").waitFor();
    await page.reload();
    await row("peer-1").waitFor();
    await other.close();
  });
});

describe("a lost agent", { skip: skipWithoutChromium(), timeout: 60_000 }, () => {
  test("is told in a banner; what changed meanwhile comes alone when it is back", async () => {
    await using daemon = await startFakeDaemon(makePeers(MANY));
    const link = await daemon.link();
    await using port = await startCuttablePort(Number(new URL(link).port));
    await using browser = await startBrowser(undefined, {
      flags: [`--host-resolver-rules=MAP 127.0.0.1 127.0.0.1:${port.port}`],
    });
    const { page } = browser;
    await page.goto(link);
    await page.locator('[data-peer="peer-1"][data-state="Idle"]').waitFor();
    const whole = port.received();
    assert.ok(whole > 100 * MANY, `the page came by way of the port: ${whole} bytes`);

    port.cut();
    await page.getByRole("alert").getByText("The agent does not answer.").waitFor();
    daemon.agent.changePeer(keyOf(1), { state: "connected" });
    daemon.agent.removePeer(keyOf(2));
    await page.locator('[data-peer="peer-1"][data-state="Idle"]').waitFor();
    const before = port.received();
    port.mend();
    await page.getByRole("alert").waitFor({ state: "detached" });
    await page.locator('[data-peer="peer-1"][data-state="Connected"]').waitFor();
    await page.locator('[data-peer="peer-2"]').waitFor({ state: "detached" });
    const again = port.received() - before;
    assert.ok(again < 20_000, `${again} bytes for two changes of ${MANY} peers`);

    await daemon.stop();
    await page.getByRole("alert").getByText("perch ui").waitFor();
  });
});
