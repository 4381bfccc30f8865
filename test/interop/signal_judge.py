"""Speaks signal with grpcio and PyNaCl, both of which know nothing of Perch.

    signal_judge.py client GENERATED URI   two agents at a server; commands and answers are lines on stdin and stdout
    signal_judge.py server GENERATED       a server as stock ones are; prints its port
"""

import base64
import json
import queue
import sys
import threading

sys.path.insert(0, sys.argv[2])
import grpc  # noqa: E402
import signal_pb2 as pb  # noqa: E402
from concurrent import futures  # noqa: E402
from nacl.public import Box, PrivateKey, PublicKey  # noqa: E402

SERVICE = "signalexchange.SignalExchange"
ENCODE = lambda message: message.SerializeToString()  # noqa: E731
DECODE = pb.EncryptedMessage.FromString


def tell(value):
    print(json.dumps(value), flush=True)


def text(key):
    return base64.b64encode(bytes(key)).decode()


class Agent:
    def __init__(self, channel):
        self.key = PrivateKey.generate()
        self.name = text(self.key.public_key)
        self.send_call = channel.unary_unary(f"/{SERVICE}/Send", ENCODE, DECODE)
        stream = channel.stream_stream(f"/{SERVICE}/ConnectStream", ENCODE, DECODE)
        self.hold = threading.Event()
        self.call = stream(self.nothing(), metadata=(("x-wiretrustee-peer-id", self.name),))
        # Blocks until the server's headers are there, as stock agents do; there is no message yet.
        self.headers = dict(self.call.initial_metadata())

    def nothing(self):
        self.hold.wait()
        return
        yield

    def send(self, to, body):
        box = Box(self.key, PublicKey(base64.b64decode(to)))
        sealed = bytes(box.encrypt(ENCODE(body)))
        message = pb.EncryptedMessage(key=self.name, remoteKey=to, body=sealed)
        _, call = self.send_call.with_call(message, timeout=5)
        return dict(call.initial_metadata()).get("perch-delivered")

    def receive(self):
        message = next(self.call)
        box = Box(self.key, PublicKey(base64.b64decode(message.key)))
        return message.key, pb.Body.FromString(box.decrypt(message.body))


def client(uri):
    channel = grpc.insecure_channel(uri)
    one, two = Agent(channel), Agent(channel)
    tell({"one": one.name, "two": two.name, "registered": one.headers.get("x-wiretrustee-peer-registered")})

    offer = pb.Body(type=pb.Body.OFFER, payload="ufrag:password", wgListenPort=51820, netBirdVersion="0.76.3")
    offer.rosenpassConfig.SetInParent()
    tell({"delivered": one.send(two.name, offer)})
    sender, body = two.receive()
    tell({"from": sender, "payload": body.payload, "port": body.wgListenPort})
    tell({"unknown": one.send(text(PrivateKey.generate().public_key), offer)})
    tell({"self": one.send(one.name, pb.Body(type=pb.Body.HEARTBEAT))})
    tell({"heartbeat": one.receive()[1].type == pb.Body.HEARTBEAT})
    one.send_call(pb.EncryptedMessage(key=one.name, remoteKey="dummy"), timeout=5)

    try:
        stream = channel.stream_stream(f"/{SERVICE}/ConnectStream", ENCODE, DECODE)
        next(stream(iter(())))
    except grpc.RpcError as error:
        tell({"withoutKey": error.code().name})

    # The same key again: the older stream ends.
    double = Agent.__new__(Agent)
    double.key, double.name = two.key, two.name
    double.hold = threading.Event()
    double.call = channel.stream_stream(f"/{SERVICE}/ConnectStream", ENCODE, DECODE)(
        double.nothing(), metadata=(("x-wiretrustee-peer-id", two.name),)
    )
    double.call.initial_metadata()
    try:
        next(two.call)
    except grpc.RpcError as error:
        tell({"replaced": error.code().name, "details": error.details()})

    # Talk with whoever is named on stdin.
    peer = sys.stdin.readline().strip()
    tell({"toPerch": one.send(peer, offer)})
    sender, body = one.receive()
    tell({"from": sender, "type": body.type, "payload": body.payload, "session": body.sessionId.hex()})
    sys.stdin.readline()


def server():
    streams = {}
    lock = threading.Lock()

    def connect_stream(_, context):
        name = dict(context.invocation_metadata()).get("x-wiretrustee-peer-id")
        inbox = queue.Queue()
        with lock:
            streams[name] = inbox
        context.add_callback(lambda: inbox.put(None))
        context.send_initial_metadata((("x-wiretrustee-peer-registered", "1"),))
        tell({"registered": name})
        while (message := inbox.get()) is not None:
            yield message

    def send(message, _):
        with lock:
            inbox = streams.get(message.remoteKey)
        if inbox is not None:
            inbox.put(message)
        return pb.EncryptedMessage()

    handlers = {
        "ConnectStream": grpc.stream_stream_rpc_method_handler(connect_stream, DECODE, ENCODE),
        "Send": grpc.unary_unary_rpc_method_handler(send, DECODE, ENCODE),
    }
    host = grpc.server(futures.ThreadPoolExecutor(max_workers=16))
    host.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SERVICE, handlers),))
    port = host.add_insecure_port("127.0.0.1:0")
    host.start()
    tell({"port": port})
    sys.stdin.readline()
    host.stop(None)


if sys.argv[1] == "client":
    client(sys.argv[3])
else:
    server()
