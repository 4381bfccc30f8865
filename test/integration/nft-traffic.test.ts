import assert from "node:assert/strict";
import { test } from "node:test";
import { setTimeout as sleep } from "node:timers/promises";
import type { SourceRule } from "#wireguard/filter.ts";
import { root } from "./data-plane/checks.ts";
import {
  Chatter,
  FAMILIES,
  fromPeer,
  openTcp,
  openUdp,
  PEER,
  refusedUdp,
  SILENCE_MS,
  serve,
  tcpTo,
  udpTo,
} from "./filter-traffic.ts";
import { FilteredCable } from "./nft/cable.ts";

async function filtered(cable: FilteredCable, ...rules: SourceRule[]): Promise<void> {
  cable.rules.set({ inbound: fromPeer(...rules), otherwise: "drop" });
  await cable.rules.settled();
}

test(
  "by nftables, a port that a rule opens answers, others are silent, and what this machine asks is answered",
  root,
  async () => {
    await using cable = await FilteredCable.start();
    const { a, b } = cable;
    await Promise.all([serve(a, 7001), serve(b, 7001, 7002)]);
    await filtered(cable, openTcp(7001), openUdp(7002));
    for (const [to, from] of FAMILIES) {
      assert.deepEqual(
        await Promise.all([
          tcpTo(a, to, 7001),
          tcpTo(a, to, 7002, SILENCE_MS),
          udpTo(a, to, 7001, 100, SILENCE_MS),
          udpTo(a, to, 7002),
          udpTo(a, to, 7002, 9000),
          tcpTo(b, from, 7001),
          tcpTo(b, from, 7009),
          udpTo(b, from, 7001),
          udpTo(b, from, 7001, 9000),
        ]),
        ["connected", "silence", -1, 100, 9000, "connected", "refused", 100, 9000],
      );
      await b.exec("ping", "-c", "1", "-W", "5", from);
      await assert.rejects(a.exec("ping", "-c", "1", "-W", "0.3", to), "no rule lets a ping in");
      assert.equal(await refusedUdp(b, from), "ECONNREFUSED");
    }
  },
);

test(
  "by nftables, a change of the rules ends the connections that they do not allow any more, and no others",
  root,
  async () => {
    await using cable = await FilteredCable.start();
    const { a, b } = cable;
    await serve(b, 7001, 7002);
    await filtered(cable, openTcp(7001), openTcp(7002));
    const chatter = new Chatter(a, "10.77.0.2", 7001, 7002);
    assert.deepEqual([await chatter.grows(0), await chatter.grows(1)], [true, true]);
    cable.rules.setSource(PEER[0]!, [openTcp(7001)]);
    await cable.rules.settled();
    await sleep(200);
    const closed = chatter.count(1);
    assert.equal(await chatter.grows(0), true);
    assert.equal(chatter.count(1), closed, "nothing comes back of the connection that is not allowed");
    cable.rules.setSource(PEER[0]!, [openTcp(7001), openTcp(7002)]);
    assert.deepEqual([await chatter.grows(0), await chatter.grows(1)], [true, true], "the kernels kept the connection");
    cable.rules.set(undefined);
    await cable.rules.settled();
    assert.deepEqual([await chatter.grows(0), await chatter.grows(1)], [true, true]);
  },
);

test(
  "of connections older than the rules those to a service are for the rules, those of a program go on",
  root,
  async () => {
    await using cable = await FilteredCable.start();
    const { a, b } = cable;
    await Promise.all([serve(a, 7001), serve(b, 7001, 7002)]);
    const inbound = new Chatter(a, "10.77.0.2", 7001, 7002);
    const outbound = new Chatter(b, "10.77.0.1", 7001);
    assert.deepEqual([await inbound.grows(0), await inbound.grows(1), await outbound.grows(0)], [true, true, true]);
    await filtered(cable, openTcp(7001));
    assert.deepEqual([await outbound.grows(0), await inbound.grows(0)], [true, true]);
    await sleep(200);
    const closed = inbound.count(1);
    assert.equal(await outbound.grows(0), true);
    assert.equal(inbound.count(1), closed);
  },
);
