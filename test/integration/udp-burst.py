"""One end of a burst of numbered datagrams: `sink PORT COUNT TIMEOUT_S` receives, `send TO PORT COUNT BYTES` sends all at once.

Python, because SO_RCVBUFFORCE is out of Node's reach: a receive buffer that is too small would lose what the tunnel
delivered. Both print one JSON object; the sink also prints `ready` first.
"""

import json
import socket
import struct
import sys
import time

SO_RCVBUFFORCE = 33
RECEIVE_BUFFER_BYTES = 64 << 20
# After the last datagram, a second copy would still be on its way.
SETTLE_S = 0.3


def sink(port: int, count: int, timeout: float) -> None:
    s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    s.setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE, RECEIVE_BUFFER_BYTES)
    s.bind(("0.0.0.0", port))
    print("ready", flush=True)
    seen: dict[int, int] = {}
    newest = -1
    late = 0
    first = last = None
    deadline = time.monotonic() + timeout
    while True:
        now = time.monotonic()
        limit = deadline if len(seen) < count else min(deadline, last + SETTLE_S)
        if now >= limit:
            break
        s.settimeout(limit - now)
        try:
            data = s.recv(65536)
        except TimeoutError:
            continue
        last = time.monotonic()
        first = first or last
        (number,) = struct.unpack_from("<I", data)
        seen[number] = seen.get(number, 0) + 1
        late += number < newest
        newest = max(newest, number)
    print(
        json.dumps(
            {
                "received": len(seen),
                "duplicates": sum(seen.values()) - len(seen),
                "outOfOrder": late,
                "lowest": min(seen, default=-1),
                "highest": newest,
                "tookMs": 1000 * (last - first) if first else None,
            }
        ),
        flush=True,
    )


def send(to: str, port: int, count: int, size: int) -> None:
    s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    s.connect((to, port))
    filler = bytes(size - 4)
    start = time.monotonic()
    for number in range(count):
        s.send(struct.pack("<I", number) + filler)
    print(json.dumps({"sent": count, "tookMs": 1000 * (time.monotonic() - start)}), flush=True)


if sys.argv[1] == "sink":
    sink(int(sys.argv[2]), int(sys.argv[3]), float(sys.argv[4]))
else:
    send(sys.argv[2], int(sys.argv[3]), int(sys.argv[4]), int(sys.argv[5]))
