/**
 * Takes the pictures of docs/images: `scripts/node test/browser/screenshots.ts [FOLDER]`. Run by hand when the page has changed.
 */
import { join } from "node:path";
import type { PeerStatus, TimelineEntry } from "#agent/control.ts";
import { keyOf } from "#agent/daemon/testing/fake-agent.ts";
import type { IpAddress } from "#base/ip.ts";
import { startBrowser, type View } from "./browser.ts";
import { startFakeDaemon } from "./fake-daemon.ts";

const FOLDER = process.argv[2] ?? join(import.meta.dirname, "../../docs/images");
const PEERS = 240;
const SITES = ["berlin", "lisbon", "osaka", "quito"];
const ROLES = ["build", "camera", "db", "edge", "laptop", "metrics", "nas", "printer", "router", "web"];
const MINUTE = 60_000;

/** The same network each time, a day in the life of which the timelines tell. */
function makeNetwork(now: number): PeerStatus[] {
  let seed = 7;
  const chance = (): number => {
    seed = (seed * 1_103_515_245 + 12_345) % 2_147_483_648;
    return seed / 2_147_483_648;
  };
  const pick = <Item>(items: readonly Item[]): Item => items[Math.floor(chance() * items.length)]!;
  return Array.from({ length: PEERS }, (_, index) => {
    const name = `${ROLES[index % ROLES.length]}-${String(1 + Math.floor(index / ROLES.length)).padStart(2, "0")}`;
    const address = `100.64.${(index + 2) >> 8}.${(index + 2) & 255}` as IpAddress;
    const luck = chance();
    const state = luck < 0.16 ? "connected" : luck < 0.175 ? "connecting" : "idle";
    const isDirect = chance() < 0.8;
    const latency = 4 + chance() * 90;
    const causes = [
      `tcp 100.64.0.1:${40_000 + index} -> ${address}:22`,
      `tcp 100.64.0.1:${41_000 + index} -> ${address}:443`,
      `udp 100.64.0.1:${42_000 + index} -> ${address}:53`,
      `icmp 100.64.0.1 -> ${address}`,
      "its offer",
      "its handshake over the relay",
      "perch peers wake",
    ];
    const timeline: TimelineEntry[] = [];
    const wakes = state !== "idle" ? 1 + Math.floor(chance() * 3) : chance() < 0.5 ? 1 : 0;
    for (let wake = wakes; wake > 0; wake--) {
      const isLast = wake === 1;
      const at = now - (isLast && state !== "idle" ? 3 + chance() * 40 : wake * 180 + chance() * 170) * MINUTE;
      const relay = 28 + chance() * 60;
      const connected = relay + 12 + chance() * 40;
      timeline.push({ at, event: "wake", detail: pick(causes), sinceWake: 0 });
      timeline.push({ at: at + 2, event: "offer-sent", detail: "rels://relay.example.com", sinceWake: 1.4 });
      if (isLast && state === "connecting") continue;
      timeline.push({ at: at + relay, event: "answer", detail: "ICE and relay", sinceWake: relay });
      timeline.push({ at: at + connected, event: "connected", detail: "handshake by relay", sinceWake: connected });
      const direct = connected + 35 + chance() * 120;
      if (isDirect) timeline.push({ at: at + direct, event: "path", detail: "direct host/srflx", sinceWake: direct });
      if (!isLast || state === "idle")
        timeline.push({
          at: at + 22 * MINUTE,
          event: "sleep",
          detail: "no traffic for 15 min, agreed",
          sinceWake: 22 * MINUTE,
        });
    }
    const awake = state !== "idle";
    return {
      key: keyOf(index + 1),
      fqdn: `${name}.${SITES[index % SITES.length]}.example.com`,
      addresses: [address],
      state,
      reason: !awake
        ? timeline.length > 0
          ? "no traffic for 15 min, agreed"
          : "asleep, no traffic yet"
        : state === "connecting"
          ? `woken by ${timeline.findLast(({ event }) => event === "wake")!.detail}`
          : isDirect
            ? "direct path proven"
            : "no direct path found, relayed",
      since: timeline.at(-1)?.at ?? now - 9 * 60 * MINUTE,
      lazy: { lazy: true, why: "nothing speaks against it" },
      pinned: index === 22,
      agentVersion: "0.76.0",
      path:
        state !== "connected"
          ? { kind: "none" }
          : isDirect
            ? {
                kind: "direct",
                endpoint: { address: `203.0.113.${index % 250}` as IpAddress, port: 51_820 },
                localKind: "host",
                remoteKind: "srflx",
                local: { address: "192.168.1.20" as IpAddress, port: 51_820 },
              }
            : { kind: "relay", server: "rels://relay.example.com" },
      ...(state === "connected" ? { latencyMs: latency, relayServer: "rels://relay.example.com" } : {}),
      lastHandshake: state === "connected" ? now - chance() * 2 * MINUTE : 0,
      rxBytes: state === "connected" ? Math.floor(chance() ** 4 * 4e8) + 4000 : 0,
      txBytes: state === "connected" ? Math.floor(chance() ** 4 * 9e7) + 3000 : 0,
      routes: index % 10 === 8 ? [{ address: `10.${20 + index}.0.0` as IpAddress, bits: 16 }] : [],
      timeline,
    } satisfies PeerStatus;
  });
}

