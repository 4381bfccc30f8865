"""Speaks to a perch server's one port with grpcio and websockets: python3 server-foreign-client.py HOST:PORT [CA.pem].

Prints one JSON object. Messages are written and read as raw protobuf bytes, so that nothing of ours is used.
"""

import asyncio
import json
import sys
import threading

import grpc
import websockets

target = sys.argv[1]
ca = open(sys.argv[2], "rb").read() if len(sys.argv) > 2 else None
raw = dict(request_serializer=lambda data: data, response_deserializer=lambda data: data)
result = {}


def text_field(number, text):
    data = text.encode()
    return bytes([number << 3 | 2, len(data)]) + data


def open_channel():
    options = [("grpc.keepalive_time_ms", 30_000), ("grpc.max_receive_message_length", 16 << 20)]
    if ca:
        return grpc.secure_channel(target, grpc.ssl_channel_credentials(ca), options)
    return grpc.insecure_channel(target, options)


with open_channel() as channel:
    management = "/management.ManagementService/"
    key = channel.unary_unary(management + "GetServerKey", **raw)(b"", timeout=5)
    result["serverKey"] = key[2 : 2 + key[1]].decode()
    result["healthy"] = channel.unary_unary(management + "isHealthy", **raw)(b"", timeout=5) == b""
    for name, method in [("unknownMethod", management + "NoSuchMethod"), ("unknownService", "/other.Service/Do")]:
        try:
            channel.unary_unary(method, **raw)(b"", timeout=5)
        except grpc.RpcError as error:
            result[name] = error.code().name
    try:
        channel.unary_unary(management + "Login", **raw)(text_field(1, "no key"), timeout=5)
    except grpc.RpcError as error:
        result["badLogin"] = error.code().name

    # Two signal streams, and a message from one to the other over the same connection.
    signal = "/signalexchange.SignalExchange/"
    done = threading.Event()

    def quiet():
        done.wait()
        return
        yield

    connect = channel.stream_stream(signal + "ConnectStream", **raw)
    bob = connect(quiet(), metadata=(("x-wiretrustee-peer-id", "bob"),))
    registered = dict(bob.initial_metadata())
    result["registered"] = registered.get("x-wiretrustee-peer-registered")
    message = text_field(2, "alice") + text_field(3, "bob") + text_field(4, "opaque")
    channel.unary_unary(signal + "Send", **raw)(message, timeout=5)
    result["delivered"] = next(bob) == message
    bob.cancel()
    done.set()


async def relay():
    scheme = "wss" if ca else "ws"
    ssl_context = None
    if ca:
        import ssl

        ssl_context = ssl.create_default_context(cadata=ca.decode())
    try:
        async with websockets.connect(f"{scheme}://{target}/relay", ssl=ssl_context, compression=None) as socket:
            # No relay Auth: the server drops the connection without a word.
            await socket.send(b"\x01\x06no auth")
            await asyncio.wait_for(socket.recv(), 5)
            result["relay"] = "answered"
    except websockets.ConnectionClosed:
        result["relay"] = "dropped"


asyncio.run(relay())
print(json.dumps(result))
