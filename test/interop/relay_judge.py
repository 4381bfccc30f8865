"""Speaks the relay protocol with python3-websockets and struct, from the written table alone.

    relay_judge.py agent URL SECRET NAME     joins a relay as the peer whose key text is NAME; obeys lines on stdin:
                                             subscribe ID | send ID HEX | close      (IDs and payloads in hex)
    relay_judge.py server SECRET             a relay for our agents; prints its port
"""

import asyncio
import hashlib
import hmac
import json
import sys
import time

from websockets.legacy.client import connect
from websockets.legacy.server import serve

MAGIC = bytes.fromhex("2112a442")


def tell(value):
    print(json.dumps(value), flush=True)


def peer_id(key):
    return b"sha-" + hashlib.sha256(key.encode()).digest()


def token(secret):
    key = hashlib.sha256(secret.encode()).digest()
    payload = str(int(time.time()) + 600).encode()
    return b"\x01" + hmac.new(key, payload, hashlib.sha256).digest() + payload


async def lines():
    reader = asyncio.StreamReader()
    loop = asyncio.get_running_loop()
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
    while line := await reader.readline():
        yield line.decode().split()


async def agent(url, secret, name):
    async with connect(url, compression=None, origin="https://browser.example") as ws:
        tell({"extensions": len(ws.extensions), "subprotocol": ws.subprotocol})
        await ws.send(b"\x01\x06" + MAGIC + peer_id(name) + token(secret))

        async def read():
            async for message in ws:
                kind, rest = message[1], message[2:]
                if kind == 5:
                    await ws.send(b"\x01\x05")
                tell({"version": message[0], "type": kind, "rest": rest.hex()})
            tell({"closed": True})

        reading = asyncio.create_task(read())
        async for verb, *args in lines():
            if verb == "subscribe":
                await ws.send(b"\x01\x08" + bytes.fromhex(args[0]))
            elif verb == "send":
                await ws.send(b"\x01\x03" + bytes.fromhex(args[0]) + bytes.fromhex(args[1]))
            elif verb == "fragments":
                message = b"\x01\x03" + bytes.fromhex(args[0]) + bytes.fromhex(args[1])
                await ws.send([message[:20], message[20:39], message[39:]])
            elif verb == "close":
                await ws.send(b"\x01\x04")
                break
        await asyncio.wait_for(reading, 5)


async def server(secret):
    peers = {}
    key = hashlib.sha256(secret.encode()).digest()

    async def handle(ws, path):
        first = await ws.recv()
        ok = path == "/relay" and first[:6] == b"\x01\x06" + MAGIC
        name, sealed = first[6:42], first[42:]
        ok = ok and hmac.compare_digest(sealed[1:33], hmac.new(key, sealed[33:], hashlib.sha256).digest())
        tell({"path": path, "ok": ok, "offered": "Sec-WebSocket-Extensions" in ws.request_headers})
        if not ok:
            return
        peers[name] = ws
        await ws.send(b"\x01\x07" + f"rel://127.0.0.1:{port}".encode())
        async for message in ws:
            if message[1] == 3 and message[2:38] in peers:
                await peers[message[2:38]].send(message[:2] + name + message[38:])
            elif message[1] == 8:
                found = [message[i : i + 36] for i in range(2, len(message), 36) if message[i : i + 36] in peers]
                if found:
                    await ws.send(b"\x01\x0a" + b"".join(found))
            elif message[1] == 5:
                tell({"healthCheck": True})
            elif message[1] == 4:
                tell({"saidClose": True})
                break

    async with serve(handle, "127.0.0.1", 0, compression=None) as listening:
        port = listening.sockets[0].getsockname()[1]
        tell({"port": port})
        async for verb, *_ in lines():
            if verb == "check":
                for ws in peers.values():
                    await ws.send(b"\x01\x05")


if sys.argv[1] == "agent":
    asyncio.run(agent(*sys.argv[2:5]))
else:
    asyncio.run(server(sys.argv[2]))
