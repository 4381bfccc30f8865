"""Goes over many addresses as scanners and discovery do: `ping|syn|storm OWN PACE_MS ADDRESS...`, one line of JSON.

Python, because raw sockets are out of Node's reach. `ping`: an echo request to each, all with one identifier, repeated twice
as fping does. `syn`: a crafted SYN to port 22 of each, all from one port. `storm`: mDNS, SSDP, LLMNR and NetBIOS, to their
groups and to each.
"""

import json
import os
import socket
import struct
import sys
import time

GROUPS = [("224.0.0.251", 5353), ("239.255.255.250", 1900), ("224.0.0.252", 5355)]
DISCOVERY_PORTS = [5353, 1900, 5355, 137, 138, 3702]


def checksum(data: bytes) -> int:
    if len(data) % 2:
        data += b"\0"
    total = sum(struct.unpack(f"!{len(data) // 2}H", data))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF


def ping(own: str, pace: float, addresses: list[str]) -> int:
    s = socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_ICMP)
    identifier = os.getpid() & 0xFFFF
    sent = 0
    for sequence in range(3):
        head = struct.pack("!BBHHH", 8, 0, 0, identifier, sequence)
        head = struct.pack("!BBHHH", 8, 0, checksum(head + bytes(56)), identifier, sequence)
        for address in addresses:
            s.sendto(head + bytes(56), (address, 0))
            sent += 1
            if sequence == 0:
                time.sleep(pace)
        time.sleep(0.5)
    return sent


def syn(own: str, pace: float, addresses: list[str]) -> int:
    s = socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_TCP)
    for address in addresses:
        pseudo = socket.inet_aton(own) + socket.inet_aton(address) + struct.pack("!BBH", 0, 6, 24)
        head = [61234, 22, 7, 0, 0x60, 2, 1024, 0, 0]
        option = struct.pack("!BBH", 2, 4, 1460)
        head[7] = checksum(pseudo + struct.pack("!HHIIBBHHH", *head) + option)
        s.sendto(struct.pack("!HHIIBBHHH", *head) + option, (address, 0))
        time.sleep(pace)
    return len(addresses)


def storm(own: str, pace: float, addresses: list[str]) -> int:
    s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    s.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_IF, socket.inet_aton(own))
    s.setsockopt(socket.SOL_SOCKET, socket.SO_BROADCAST, 1)
    broadcast = ".".join(own.split(".")[:2]) + ".255.255"
    sent = 0
    for address in addresses:
        for to in GROUPS + [(broadcast, 137)] + [(address, port) for port in DISCOVERY_PORTS]:
            s.sendto(b"who is there?", to)
            sent += 1
        time.sleep(pace)
    return sent


kind, own, pace_ms, *addresses = sys.argv[1:]
sweep = {"ping": ping, "syn": syn, "storm": storm}[kind]
print(json.dumps({"sent": sweep(own, float(pace_ms) / 1000, addresses)}))
