"""What both Python sides of the management tests share: envelopes by PyNaCl, calls by grpcio, messages by protoc."""

import base64
import json
import sys
import threading

from nacl.public import Box, PrivateKey, PublicKey

import management_pb2 as pb

SERVICE = "/management.ManagementService/"
_print_lock = threading.Lock()


def say(**fields):
    """One JSON object on a line of standard output."""
    with _print_lock:
        sys.stdout.write(json.dumps(fields) + "\n")
        sys.stdout.flush()


def text_of(key):
    return base64.b64encode(bytes(key)).decode()


def seal(message, remote: PublicKey, own: PrivateKey):
    body = Box(own, remote).encrypt(message.SerializeToString())
    return pb.EncryptedMessage(wgPubKey=text_of(own.public_key), body=bytes(body))


def unseal(kind, envelope, remote: PublicKey, own: PrivateKey):
    return kind.FromString(Box(own, remote).decrypt(envelope.body))


def sender_of(envelope):
    return PublicKey(base64.b64decode(envelope.wgPubKey, validate=True))
