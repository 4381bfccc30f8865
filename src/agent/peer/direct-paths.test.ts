import assert from "node:assert/strict";
import type { NetworkInterfaceInfo } from "node:os";
import { test } from "node:test";
import { Emitter } from "#base/emitter.ts";
import { type Endpoint, parseEndpoint, sameEndpoint } from "#base/ip.ts";
import { PrivateKey } from "#base/keys.ts";
import { silentLogger } from "#base/log.ts";
import { ManualClock } from "#base/time.ts";
import type { Candidate } from "#ice/candidate.ts";
import { encodeStun, parseStun } from "#ice/stun-message.ts";
import type { DeviceEvents } from "#wireguard/device.ts";
import { DirectPaths } from "./direct-paths.ts";
import { SEARCHES_BEFORE_HOLD } from "./search-memory.ts";

const server = parseEndpoint("198.51.100.1:3478");
const peer = PrivateKey.generate().publicKey;
const theirs = { ufrag: "remoteufragremot", password: "remotepasswordremotepasswordremo" };

function setUp() {
  const clock = new ManualClock();
  const events = new Emitter<DeviceEvents>();
  const sent: { readonly datagram: Uint8Array; readonly to: Endpoint }[] = [];
  const improved: string[] = [];
  const addresses = ["192.168.1.7"];
  const device = {
    events,
    listenPort: 51820,
    interfaceName: "perch0",
    sendDatagram: (datagram: Uint8Array, to: Endpoint) => void sent.push({ datagram, to }),
  };
  const interfaces = (): NodeJS.Dict<NetworkInterfaceInfo[]> => ({
    eth0: addresses.map((address) => ({ address, internal: false }) as NetworkInterfaceInfo),
  });
  const paths = new DirectPaths(
    { clock, log: silentLogger, device, interfaces },
    { allowed: true, overlay: [], improved: (reason) => improved.push(reason) },
  );
  const asked = () => sent.filter(({ to }) => sameEndpoint(to, server));
  /** The server answers the last question. */
  const answer = async (mapped: string): Promise<void> => {
    const { transactionId } = parseStun(asked().at(-1)!.datagram)!;
    const fields = { class: "success", transactionId, xorMappedAddress: parseEndpoint(mapped) } as const;
    events.emit("stun", { datagram: encodeStun(fields), from: server, to: parseEndpoint("192.168.1.7:51820") });
    await Promise.resolve();
  };
  const open = () => {
    const told: Candidate[] = [];
    const ended: boolean[] = [];
    const session = paths.open(peer, true, paths.freshSession(), {
      candidate: (candidate) => told.push(candidate),
      selected: () => {},
      lost: (_, failed) => ended.push(failed),
    });
    return { session, told, ended };
  };
  return { clock, paths, improved, addresses, asked, answer, open };
}

test("a probe asks a silent STUN server with one datagram, and its answer is told as an improvement, once", async () => {
  const { clock, paths, improved, asked, answer, open } = setUp();
  paths.setServers([server]);
  clock.advance(4000);
  const { session, told } = open();
  clock.advance(4000);
  assert.equal(paths.nat.udp, "silent");
  const before = asked().length;
  session.probe(undefined);
  session.probe(undefined);
  clock.advance(1900);
  assert.equal(asked().length - before, 1);
  await answer("203.0.113.5:40000");
  assert.deepEqual(improved, ["UDP gets through again"]);
  assert.ok(told.some(({ endpoint }) => endpoint.address === "203.0.113.5"));
  clock.advance(30_000);
  session.probe(undefined);
  await answer("203.0.113.5:40001");
  assert.equal(improved.length, 1, "another port alone is none");
  clock.advance(30_000);
  session.probe(undefined);
  await answer("203.0.113.99:40001");
  assert.deepEqual(improved.slice(1), ["the world sees us at 203.0.113.99"]);
  session.close();
  paths.close();
});

test("a search that replaces a path under suspicion asks where we are mapped, another one remembers", async () => {
  const { clock, paths, asked, answer, open } = setUp();
  paths.setServers([server]);
  await answer("203.0.113.5:40000");
  const first = open();
  const remembered = asked().length;
  first.session.close();
  const second = open();
  assert.equal(asked().length, remembered, "the answer is fresh enough");
  second.session.suspect(undefined);
  clock.advance(600);
  second.session.close();
  const third = open();
  assert.equal(asked().length, remembered + 1, "the remote may have been sooner to find the path broken");
  third.session.close();
  clock.advance(5000);
  paths.close();
});

test("an address more is offered by every open search, without a new one", () => {
  const { clock, paths, improved, addresses, open } = setUp();
  const { session, told } = open();
  assert.deepEqual(
    told.map(({ endpoint }) => endpoint.address),
    ["192.168.1.7"],
  );
  addresses.push("10.1.1.1");
  paths.addressesAdded();
  paths.addressesAdded();
  assert.deepEqual(
    told.map(({ endpoint }) => endpoint.address),
    ["192.168.1.7", "10.1.1.1"],
  );
  assert.deepEqual(improved, Array(2).fill("this machine has another address"));
  session.close();
  assert.equal(clock.pending, 0);
  paths.close();
});

test("three failed searches are remembered for this network of ours, and not for another", () => {
  const { clock, paths, addresses, open } = setUp();
  for (let search = 0; search < SEARCHES_BEFORE_HOLD; search++) {
    assert.equal(paths.holdOf(peer, "there"), undefined);
    const { session, ended } = open();
    session.check(theirs, false, "there", false);
    clock.advance(11_000);
    assert.deepEqual(ended, [true]);
    session.close();
  }
  assert.equal(paths.holdOf(peer, "there")?.failures, SEARCHES_BEFORE_HOLD);
  assert.equal(paths.holdOf(peer, "elsewhere"), undefined);
  addresses[0] = "10.9.9.9";
  assert.equal(paths.holdOf(peer, "there"), undefined);
  paths.close();
});
