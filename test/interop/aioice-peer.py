"""An aioice agent driven by JSON lines on stdin, speaking JSON lines on stdout: the foreign judge of ice-aioice.test.ts.

in:  {"credentials": {"ufrag", "pwd"}} {"candidate": TEXT} {"connect": true} {"send": TEXT}
out: {"credentials": ...} {"candidate": TEXT} {"connected": {"local", "remote"}} {"failed": TEXT} {"data": TEXT}
"""

import asyncio
import json
import sys

import aioice


def say(**message):
    print(json.dumps(message), flush=True)


async def receive(connection):
    while True:
        try:
            say(data=(await connection.recv()).decode())
        except ConnectionError:
            return say(closed=True)


async def connect(connection, tasks):
    try:
        await connection.connect()
    except ConnectionError as error:
        return say(failed=str(error))
    pair = connection._nominated[1]
    say(connected={"local": list(pair.local_addr), "remote": list(pair.remote_addr)})
    tasks.append(asyncio.ensure_future(receive(connection)))


async def main(role):
    connection = aioice.Connection(ice_controlling=role == "controlling")
    await connection.gather_candidates()
    say(credentials={"ufrag": connection.local_username, "pwd": connection.local_password})
    for candidate in connection.local_candidates:
        say(candidate=candidate.to_sdp())
    lines = asyncio.StreamReader()
    loop = asyncio.get_event_loop()
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(lines), sys.stdin)
    tasks = []
    while line := await lines.readline():
        message = json.loads(line)
        if "credentials" in message:
            connection.remote_username = message["credentials"]["ufrag"]
            connection.remote_password = message["credentials"]["pwd"]
        elif "candidate" in message:
            await connection.add_remote_candidate(aioice.Candidate.from_sdp(message["candidate"]))
        elif "connect" in message:
            tasks.append(asyncio.ensure_future(connect(connection, tasks)))
        elif "send" in message:
            await connection.send(message["send"].encode())
    await connection.close()


asyncio.run(main(sys.argv[1]))
