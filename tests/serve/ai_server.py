"""An OpenAI-compatible server in a process of its own, which does what the question says.

    count N     streams the numbers below N, in pieces cut anywhere, with comments, a reason, the usage and the end
    whole       answers in one piece of JSON
    stall       begins, and says nothing more
    break       begins, and breaks off
    garbage     streams what is no JSON
    404 …       refuses with that status, quoting the key

Prints where it listens, `asked` for each question, and `gone` when who asked has hung up in a stall.
"""

import asyncio
import json
from contextlib import suppress

HEAD = "HTTP/1.1 {}\r\nContent-Type: {}\r\nTransfer-Encoding: chunked\r\n\r\n"


def event(text="", **choice):
    return f"data: {json.dumps({'choices': [{'delta': {'content': text}, **choice}]})}\r\n\r\n".encode()


async def say(writer, data):
    writer.write(b"%x\r\n%b\r\n" % (len(data), data))
    await writer.drain()


async def hung_up(reader):
    """Wait until the other end has hung up, however rudely."""
    with suppress(ConnectionError):
        await reader.read()


async def count(reader, writer, most):
    answer = b": connected\r\n\r\n" + b"".join(event(f"{number} ", finish_reason=None) for number in range(int(most)))
    answer += event(finish_reason="stop") + b'data: {"choices":[],"usage":{}}\r\n\r\ndata: [DONE]\r\n\r\n'
    size = 1
    while answer:
        # All sizes from 1 to 97, again and again.
        piece, answer, size = answer[:size], answer[size:], size % 97 + 1
        await say(writer, piece)
    writer.write(b"0\r\n\r\n")


async def stall(reader, writer):
    await say(writer, event("thinking"))
    await hung_up(reader)
    print("gone", flush=True)


async def break_off(reader, writer):
    await say(writer, event("thinking"))
    writer.transport.abort()


async def garbage(reader, writer):
    await say(writer, event("thinking") + b"data: \x00\xff{]\r\n\r\n")
    await hung_up(reader)


STREAMED = {"count": count, "stall": stall, "break": break_off, "garbage": garbage}


async def answer(reader, writer):
    head = (await reader.readuntil(b"\r\n\r\n")).decode()
    fields = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in head.split("\r\n"))}
    asked = json.loads(await reader.readexactly(int(fields["content-length"])))
    kind, *words = asked["messages"][-1]["content"].split()
    print("asked", kind, flush=True)
    if kind in STREAMED and head.startswith("POST /v1/chat/completions ") and asked["stream"] is True:
        writer.write(HEAD.format("200 OK", "text/event-stream; charset=utf-8").encode())
        await STREAMED[kind](reader, writer, *words)
    elif kind == "whole":
        body = json.dumps({"choices": [{"message": {"role": "assistant", "content": "all at once"}}]}).encode()
        writer.write(
            b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n" % len(body) + body
        )
    else:
        body = json.dumps({"error": {"message": f"no: {fields.get('authorization')}"}}).encode()
        writer.write(
            f"HTTP/1.1 {kind} No\r\nContent-Type: application/json\r\nConnection: close\r\n\r\n".encode() + body
        )
    writer.close()


async def main():
    server = await asyncio.start_server(answer, "127.0.0.1", 0)
    print(f"listening on http://127.0.0.1:{server.sockets[0].getsockname()[1]}/v1", flush=True)
    await server.serve_forever()


asyncio.run(main())
