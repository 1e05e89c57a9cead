"""A proxy that makes a server far away: each request arrives later, and nothing else is slower."""

import asyncio
import contextlib
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from urllib.parse import urlsplit

_CHUNK = 1 << 18


@contextlib.contextmanager
def far_away(endpoint: str, milliseconds: float) -> Iterator[str]:
    """Give the address at which `endpoint` answers a round trip later; in a process of its own."""
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "bench.latency", endpoint, str(port), str(milliseconds)]
    process = subprocess.Popen(command)
    try:
        for _ in range(200):
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port)):
                break
            time.sleep(0.05)
        yield f"http://127.0.0.1:{port}"
    finally:
        process.kill()
        process.wait()


async def _serve(endpoint: str, port: int, seconds: float) -> None:
    target = urlsplit(endpoint)

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        theirs, ours = await asyncio.open_connection(target.hostname, target.port, limit=_CHUNK)
        with contextlib.suppress(OSError, asyncio.IncompleteReadError):
            await asyncio.gather(_copy(reader, ours, seconds), _copy(theirs, writer, 0.0))

    server = await asyncio.start_server(handle, "127.0.0.1", port, limit=_CHUNK)
    await server.serve_forever()


async def _copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, delay: float) -> None:
    """Pass bytes on, each so much later; what comes meanwhile waits no longer for that."""
    loop = asyncio.get_running_loop()
    while data := await reader.read(_CHUNK):
        if delay:
            loop.call_later(delay, writer.write, data)
        else:
            writer.write(data)
            await writer.drain()
    loop.call_later(delay, writer.close)


if __name__ == "__main__":
    asyncio.run(_serve(sys.argv[1], int(sys.argv[2]), float(sys.argv[3]) / 1e3))
