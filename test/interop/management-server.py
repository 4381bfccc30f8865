"""A foreign management server for one agent, with a new key at every start. Argument: port, 0 for a free one. Speaks JSON lines;
each line of standard input is a command: `push N` sends a map with serial N, `config` a config-only message."""

import queue
import sys
import threading
from concurrent import futures

import grpc
from nacl.public import PrivateKey

import management_pb2 as pb
from management_wire import say, seal, sender_of, text_of, unseal

own = PrivateKey.generate()
known = set()
streams = []
SETUP_KEY = "a2c8e62b-38f5-4553-b31e-dd66c696cebb"


def get_server_key(request, context):
    say(kind="call", method="GetServerKey")
    return pb.ServerKeyResponse(key=text_of(own.public_key))


def login(envelope, context):
    sender = sender_of(envelope)
    request = unseal(pb.LoginRequest, envelope, sender, own)
    say(kind="call", method="Login", setupKey=request.setupKey, hostname=request.meta.hostname,
        wgPubKey=request.peerKeys.wgPubKey.decode(), metadata=[key for key, _ in context.invocation_metadata()],
        deadline=context.time_remaining())
    if bytes(sender) not in known:
        if request.setupKey != SETUP_KEY:
            context.abort(grpc.StatusCode.PERMISSION_DENIED, "no peer auth method provided")
        known.add(bytes(sender))
    answer = pb.LoginResponse(
        netbirdConfig=pb.NetbirdConfig(signal=pb.HostConfig(uri="signal.example:10000", protocol=pb.HostConfig.HTTP)),
        peerConfig=pb.PeerConfig(address="100.77.0.5/16", fqdn="perch.example"),
    )
    return seal(answer, sender, own)


def sync(envelope, context):
    sender = sender_of(envelope)
    request = unseal(pb.SyncRequest, envelope, sender, own)
    admitted = bytes(sender) in known
    mine = queue.Queue()
    if admitted:
        streams.append(mine)
    # Said when a push would reach the stream, not before.
    say(kind="call", method="Sync", admitted=admitted, hostname=request.meta.hostname,
        deadline=context.time_remaining())
    if not admitted:
        context.abort(grpc.StatusCode.PERMISSION_DENIED, "peer is not registered")
    while True:
        message = mine.get()
        if message is None:
            return
        yield seal(message, sender, own)


def sync_meta(envelope, context):
    request = unseal(pb.SyncMetaRequest, envelope, sender_of(envelope), own)
    say(kind="call", method="SyncMeta", hostname=request.meta.hostname)
    return pb.Empty()


def logout(envelope, context):
    sender = sender_of(envelope)
    unseal(pb.Empty, envelope, sender, own)
    known.discard(bytes(sender))
    say(kind="call", method="Logout")
    return pb.Empty()


def handler(kind, run, request_type):
    return kind(run, request_deserializer=request_type.FromString,
                response_serializer=lambda message: message.SerializeToString())


unary, stream = grpc.unary_unary_rpc_method_handler, grpc.unary_stream_rpc_method_handler
server = grpc.server(futures.ThreadPoolExecutor(max_workers=8))
server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("management.ManagementService", {
    "GetServerKey": handler(unary, get_server_key, pb.Empty),
    "isHealthy": handler(unary, lambda request, context: pb.Empty(), pb.Empty),
    "Login": handler(unary, login, pb.EncryptedMessage),
    "Sync": handler(stream, sync, pb.EncryptedMessage),
    "SyncMeta": handler(unary, sync_meta, pb.EncryptedMessage),
    "Logout": handler(unary, logout, pb.EncryptedMessage),
}),))
port = server.add_insecure_port("127.0.0.1:" + sys.argv[1])
server.start()
say(kind="port", port=port)

for line in sys.stdin:
    command, _, argument = line.strip().partition(" ")
    if command == "push":
        update = pb.SyncResponse(NetworkMap=pb.NetworkMap(Serial=int(argument), remotePeersIsEmpty=True))
    elif command == "config":
        update = pb.SyncResponse(netbirdConfig=pb.NetbirdConfig())
    elif command == "end":
        update = None
    elif command == "forget":
        known.clear()
        continue
    else:
        continue
    for mine in streams:
        mine.put(update)
    if update is None:
        streams.clear()
