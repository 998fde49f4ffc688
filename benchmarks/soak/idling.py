"""A server that does nothing but answer, so that one knows how much of a probe's time is the machine's.

python -m benchmarks.soak.idling PORT_FILE
"""

import asyncio
import sys
from pathlib import Path
from typing import Final

ANSWER: Final = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nConnection: close\r\n\r\nok"


async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Answer one request, whatever it asks."""
    await reader.readuntil(b"\r\n\r\n")
    writer.write(ANSWER)
    await writer.drain()
    writer.close()


async def serve(port_file: Path) -> None:
    """Listen on a free port and say which."""
    server = await asyncio.start_server(answer, "127.0.0.1", 0)
    beside = port_file.with_suffix(".new")
    beside.write_text(f"{server.sockets[0].getsockname()[1]}\n", encoding="ascii")
    beside.replace(port_file)
    await server.serve_forever()


if __name__ == "__main__":
    asyncio.run(serve(Path(sys.argv[1])))
