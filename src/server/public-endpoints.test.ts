import assert from "node:assert/strict";
import type { NetworkInterfaceInfo } from "node:os";
import { test } from "node:test";
import { parseEndpoint } from "#base/ip.ts";
import { decidePublicEndpoints, type PublicEndpointsInput, parsePublicUrl } from "./public-endpoints.ts";

const address = (text: string, internal = false): NetworkInterfaceInfo =>
  ({ address: text, family: text.includes(":") ? "IPv6" : "IPv4", internal }) as NetworkInterfaceInfo;

const decide = (changes: Partial<Omit<PublicEndpointsInput, "listen">> & { listen?: string } = {}) =>
  decidePublicEndpoints({
    publicUrl: undefined,
    stunListen: parseEndpoint("0.0.0.0:3478"),
    hasTls: false,
    interfaces: { lo: [address("127.0.0.1", true), address("::1", true)], eth0: [address("192.0.2.7")] },
    ...changes,
    listen: parseEndpoint(changes.listen ?? "0.0.0.0:33073"),
  });

test("a public URL decides host, port and scheme of everything, whatever is listened on", () => {
  assert.deepEqual(decide({ publicUrl: "https://perch.example.org" }), {
    managementUrl: "https://perch.example.org:443",
    signalUri: "perch.example.org:443",
    tls: true,
    relayUrl: "rels://perch.example.org:443",
    stunUri: "stun:perch.example.org:3478",
    guessed: undefined,
  });
  assert.deepEqual(decide({ publicUrl: "http://[2001:db8::1]:8080/", hasTls: true, stunListen: undefined }), {
    managementUrl: "http://[2001:db8::1]:8080",
    signalUri: "[2001:db8::1]:8080",
    tls: false,
    relayUrl: "rel://[2001:db8::1]:8080",
    stunUri: undefined,
    guessed: undefined,
  });
});

test("without a public URL the listen address is told, with TLS when there is a certificate", () => {
  const { managementUrl, relayUrl, guessed } = decide({ listen: "198.51.100.1:4000", hasTls: true });
  assert.deepEqual(
    [managementUrl, relayUrl, guessed],
    ["https://198.51.100.1:4000", "rels://198.51.100.1:4000", undefined],
  );
  assert.equal(decide({ listen: "[2001:db8::2]:4000" }).signalUri, "[2001:db8::2]:4000");
  const stunListen = parseEndpoint("198.51.100.2:3478");
  assert.equal(decide({ listen: "198.51.100.1:4000", stunListen }).stunUri, "stun:198.51.100.2:3478");
});

test("a wildcard address becomes the first address of the machine, IPv4 first, and says so", () => {
  const { managementUrl, stunUri, guessed } = decide();
  assert.deepEqual([managementUrl, stunUri], ["http://192.0.2.7:33073", "stun:192.0.2.7:3478"]);
  assert.match(guessed ?? "", /no --public-url/);
  const interfaces = { a: [address("fe80::1"), address("169.254.3.3"), address("2001:db8::9")] };
  assert.equal(decide({ listen: "[::]:1", interfaces }).signalUri, "[2001:db8::9]:1");
  assert.equal(
    decide({ interfaces: { b: [address("2001:db8::9"), address("10.0.0.1")] } }).signalUri,
    "10.0.0.1:33073",
  );
});

test("a machine with nothing but loopback still starts, and says who can connect", () => {
  const { signalUri, guessed } = decide({ interfaces: { lo: [address("127.0.0.1", true)] } });
  assert.equal(signalUri, "127.0.0.1:33073");
  assert.match(guessed ?? "", /only agents on this machine/);
});

test("a public URL that agents could not use is refused with its text", () => {
  for (const text of [
    "perch.example.org",
    "ftp://perch.example.org",
    "https://",
    "https://perch.example.org/management",
    "https://perch.example.org?x",
    "https://user:secret@perch.example.org",
    "https://perch.example.org:0",
    "https://perch.example.org:65536",
    "http://0.0.0.0:33073",
    "http://[::]:33073",
  ])
    assert.throws(() => parsePublicUrl(text), { code: "option-invalid", message: /^--public-url "/ }, text);
});
