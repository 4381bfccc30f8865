"""A service manager's end of sd_notify: prints each datagram as a line of JSON with who sent it.

notify-receiver.py SOCKET DAEMON_SOCKET; SOCKET begins with @ for an abstract name. When a message says READY=1, "answers"
tells whether somebody answers on DAEMON_SOCKET at that moment.
"""

import json
import socket
import struct
import sys

name, daemon = sys.argv[1:]
receiver = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
receiver.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)
receiver.bind("\0" + name[1:] if name.startswith("@") else name)
print(json.dumps({"listening": name}), flush=True)
while True:
    data, ancillary, _, _ = receiver.recvmsg(4096, socket.CMSG_SPACE(12))
    pid, uid, _ = struct.unpack("3i", ancillary[0][2])
    lines = data.decode().split("\n")
    said = {"pid": pid, "uid": uid, "lines": lines}
    if "READY=1" in lines:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
            said["answers"] = probe.connect_ex(daemon) == 0
    print(json.dumps(said), flush=True)
