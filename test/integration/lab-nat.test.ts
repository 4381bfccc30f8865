import assert from "node:assert/strict";
import { after, before, describe, test } from "node:test";
import { setTimeout as sleep } from "node:timers/promises";
import { createLab, type Lab } from "../../lab/lab.ts";
import { NAT, type NatDependence } from "../../lab/nat.ts";
import { skipWithoutLab } from "../../lab/rootless.ts";
import { UdpPeer } from "./lab-udp-peer.ts";

const skip = await skipWithoutLab();
const DEPENDENCES: readonly NatDependence[] = [
  "endpoint-independent",
  "address-dependent",
  "address-and-port-dependent",
];
/** Long enough for whatever passes the NAT of a lab without delay to have passed it. */
const SETTLE_MS = 40;

describe("lab nat, seen from real sockets", { skip, timeout: 20_000 }, () => {
  let lab: Lab;
  /** Two ports of one public host and one of another. */
  let near: UdpPeer;
  let nearOther: UdpPeer;
  let far: UdpPeer;

  before(async () => {
    lab = await createLab({
      sites: [{ name: "dc" }, { name: "home", nat: NAT.portRestricted }],
      hosts: [
        { name: "s1", site: "dc" },
        { name: "s2", site: "dc" },
        { name: "a", site: "home" },
        { name: "a2", site: "home" },
      ],
    });
    [near, nearOther, far] = await Promise.all([
      UdpPeer.open(lab.host("s1")),
      UdpPeer.open(lab.host("s1")),
      UdpPeer.open(lab.host("s2")),
    ]);
  });

  after(() => lab?.close());

  /** What the three public sockets see of one inner socket. */
  async function observe(inner: UdpPeer, tag: string): Promise<string[]> {
    const seen: string[] = [];
    for (const [index, outer] of [near, nearOther, far].entries()) {
      await inner.send(outer.endpoint, `${tag}-${index}`);
      seen.push(await outer.expect(`${tag}-${index}`));
    }
    return seen;
  }

  for (const mapping of DEPENDENCES) {
    for (const filtering of DEPENDENCES) {
      test(`${mapping} mapping with ${filtering} filtering`, async () => {
        await lab.setNat("home", { mapping, filtering });
        const inner = await UdpPeer.open(lab.host("a"));
        const tag = `${mapping}-${filtering}`;
        const [first, samePlace, otherPlace] = await observe(inner, tag);
        assert.match(first!, /^198\.19\.2\.1:/);
        assert.equal(first === samePlace, mapping !== "address-and-port-dependent", "same address, other port");
        assert.equal(first === otherPlace, mapping === "endpoint-independent", "other address");
        assert.equal(samePlace === otherPlace, mapping === "endpoint-independent");

        const listener = await UdpPeer.open(lab.host("a"));
        await listener.send(near.endpoint, `${tag}-open`);
        const hole = await near.expect(`${tag}-open`);
        await nearOther.send(hole, "same-address");
        await far.send(hole, "stranger");
        await near.send(hole, "answer");
        await listener.expect("answer");
        await sleep(SETTLE_MS);
        assert.equal(listener.has("same-address"), filtering !== "address-and-port-dependent");
        assert.equal(listener.has("stranger"), filtering === "endpoint-independent");
        await Promise.all([inner.close(), listener.close()]);
      });
    }
  }

  test("an endpoint-independent mapping keeps the port, a symmetric NAT does not", async () => {
    for (const [nat, keeps] of [
      [NAT.portRestricted, true],
      [NAT.symmetric, false],
    ] as const) {
      await lab.setNat("home", nat);
      const inner = await UdpPeer.open(lab.host("a"), 51_820);
      await inner.send(near.endpoint, `port-${keeps}`);
      const [, port] = (await near.expect(`port-${keeps}`)).split(":");
      assert.equal(port === "51820", keeps);
      await inner.close();
    }
  });

  test("two hosts behind one NAT meet by their public endpoints only with a hairpin", async () => {
    for (const hairpin of [true, false]) {
      await lab.setNat("home", { ...NAT.endpointIndependent, hairpin });
      const [a, a2] = await Promise.all([UdpPeer.open(lab.host("a")), UdpPeer.open(lab.host("a2"))]);
      await a2.send(near.endpoint, `hairpin-${hairpin}`);
      const hole = await near.expect(`hairpin-${hairpin}`);
      await a.send(hole, "turned");
      if (hairpin) assert.match(await a2.expect("turned"), /^198\.19\.2\.1:/);
      await sleep(SETTLE_MS);
      assert.equal(a2.has("turned"), hairpin);
      await a.send(a2.endpoint, "lan");
      assert.equal(await a2.expect("lan"), a.endpoint, "the LAN itself is never translated");
      await Promise.all([a.close(), a2.close()]);
    }
  });

  test("after a rebind the old hole is closed and the next packet opens another", async () => {
    await lab.setNat("home", NAT.endpointIndependent);
    const inner = await UdpPeer.open(lab.host("a"));
    await inner.send(near.endpoint, "before-rebind");
    const old = await near.expect("before-rebind");
    await lab.rebindNat("home");
    await near.send(old, "too-late");
    await inner.send(near.endpoint, "after-rebind");
    const fresh = await near.expect("after-rebind");
    assert.notEqual(fresh, old);
    await near.send(fresh, "in-time");
    await inner.expect("in-time");
    assert.equal(inner.has("too-late"), false);
    await inner.close();
  });

  test("a mapping without traffic is forgotten after its timeout", async () => {
    await lab.setNat("home", { ...NAT.endpointIndependent, mappingTimeoutMs: 200 });
    const inner = await UdpPeer.open(lab.host("a"));
    await inner.send(near.endpoint, "short-lived");
    const hole = await near.expect("short-lived");
    await near.send(hole, "alive");
    await inner.expect("alive");
    await sleep(300);
    await near.send(hole, "expired");
    await sleep(SETTLE_MS);
    assert.equal(inner.has("expired"), false);
    await inner.close();
  });

  test("a changed public address is what others see from then on", async () => {
    await lab.setNat("home", NAT.endpointIndependent);
    const inner = await UdpPeer.open(lab.host("a"));
    await lab.changePublicAddress("home", "198.19.2.99");
    await inner.send(near.endpoint, "moved");
    const hole = await near.expect("moved");
    assert.match(hole, /^198\.19\.2\.99:/);
    await near.send(hole, "found");
    await inner.expect("found");
    await inner.close();
  });

  test("an ICMP error comes back through the NAT to the socket that caused it", async () => {
    await lab.setNat("home", NAT.portRestricted);
    // A connected socket learns of the closed port by ECONNREFUSED.
    const script = `
      const socket = require("node:dgram").createSocket("udp4");
      socket.connect(9, "${lab.host("s1").address}", () => socket.send("x"));
      socket.on("error", (error) => { console.log(error.code); process.exit(0); });
      setTimeout(() => { console.log("silence"); process.exit(0); }, 1000);`;
    const { stdout } = await lab.host("a").exec(process.execPath, ["-e", script]);
    assert.equal(stdout.trim(), "ECONNREFUSED");
  });
});
