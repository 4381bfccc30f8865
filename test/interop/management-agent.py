"""A foreign agent: registers, reads maps, logs out. Arguments: host:port, setup key. Speaks JSON lines; a line of
standard input is a command."""

import sys
import threading

import grpc
from nacl.public import PrivateKey, PublicKey
import base64

import management_pb2 as pb
from management_wire import SERVICE, say, seal, text_of, unseal

address, setup_key = sys.argv[1:]
own = PrivateKey.generate()
channel = grpc.insecure_channel(address)


def unary(method, request, answer_type):
    call = channel.unary_unary(
        SERVICE + method,
        request_serializer=lambda message: message.SerializeToString(),
        response_deserializer=answer_type.FromString,
    )
    return call(request, timeout=5)


def server_key():
    return PublicKey(base64.b64decode(unary("GetServerKey", pb.Empty(), pb.ServerKeyResponse).key))


def meta():
    return pb.PeerSystemMeta(
        hostname="python-agent",
        goOS="linux",
        netbirdVersion="0.65.0",
        capabilities=[pb.PeerCapabilitySourcePrefixes, pb.PeerCapabilityIPv6Overlay],
    )


def login(key=""):
    remote = server_key()
    request = pb.LoginRequest(setupKey=key, meta=meta())
    return unseal(pb.LoginResponse, unary("Login", seal(request, remote, own), pb.EncryptedMessage), remote, own)


def code_of(run):
    try:
        run()
        return "OK"
    except grpc.RpcError as error:
        return error.code().name


def sync():
    try:
        remote = server_key()
        call = channel.unary_stream(
            SERVICE + "Sync",
            request_serializer=lambda message: message.SerializeToString(),
            response_deserializer=pb.EncryptedMessage.FromString,
        )
        for envelope in call(seal(pb.SyncRequest(meta=meta()), remote, own)):
            update = unseal(pb.SyncResponse, envelope, remote, own)
            map = update.NetworkMap
            say(
                kind="update",
                serial=map.Serial,
                hasConfig=update.HasField("netbirdConfig"),
                hasRelay=update.netbirdConfig.HasField("relay"),
                stuns=[stun.uri for stun in update.netbirdConfig.stuns],
                hasDeadline=update.HasField("sessionExpiresAt"),
                deadline=update.sessionExpiresAt.seconds,
                address=map.peerConfig.address,
                addressV6=map.peerConfig.address_v6.hex(),
                lazy=map.peerConfig.LazyConnectionEnabled,
                isEmpty=map.remotePeersIsEmpty,
                peers=[
                    {"key": peer.wgPubKey, "allowedIps": list(peer.allowedIps), "fqdn": peer.fqdn}
                    for peer in map.remotePeers
                ],
                rules=[
                    [rule.PeerIP, pb.RuleDirection.Name(rule.Direction), pb.RuleAction.Name(rule.Action),
                     pb.RuleProtocol.Name(rule.Protocol), [prefix.hex() for prefix in rule.sourcePrefixes]]
                    for rule in map.FirewallRules
                ],
                zones=[
                    {"domain": zone.Domain, "records": [[r.Name, r.Type, r.RData] for r in zone.Records]}
                    for zone in map.DNSConfig.CustomZones
                ],
            )
        say(kind="sync-end", code="OK")
    except grpc.RpcError as error:
        say(kind="sync-end", code=error.code().name)


say(kind="key", key=text_of(own.public_key))
say(kind="probe", code=code_of(login))
unary("isHealthy", pb.Empty(), pb.Empty)
say(kind="bad-key", code=code_of(lambda: login("00000000-1111-2222-3333-444444444444")))
login(setup_key)
answer = login()
say(
    kind="login",
    address=answer.peerConfig.address,
    addressV6=answer.peerConfig.address_v6.hex(),
    fqdn=answer.peerConfig.fqdn,
    signal=answer.netbirdConfig.signal.uri,
    signalProtocol=answer.netbirdConfig.signal.protocol,
    relays=list(answer.netbirdConfig.relay.urls),
    hasSsh=answer.peerConfig.HasField("sshConfig"),
    hasDeadline=answer.HasField("sessionExpiresAt"),
)


def raw(method):
    """A call that the service does not have."""
    call = channel.unary_unary(SERVICE + method, request_serializer=bytes, response_deserializer=bytes)
    return code_of(lambda: call(b"", timeout=5))


def job():
    call = channel.stream_stream(
        SERVICE + "Job",
        request_serializer=lambda message: message.SerializeToString(),
        response_deserializer=pb.EncryptedMessage.FromString,
    )
    for _ in call(iter([seal(pb.JobRequest(ID=b"x"), server_key(), own)]), timeout=5):
        pass


say(kind="unknown-method", code=raw("NoSuchMethod"))
say(kind="job", code=code_of(job))
say(kind="device-flow", code=code_of(
    lambda: unary("GetDeviceAuthorizationFlow",
                  seal(pb.DeviceAuthorizationFlowRequest(), server_key(), own), pb.EncryptedMessage)))

threading.Thread(target=sync, daemon=True).start()
for line in sys.stdin:
    command = line.strip()
    if command == "logout":
        say(kind="logout", code=code_of(lambda: unary("Logout", seal(pb.Empty(), server_key(), own), pb.Empty)))
    elif command == "sync-meta":
        request = pb.SyncMetaRequest(meta=meta())
        say(kind="sync-meta", code=code_of(lambda: unary("SyncMeta", seal(request, server_key(), own), pb.Empty)))
    elif command == "login":
        say(kind="login-again", code=code_of(login))
