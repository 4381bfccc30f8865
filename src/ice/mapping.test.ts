import assert from "node:assert/strict";
import { test } from "node:test";
import { type Endpoint, parseEndpoint } from "#base/ip.ts";
import { ManualClock } from "#base/time.ts";
import { MAPPING_COMPARE_WINDOW, MAPPING_OBSERVATIONS_MAX, MappingObserver } from "./mapping.ts";

const OWN = "192.168.1.2:51820";
const at = parseEndpoint;

function setUp(): {
  clock: ManualClock;
  observer: MappingObserver;
  server(to: string, mapped: string): void;
  peer(to: string, mapped: string): void;
} {
  const clock = new ManualClock();
  const own = at(OWN);
  const isOwn = ({ address, port }: Endpoint): boolean => address === own.address && port === own.port;
  const observer = new MappingObserver({ clock, isOwn });
  return {
    clock,
    observer,
    server: (to, mapped) => observer.note(at(to), at(mapped), "server"),
    peer: (to, mapped) => observer.note(at(to), at(mapped), "peer"),
  };
}

test("one server alone proves nothing, unless it sees our own address", () => {
  const { observer, server } = setUp();
  assert.equal(observer.behaviour(), "unknown");
  server("198.51.100.1:3478", "203.0.113.7:40000");
  assert.equal(observer.behaviour(), "unknown");
  observer.forget();
  server("198.51.100.1:3478", OWN);
  assert.equal(observer.behaviour(), "none");
  assert.equal(observer.behaviour(6), "unknown");
});

test("a peer's answer that names another address than the server proves that the mapping depends on the destination", () => {
  const { observer, server, peer } = setUp();
  server("198.51.100.1:3478", "203.0.113.7:40000");
  peer("198.51.100.9:51820", "203.0.113.7:40001");
  assert.equal(observer.behaviour(), "endpoint-dependent");
});

test("a peer that sees what the server sees proves that it does not", () => {
  const { observer, server, peer } = setUp();
  server("198.51.100.1:3478", "203.0.113.7:40000");
  peer("198.51.100.9:51820", "203.0.113.7:40000");
  assert.equal(observer.behaviour(), "endpoint-independent");
  server("198.51.100.1:3479", "203.0.113.7:40000");
  assert.equal(observer.behaviour(), "endpoint-independent", "another port of the same server counts too");
});

test("a peer in our own network, and one behind the same outer NAT, prove nothing", () => {
  const { observer, server, peer } = setUp();
  server("198.51.100.1:3478", "203.0.113.7:40000");
  peer("192.168.1.3:51820", OWN);
  peer("100.70.0.9:51820", "100.70.0.2:1234");
  assert.equal(observer.behaviour(), "unknown");
});

test("in a network of private addresses alone these count", () => {
  const { observer, server, peer } = setUp();
  server("10.0.0.1:3478", "10.9.0.1:40000");
  peer("10.1.0.9:51820", "10.9.0.1:40001");
  assert.equal(observer.behaviour(), "endpoint-dependent");
});

test("answers a minute apart are not compared, and a conclusion stays until a newer one", () => {
  const { clock, observer, server, peer } = setUp();
  server("198.51.100.1:3478", "203.0.113.7:40000");
  clock.advance(MAPPING_COMPARE_WINDOW + 1);
  peer("198.51.100.9:51820", "203.0.113.7:40001");
  assert.equal(observer.behaviour(), "unknown");
  server("198.51.100.1:3478", "203.0.113.7:40002");
  assert.equal(observer.behaviour(), "endpoint-dependent");
  clock.advance(MAPPING_COMPARE_WINDOW + 1);
  server("198.51.100.1:3478", "203.0.113.7:40002");
  assert.equal(observer.behaviour(), "endpoint-dependent", "a lone answer concludes nothing new");
  peer("198.51.100.9:51820", "203.0.113.7:40002");
  assert.equal(observer.behaviour(), "endpoint-independent");
  observer.forget();
  assert.deepEqual([observer.behaviour(), observer.observations().length], ["unknown", 0]);
});

test("families are apart, and the number of destinations is bounded", () => {
  const { observer, server, peer } = setUp();
  server("[2001:db8::1]:3478", "[2001:db8:7::2]:40000");
  peer("[2001:db8::9]:51820", "[2001:db8:7::2]:40000");
  assert.deepEqual([observer.behaviour(4), observer.behaviour(6)], ["unknown", "endpoint-independent"]);
  for (let port = 1; port <= 2 * MAPPING_OBSERVATIONS_MAX; port++) peer(`198.51.100.9:${port}`, "203.0.113.7:40001");
  assert.equal(observer.observations().length, MAPPING_OBSERVATIONS_MAX);
});
