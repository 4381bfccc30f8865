# Plays packets through an interface that it makes: what comes in is written to a TUN, what goes out is sent from raw sockets.
# A line in is a JSON list of ["in" | "out", family, hex]; a line out says that all are through, each decided before the next.
import fcntl, json, os, socket, struct, sys

name = sys.argv[1]
tun = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK)
TUNSETIFF, IFF_TUN, IFF_NO_PI = 0x400454CA, 1, 0x1000
fcntl.ioctl(tun, TUNSETIFF, struct.pack("16sH", name.encode(), IFF_TUN | IFF_NO_PI))

# What the kernel answers by itself has not this mark.
MARK = 77
senders = {}
for family, level in ((4, socket.AF_INET), (6, socket.AF_INET6)):
    senders[family] = socket.socket(level, socket.SOCK_RAW, socket.IPPROTO_RAW)
    senders[family].setsockopt(socket.SOL_SOCKET, socket.SO_MARK, MARK)
senders[4].setsockopt(socket.IPPROTO_IP, socket.IP_HDRINCL, 1)

print("ready", flush=True)
for line in sys.stdin:
    for direction, family, text in json.loads(line):
        packet = bytes.fromhex(text)
        if direction == "in":
            os.write(tun, packet)
        else:
            to = packet[16:20] if family == 4 else packet[24:40]
            address = socket.inet_ntop(socket.AF_INET if family == 4 else socket.AF_INET6, to)
            senders[family].sendto(packet, (address, 0))
        try:
            while True:
                os.read(tun, 65535)
        except BlockingIOError:
            pass
    print("done", flush=True)
