import assert from "node:assert/strict";
import type { NetworkInterfaceInfo } from "node:os";
import { test } from "node:test";
import { ManualClock } from "#base/time.ts";
import { type NetworkChange, NetworkWatch, WATCH_INTERVAL } from "./network-watch.ts";

/** A machine whose addresses and routes are changed by hand, with or without a word from the system. */
class Machine {
  readonly clock = new ManualClock(0);
  readonly interfaces: Record<string, NetworkInterfaceInfo[]> = {};
  routes: string[] = ["eth0 0101A8C0"];
  readonly seen: NetworkChange[] = [];
  closed = false;
  tell: () => void = () => {};
  readonly watch: NetworkWatch;

  constructor() {
    this.set("lo", "127.0.0.1", true);
    this.set("eth0", "192.168.1.7");
    this.set("perch0", "100.64.0.1");
    this.watch = new NetworkWatch(
      this.clock,
      "perch0",
      (change) => this.seen.push(change),
      () => this.interfaces,
      {
        watch: (changed) => {
          this.tell = changed;
          return {
            close: () => {
              this.closed = true;
            },
          };
        },
        defaultRoutes: () => this.routes,
      },
    );
  }

  get changes(): number {
    return this.seen.length;
  }

  /** An address besides those that the interface has. */
  add(name: string, address: string): this {
    const others = this.interfaces[name] ?? [];
    this.set(name, address).interfaces[name]!.unshift(...others);
    return this;
  }

  remove(name: string, address: string): this {
    this.interfaces[name] = this.interfaces[name]!.filter((info) => info.address !== address);
    return this;
  }

  set(name: string, address: string, internal = false): this {
    const family = address.includes(":") ? "IPv6" : "IPv4";
    const info = { address, netmask: "", mac: "", internal, cidr: null, family, scopeid: 0 } as NetworkInterfaceInfo;
    this.interfaces[name] = [info];
    return this;
  }
}

test("a change is noticed when the system tells of it, and only once", () => {
  const machine = new Machine();
  machine.set("eth0", "10.0.0.7").tell();
  assert.equal(machine.changes, 1);
  machine.tell();
  machine.clock.advance(2 * WATCH_INTERVAL);
  assert.equal(machine.changes, 1);
});

test("another way out of the same address is a change", () => {
  const machine = new Machine();
  machine.routes = ["eth0 FE01A8C0"];
  machine.tell();
  assert.equal(machine.changes, 1);
});

test("what the system did not tell is found by looking", () => {
  const machine = new Machine();
  machine.set("eth0", "10.0.0.7");
  machine.clock.advance(WATCH_INTERVAL - 1);
  assert.equal(machine.changes, 0);
  machine.clock.advance(1);
  assert.equal(machine.changes, 1);
});

test("the tunnel, containers, other tunnels and link-local addresses do not count", () => {
  const machine = new Machine();
  machine.set("perch0", "100.64.0.2").set("docker0", "172.17.0.1").set("veth12", "169.254.3.4").set("wg0", "10.9.0.1");
  machine.set("eth1", "fe80::1").tell();
  assert.equal(machine.changes, 0);
});

test("losing every address is not told, the next address is", () => {
  const machine = new Machine();
  delete machine.interfaces.eth0;
  machine.tell();
  assert.equal(machine.changes, 0);
  machine.set("eth0", "192.168.1.7").tell();
  assert.deepEqual(machine.seen, ["moved"]);
});

test("an address that comes back is a move, with a default route or without", () => {
  const machine = new Machine();
  machine.routes = [];
  machine.tell();
  machine.seen.length = 0;
  const { eth0 } = machine.interfaces;
  delete machine.interfaces.eth0;
  machine.tell();
  machine.interfaces.eth0 = eth0!;
  machine.tell();
  assert.deepEqual(machine.seen, ["moved"]);
});

test("the end of a suspend is a change of network, addresses or not", () => {
  const machine = new Machine();
  machine.clock.advance(WATCH_INTERVAL);
  assert.equal(machine.changes, 0);
  machine.clock.stepWall(60_000);
  machine.clock.advance(WATCH_INTERVAL);
  assert.equal(machine.changes, 1);
  machine.clock.advance(WATCH_INTERVAL);
  assert.equal(machine.changes, 1);
});

test("nothing is left after close", () => {
  const machine = new Machine();
  machine.watch.close();
  assert.ok(machine.closed);
  assert.equal(machine.clock.pending, 0);
});

test("a new IPv6 privacy address is no move, nor is the end of the old one", () => {
  const machine = new Machine();
  machine.add("eth0", "2001:db8:1:2::1111").tell();
  machine.add("eth0", "2001:db8:1:2::2222").tell();
  assert.deepEqual(machine.seen, ["added", "added"]);
  machine.remove("eth0", "2001:db8:1:2::1111").tell();
  assert.deepEqual(machine.seen.slice(2), ["renewed"]);
  machine.add("eth0", "2001:db8:1:2::3333").remove("eth0", "2001:db8:1:2::2222").tell();
  assert.deepEqual(machine.seen.slice(3), ["renewed"], "both at once");
  machine.remove("eth0", "2001:db8:1:2::3333").tell();
  assert.deepEqual(machine.seen.slice(4), ["moved"], "the last of its network");
});

test("another address of IPv4 in place of one is a move, besides it none", () => {
  const machine = new Machine();
  machine.add("eth0", "192.168.1.8").tell();
  machine.remove("eth0", "192.168.1.7").tell();
  assert.deepEqual(machine.seen, ["added", "moved"]);
});
