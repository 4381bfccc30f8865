"""Checks our STUN with aioice's codec.

    stun_judge.py parse HEX PASSWORD     what aioice reads in a message, its integrity and fingerprint checked
    stun_judge.py encode PASSWORD        a message made by aioice, in hex
    stun_judge.py ask HOST PORT          the address a STUN server reports, and the one the socket has
"""

import asyncio
import json
import sys

from aioice import stun


def tell(value):
    print(json.dumps(value), flush=True)


def parse(text, password):
    message = stun.parse_message(bytes.fromhex(text), integrity_key=password.encode())
    attributes = {
        name: value.hex() if isinstance(value, bytes) else value for name, value in message.attributes.items()
    }
    tell(
        {
            "method": message.message_method.name,
            "class": message.message_class.name,
            "transaction": message.transaction_id.hex(),
            "attributes": attributes,
        }
    )


def encode(password):
    message = stun.Message(
        message_method=stun.Method.BINDING,
        message_class=stun.Class.REQUEST,
        transaction_id=bytes(range(12)),
        attributes={
            "USERNAME": "remote:local",
            "PRIORITY": 1845501695,
            "ICE-CONTROLLED": 0x0102030405060708,
            "USE-CANDIDATE": None,
        },
    )
    message.add_message_integrity(password.encode())
    tell(bytes(message).hex())


class Asking(asyncio.DatagramProtocol):
    def __init__(self, answer):
        self.answer = answer

    def datagram_received(self, data, _):
        self.answer.set_result(data)


async def ask(host, port):
    loop = asyncio.get_running_loop()
    answer = loop.create_future()
    transport, _ = await loop.create_datagram_endpoint(lambda: Asking(answer), remote_addr=(host, int(port)))
    request = stun.Message(message_method=stun.Method.BINDING, message_class=stun.Class.REQUEST)
    transport.sendto(bytes(request))
    response = stun.parse_message(await asyncio.wait_for(answer, 5))
    assert response.transaction_id == request.transaction_id
    tell(
        {
            "class": response.message_class.name,
            "names": sorted(response.attributes),
            "mapped": list(response.attributes["XOR-MAPPED-ADDRESS"]),
            "own": list(transport.get_extra_info("sockname")[:2]),
        }
    )


if sys.argv[1] == "parse":
    parse(*sys.argv[2:4])
elif sys.argv[1] == "encode":
    encode(sys.argv[2])
else:
    asyncio.run(ask(*sys.argv[2:4]))
