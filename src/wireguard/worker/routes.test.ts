import assert from "node:assert/strict";
import { test } from "node:test";
import { DISCOVERY_PORTS, Routes } from "./routes.ts";

const view = new DataView(new ArrayBuffer(256));
const bytes = new Uint8Array(view.buffer);

function packet(destination: readonly number[], protocol: number, destinationPort: number, fragment = 0): void {
  bytes.fill(0);
  if (destination.length === 4) {
    bytes.set([0x45, 0, 0, 48, 0, 0, fragment >> 8, fragment & 255, 64, protocol, 0, 0, 10, 9, 9, 9]);
    bytes.set(destination, 16);
    view.setUint16(20 + 2, destinationPort);
  } else {
    bytes.set([0x60, 0, 0, 0, 0, 28, protocol, 64]);
    bytes.set(destination, 24);
    view.setUint16(40 + 2, destinationPort);
  }
}

function setup(bits: number): Routes {
  const routes = new Routes(view);
  bytes.fill(0);
  if (bits > 0) bytes.set([10, 1, 2, 0]);
  routes.add(false, view, 0, bits, 3);
  return routes;
}

const PEER6 = [0xfd, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15];

test("what goes to many is told from what goes to one", () => {
  const cases: readonly [readonly number[], number, boolean][] = [
    [[10, 1, 2, 255], 24, true],
    [[10, 1, 2, 254], 24, false],
    [[255, 255, 255, 255], 0, true],
    [[239, 255, 255, 250], 0, true],
    [[10, 1, 2, 255], 0, false],
    [[10, 1, 2, 1], 31, false],
    [[0xff, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xfb], 24, true],
    [PEER6, 24, false],
  ];
  for (const [destination, bits, expected] of cases) {
    const routes = setup(bits);
    packet(destination, 17, 9999);
    routes.destination(0);
    assert.equal(routes.isBroadcast(0), expected, `${destination} in a prefix of ${bits} bits`);
  }
});

test("service discovery to a single address counts as sent to many, in both families; the same port of TCP does not", () => {
  const routes = setup(24);
  for (const port of DISCOVERY_PORTS) {
    for (const destination of [[10, 1, 2, 7], PEER6]) {
      for (const protocol of [17, 6]) {
        packet(destination, protocol, port);
        routes.destination(0);
        assert.equal(routes.isBroadcast(0), protocol === 17, `protocol ${protocol} port ${port} to ${destination}`);
      }
    }
  }
  packet([10, 1, 2, 7], 17, 53);
  assert.equal(routes.isBroadcast(0), false);
  // What stands where the ports would be in a later fragment are data.
  packet([10, 1, 2, 7], 17, 5353, 100);
  assert.equal(routes.isBroadcast(0), false);
});
