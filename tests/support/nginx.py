"""Debian's nginx, serving a folder of files as it is, or standing before a proxy of ours."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from tests.support.programs import require_program
from tests.support.upstream_server import refusing

CONFIG = """
daemon off; master_process off; pid {folder}/pid; error_log stderr;
events {{ }}
http {{
  access_log off;
  client_body_temp_path {folder}/t1; proxy_temp_path {folder}/t2; fastcgi_temp_path {folder}/t3;
  uwsgi_temp_path {folder}/t4; scgi_temp_path {folder}/t5;
  server {{ {server} }}
}}
"""


@asynccontextmanager
async def nginx(folder: Path, root: Path) -> AsyncIterator[str]:
    """Serve a folder; gives the base URL."""
    async with nginx_server(folder, f"listen {{address}}; root {root};") as address:
        yield f"http://{address}"


@asynccontextmanager
async def nginx_server(folder: Path, server: str) -> AsyncIterator[str]:
    """Run a server as its configuration says, which has ``{address}``; gives that."""
    address = refusing().removeprefix("http://")
    config = _configure(folder, server.replace("{address}", address))
    program = await asyncio.create_subprocess_exec(
        require_program("nginx"), "-p", str(folder), "-e", "stderr", "-c", str(config)
    )
    try:
        async with asyncio.timeout(10):
            while not await _accepts(address):
                assert program.returncode is None
                await asyncio.sleep(0.01)
        yield address
    finally:
        if program.returncode is None:
            program.terminate()
        await program.wait()


def _configure(folder: Path, server: str) -> Path:
    folder.mkdir()
    config = folder / "nginx.conf"
    config.write_text(CONFIG.format(folder=folder, server=server))
    return config


async def _accepts(address: str) -> bool:
    host, _, port = address.partition(":")
    try:
        _, writer = await asyncio.open_connection(host, int(port))
    except OSError:
        return False
    writer.close()
    await writer.wait_closed()
    return True
