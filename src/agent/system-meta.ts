import { readFileSync } from "node:fs";
import { arch, networkInterfaces, release, type as systemType } from "node:os";
import { create } from "@bufbuild/protobuf";
import { PERCH_VERSION, PROTOCOL_VERSION } from "#base/version.ts";
import { PeerCapability, type PeerSystemMeta, PeerSystemMetaSchema } from "#gen/management_pb.ts";

/** What management is told of this machine (management document, section 3.2). Read anew at every login. */
export function readSystemMeta(options: {
  readonly hostname: string;
  readonly ownInterface: string | undefined;
}): PeerSystemMeta {
  const os = readOsRelease();
  return create(PeerSystemMetaSchema, {
    hostname: options.hostname,
    goOS: process.platform,
    kernel: systemType(),
    core: os.version,
    platform: { x64: "x86_64", arm64: "aarch64" }[arch() as string] ?? arch(),
    OS: os.name,
    OSVersion: os.version,
    kernelVersion: release(),
    netbirdVersion: PROTOCOL_VERSION,
    uiVersion: `perch/${PERCH_VERSION}`,
    networkAddresses: localAddresses(options.ownInterface),
    environment: {},
    flags: {},
    capabilities: [
      PeerCapability.PeerCapabilitySourcePrefixes,
      ...(hasIpv6() ? [PeerCapability.PeerCapabilityIPv6Overlay] : []),
    ],
    // The classic map; the compact format is not read.
    syncMessageVersion: 0,
  });
}

function localAddresses(ownInterface: string | undefined): { netIP: string; mac: string }[] {
  const addresses: { netIP: string; mac: string }[] = [];
  for (const [name, entries] of Object.entries(networkInterfaces())) {
    if (name === ownInterface) continue;
    for (const { internal, address, cidr, mac } of entries ?? []) {
      if (!internal && cidr && !/^(fe80:|169\.254\.)/i.test(address)) addresses.push({ netIP: cidr, mac });
    }
  }
  return addresses;
}

/** New interfaces of this machine may have IPv6 addresses; an overlay address could not be set otherwise. */
function hasIpv6(): boolean {
  try {
    return readFileSync("/proc/sys/net/ipv6/conf/default/disable_ipv6", "utf8").trim() === "0";
  } catch {
    return false;
  }
}

function readOsRelease(): { name: string; version: string } {
  let text = "";
  try {
    text = readFileSync("/etc/os-release", "utf8");
  } catch {
    // Not every system has the file; an empty name is allowed on the wire.
  }
  const value = (key: string): string => new RegExp(`^${key}="?([^"\n]*)"?$`, "m").exec(text)?.[1] ?? "";
  return { name: value("NAME"), version: value("VERSION_ID") };
}
