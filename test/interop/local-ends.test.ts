import assert from "node:assert/strict";
import { test } from "node:test";
import { PrivateKey } from "#base/keys.ts";
import { fakeInitiation } from "#wireguard/external/testing/fake-initiation.ts";
import { PortsHost } from "./external-ports-lab.ts";
import { delivered, Judge, Lab, missingForLab, OurDevice, ping } from "./wireguard-lab.ts";

const missing = missingForLab();
const options = missing === undefined ? { timeout: 20_000 } : { skip: missing };
const GO_PORT = 51821;

for (const kind of ["loopback-addresses", "loopback-sockets", "loopback-mac1"] as const)
  test(`${kind} carry a relayed tunnel of wireguard-go, which never roams`, options, async () => {
    await using lab = await Lab.create();
    const judge = await Judge.start(lab, ["10.98.0.1/24"], GO_PORT);
    const device = await OurDevice.start(lab, ["10.98.0.2/24"]);
    const ports = new PortsHost(lab, lab.there);
    await ports.request({ op: "ends", kind, devicePort: GO_PORT });
    const key = device.publicKey;
    const allowedIps = ["10.98.0.2/32"];
    let endpoint = (await ports.request({ op: "open", key })) as string;
    await judge.setPeer(key, { allowedIps, endpoint });

    // A packet into the interface: what the device sends for it is an initiation to the local end.
    const first = ping(lab, lab.there, "-c", "1", "-W", "5", "10.98.0.2");
    const [captured] = await ports.waitFor("datagram", 1);
    assert.equal(captured!.key, key);
    assert.equal(Buffer.from(captured!.datagram!, "base64").length, 148);
    for (const { endpoint: moved } of ports.of("moved")) {
      endpoint = moved!;
      await judge.setPeer(key, { allowedIps, endpoint });
    }

    // We are the relay. The captured initiation is as good as a new one.
    await device.request({ op: "setPeer", key: judge.publicKey, mode: "awake", allowedIps: ["10.98.0.1/32"] });
    await device.request({ op: "setPath", key: judge.publicKey, path: "relay" });
    const relay = (datagram: string): Promise<unknown> =>
      device.request({ op: "inject", key: judge.publicKey, datagram });
    ports.onEvent(({ name, datagram }) => {
      if (name === "datagram") void relay(datagram!);
    });
    device.onEvent(({ name, payload }) => {
      if (name === "relay-out")
        void ports.request({ op: "deliver", key, datagram: (payload as { datagram: string }).datagram });
    });
    await relay(captured!.datagram!);
    assert.equal((await first).received, 1, "the packet that woke the peer was delivered");
    const pings = ["-c", "20", "-i", "0.01"];
    // Requests to us, then answers: a packet of each arrives here.
    assert.equal(await delivered(device, 20, () => ping(lab, lab.there, ...pings, "-s", "1200", "10.98.0.2")), 20);
    assert.equal(await delivered(device, 20, () => ping(lab, lab.here, ...pings, "10.98.0.1")), 20);
    assert.equal(await judge.endpoint(), endpoint);
    await ports.close();
    await device.close();
  });

test("where there is no loopback address but 127.0.0.1, peers are told apart by port or by mac1", options, async () => {
  await using lab = await Lab.create();
  await lab.ip(lab.there, "addr", "del", "127.0.0.1/8", "dev", "lo");
  await lab.ip(lab.there, "addr", "add", "127.0.0.1/32", "dev", "lo");
  const ports = new PortsHost(lab, lab.there);
  const refused = ports.request({ op: "ends", kind: "loopback-addresses", devicePort: GO_PORT });
  await assert.rejects(refused, /127\.0\.0\.0\/8/);
  for (const [index, kind] of (["loopback-sockets", "loopback-mac1"] as const).entries()) {
    await ports.request({ op: "ends", kind, devicePort: GO_PORT });
    const key = PrivateKey.generate().publicKey;
    const to = (await ports.request({ op: "open", key })) as string;
    assert.match(to, /^127\.0\.0\.1:/);
    const datagram = Buffer.from(fakeInitiation(key)).toString("base64");
    await ports.request({ op: "udp", port: GO_PORT, datagram, to });
    const told = (await ports.waitFor("datagram", index + 1)).at(-1)!;
    assert.deepEqual([told.key, told.datagram], [key, datagram]);
  }
  await ports.close();
});
