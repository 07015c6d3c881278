"""A reverse proxy that shows a server below a prefix, as a process: `prefix_proxy.py PREFIX PORT SERVER_PORT`.

It takes the prefix off every path, and passes on the rest. Paths outside of the prefix are answered with 404.
"""

import asyncio
import contextlib
import subprocess
import sys
from collections.abc import Iterator


@contextlib.contextmanager
def prefix_proxy(prefix: str, port: int, server_port: int) -> Iterator[None]:
    """Run the proxy of a server at a port of this machine."""
    words = [sys.executable, __file__, prefix, str(port), str(server_port)]
    with subprocess.Popen(words, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None and process.stdout.readline() == b"ready\n"
        try:
            yield
        finally:
            process.kill()


async def _serve(prefix: str, port: int, server_port: int) -> None:
    async def pass_on(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError, asyncio.IncompleteReadError):
            await _pass_on(reader, writer, prefix, server_port)
        writer.close()

    async with await asyncio.start_server(pass_on, "127.0.0.1", port) as server:
        print("ready", flush=True)
        await server.serve_forever()


async def _pass_on(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, prefix: str, port: int) -> None:
    head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
    method, path, rest = head.split(" ", 2)
    if not path.startswith(f"{prefix}/"):
        writer.write(b"HTTP/1.1 404 Not Found\r\ncontent-length: 0\r\nconnection: close\r\n\r\n")
        return
    if "upgrade: websocket" not in head.lower():  # one request of a connection, so that each has its path changed
        rest = rest.replace("Connection: keep-alive", "Connection: close")
    there, back = await asyncio.open_connection("127.0.0.1", port)
    back.write(f"{method} {path.removeprefix(prefix)} {rest}".encode("latin-1"))
    await asyncio.gather(_copy(reader, back), _copy(there, writer))


async def _copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while data := await reader.read(1 << 16):
        writer.write(data)
        await writer.drain()
    writer.close()


if __name__ == "__main__":
    asyncio.run(_serve(sys.argv[1], int(sys.argv[2]), int(sys.argv[3])))