async function main(): Promise<void> {
  const network = makeNetwork(Date.now());
  await using daemon = await startFakeDaemon(network);
  const { agent } = daemon;
  const shown = network.find(({ state, path }) => state === "connected" && path.kind === "direct")!;
  let { rxBytes, txBytes } = shown;
  const traffic = setInterval(() => {
    const beat = Math.sin(Date.now() / 4000) + 1.2;
    rxBytes += Math.floor(90_000 * beat);
    txBytes += Math.floor(21_000 * beat * Math.random());
    agent.changePeer(shown.key, { rxBytes, txBytes, latencyMs: 21 + 3 * beat + Math.random() * 2 });
  }, 250);
  const churn = setInterval(() => {
    const peer = network[Math.floor(Math.random() * 60)]!;
    if (peer.state === "idle") agent.changePeer(peer.key, { state: Math.random() < 0.7 ? "connected" : "idle" });
  }, 1500);

  const light: View = { width: 1280, height: 800, scale: 1.5 };
  const phone: View = { width: 390, height: 844, scale: 2 };
  const take = async (
    view: View,
    shots: readonly (readonly [name: string, open: string | undefined])[],
  ): Promise<void> => {
    await using browser = await startBrowser(view);
    const { page } = browser;
    await page.goto(await daemon.link());
    await page.getByRole("row").nth(3).waitFor();
    for (const [name, open] of shots) {
      if (open === "drawer") {
        await page.getByRole("button", { name: "Peers" }).click();
        await page.getByLabel("Search peers").fill(shown.fqdn);
        await page
          .locator(`[data-peer="${shown.fqdn.split(".")[0]}"]`)
          .first()
          .click();
        await page.getByLabel("Search peers").fill("");
        await page.getByRole("heading", { level: 2 }).hover();
        await page.getByRole("heading", { level: 2 }).click();
        await page.locator(".waterfall").waitFor();
        await page.waitForTimeout(9000);
      } else if (open !== undefined) {
        const close = page.getByRole("button", { name: "Close" });
        if (await close.isVisible()) await close.click();
        await page.getByRole("button", { name: open, exact: true }).click();
        await page.waitForTimeout(open === "Overview" ? 6000 : 300);
      } else await page.waitForTimeout(500);
      await page.screenshot({ path: join(FOLDER, `${name}.png`) });
    }
    if (browser.faults.length > 0) throw new Error(browser.faults.join("\n"));
  };
  try {
    await take(light, [
      ["web-peers-light", undefined],
      ["web-peer-light", "drawer"],
      ["web-overview-light", "Overview"],
      ["web-settings-light", "Settings"],
    ]);
    await take({ ...light, scheme: "dark" }, [
      ["web-peer-dark", "drawer"],
      ["web-overview-dark", "Overview"],
    ]);
    await take(phone, [
      ["web-peers-phone", undefined],
      ["web-peer-phone", "drawer"],
      ["web-overview-phone", "Overview"],
    ]);
  } finally {
    clearInterval(traffic);
    clearInterval(churn);
  }
}

await main();
