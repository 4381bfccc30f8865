import assert from "node:assert/strict";
import { describe, it } from "node:test";
import fc from "fast-check";
import { parseEndpoint, parsePrefix } from "#base/ip.ts";
import { PresharedKey, PublicKey } from "#base/keys.ts";
import type { PeerChange } from "./parts.ts";
import { encodeConfiguration, planSteps, readDump, setArguments } from "./wg-commands.ts";

const PSK = PresharedKey.parse(Buffer.alloc(32, 9).toString("base64"));
const keys = [1, 2, 3, 4].map((byte) => PublicKey.fromBytes(new Uint8Array(32).fill(byte)));
const [ONE, TWO] = keys as [PublicKey, PublicKey];
const PREFIXES = ["10.0.0.1/32", "10.0.0.2/32", "fd00::/64"].map(parsePrefix);

/** What a device holds of each peer after changes, one after the other. */
function model(changes: readonly PeerChange[]): Map<PublicKey, Record<string, unknown>> {
  const peers = new Map<PublicKey, Record<string, unknown>>();
  for (const change of changes) {
    if (change.remove) {
      peers.delete(change.key);
      continue;
    }
    const { key, ...rest } = change;
    for (const prefix of change.allowedIps ?? [])
      for (const peer of peers.values())
        peer.allowedIps = ((peer.allowedIps as unknown[] | undefined) ?? []).filter((held) => held !== prefix);
    peers.set(key, { allowedIps: [], ...peers.get(key), ...rest });
  }
  return new Map([...peers].sort());
}

const anyChange: fc.Arbitrary<PeerChange> = fc.oneof(
  fc.record({ key: fc.constantFrom(...keys), remove: fc.constant(true as const) }),
  fc.record(
    {
      key: fc.constantFrom(...keys),
      allowedIps: fc.uniqueArray(fc.constantFrom(...PREFIXES)),
      keepalive: fc.nat({ max: 3 }),
      endpoint: fc.constantFrom(parseEndpoint("1.2.3.4:5"), parseEndpoint("[::1]:6")),
    },
    { requiredKeys: ["key"] },
  ),
);

describe("commands for the program wg", () => {
  it("are one for any number of new peers, and one for any number of updates", () => {
    const fresh = keys.map((key) => ({ key, allowedIps: [] }));
    const updates = keys.map((key) => ({ key, updateOnly: true, keepalive: 0 }));
    assert.deepEqual(planSteps(fresh), [{ command: "addconf", changes: fresh }]);
    assert.deepEqual(planSteps(updates), [{ command: "set", changes: updates }]);
    assert.deepEqual(
      planSteps([
        { key: ONE, remove: true },
        { key: TWO, allowedIps: [] },
        { key: keys[2]!, remove: true },
      ]).map(({ command, changes }) => [command, changes.length]),
      [
        ["set", 2],
        ["addconf", 1],
      ],
    );
    assert.deepEqual(planSteps([]), []);
    const reset = [
      { key: ONE, remove: true as const },
      { key: ONE, allowedIps: [], keepalive: 25 },
    ];
    assert.deepEqual(planSteps(reset), [{ command: "set", changes: reset }], "it is gone at no time");
  });

  it("leave a device as the changes one by one would", () => {
    fc.assert(
      fc.property(fc.array(anyChange), (changes) => {
        const steps = planSteps(changes);
        assert.deepEqual(model(steps.flatMap((step) => step.changes)), model(changes));
        for (const { command, changes: part } of steps) {
          for (const [index, change] of part.entries()) {
            const gives = !change.remove && change.allowedIps !== undefined;
            const isReset = part.slice(0, index).some((other) => other.remove && other.key === change.key);
            assert.ok(command === "addconf" ? gives : !gives || isReset);
          }
        }
      }),
    );
  });

  it("name on the command line where a secret is, and not the secret", () => {
    const secrets: Uint8Array[] = [];
    const words = setArguments(
      { key: ONE, presharedKey: PSK, endpoint: parseEndpoint("[fd00::1]:9"), keepalive: 0, allowedIps: PREFIXES },
      (bytes) => `/file/${secrets.push(bytes)}`,
    );
    assert.deepEqual(words, [
      ...["peer", ONE, "preshared-key", "/file/1"],
      ...["endpoint", "[fd00::1]:9", "persistent-keepalive", "0"],
      ...["allowed-ips", "10.0.0.1/32,10.0.0.2/32,fd00::/64"],
    ]);
    assert.equal(Buffer.from(secrets[0]!).toString(), PSK.toBase64());
    const none = (): string => assert.fail("no secret here");
    assert.deepEqual(setArguments({ key: ONE, presharedKey: null }, none), ["peer", ONE, "preshared-key", "/dev/null"]);
    assert.deepEqual(setArguments({ key: ONE, remove: true }, none), ["peer", ONE, "remove"]);
  });

  it("say in a file what was given", () => {
    const file = encodeConfiguration([
      { key: ONE, presharedKey: PSK, endpoint: parseEndpoint("1.2.3.4:5"), allowedIps: PREFIXES, keepalive: 25 },
      { key: TWO, presharedKey: null, allowedIps: [] },
    ]);
    assert.equal(
      Buffer.from(file).toString(),
      `[Peer]\nPublicKey=${ONE}\nPresharedKey=${PSK.toBase64()}\nEndpoint=1.2.3.4:5\nPersistentKeepalive=25\n` +
        `AllowedIPs=10.0.0.1/32,10.0.0.2/32,fd00::/64\n[Peer]\nPublicKey=${TWO}\nPresharedKey=${"A".repeat(43)}=\n`,
    );
  });
});

describe("the dump of the program wg", () => {
  const dump = (...lines: readonly (readonly string[])[]): Buffer =>
    Buffer.from(lines.map((fields) => `${fields.join("\t")}\n`).join(""));
  const device = [PSK.toBase64(), TWO, "51820", "off"];

  it("tells of each peer", () => {
    const reading = readDump(
      dump(
        device,
        [ONE, PSK.toBase64(), "[2001:db8::1]:7", "10.0.0.1/32,fd00::/64", "1700000000", "92", "148", "25"],
        [TWO, "(none)", "(none)", "(none)", "0", "0", "0", "off"],
      ),
    );
    assert.equal(reading.listenPort, 51820);
    assert.deepEqual(
      [...reading.peers],
      [
        [
          ONE,
          { endpoint: parseEndpoint("[2001:db8::1]:7"), rxBytes: 92, txBytes: 148, lastHandshake: 1_700_000_000_000 },
        ],
        [TWO, { endpoint: undefined, rxBytes: 0, txBytes: 0, lastHandshake: 0 }],
      ],
    );
    assert.equal(readDump(dump(["(none)", "(none)", "0", "off"])).peers.size, 0);
  });

  it("is refused where it is none", () => {
    const peer = [ONE, "(none)", "(none)", "(none)", "0", "0", "0", "off"];
    for (const lines of [[], [["x"]], [device, peer.slice(0, 4)], [device, ["AA", ...peer.slice(1)]], [device, []]])
      assert.throws(() => readDump(dump(...lines)), { code: "control-failed" }, JSON.stringify(lines));
  });
});
