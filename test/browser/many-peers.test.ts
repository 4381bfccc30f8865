import assert from "node:assert/strict";
import { describe, test } from "node:test";
import { keyOf, makePeers } from "#agent/daemon/testing/fake-agent.ts";
import { skipWithoutChromium, startBrowser } from "./browser.ts";
import { startFakeDaemon } from "./fake-daemon.ts";
import { measureScrolling } from "./scrolling.ts";

const PEERS = 10_000;
/** Of a window of 800 pixels: 17 rows in sight and those kept ready around them. */
const ROWS_MAX = 60;

describe("a table of 10,000 peers", { skip: skipWithoutChromium(), timeout: 90_000 }, () => {
  test("scrolls with a few dozen rows in the document while peers change, and shows each change", async (t) => {
    await using daemon = await startFakeDaemon(makePeers(PEERS));
    await using browser = await startBrowser();
    const { page } = browser;
    await page.goto(await daemon.link());
    await page.getByText(/^10.000 peers$/).waitFor();
    const churn = setInterval(() => {
      const latencyMs = Math.random() * 90;
      for (let index = 1; index <= 20; index++) daemon.agent.changePeer(keyOf(index), { latencyMs });
    }, 200);
    t.after(() => clearInterval(churn));
    const result = await measureScrolling(page, 5, 60);
    clearInterval(churn);
    t.diagnostic(
      `${(result.frames / result.seconds).toFixed(1)} frames per second; between frames ${result.median.toFixed(1)} ms ` +
        `(95 %: ${result.p95.toFixed(1)} ms, most ${result.worst.toFixed(1)} ms); ${result.rowsMost} rows at most, ` +
        `${result.blank} frames with a gap`,
    );
    assert.ok(result.rowsMost <= ROWS_MAX, `${result.rowsMost} rows in the document`);
    assert.equal(result.blank, 0, "every frame has its rows");
    // How many frames there are tells of the machine and what else it does; a page that stands would show none.
    assert.ok(result.frames / result.seconds >= 10, `${result.frames} frames in ${result.seconds} s`);

    await page.getByLabel("Search peers").fill("peer-9999");
    await page.locator('[data-peer="peer-9999"]').waitFor();
    daemon.agent.changePeer(keyOf(9999), { state: "idle" });
    await page.locator('[data-peer="peer-9999"][data-state="Idle"]').waitFor();
    assert.deepEqual(browser.faults, []);
  });
});
