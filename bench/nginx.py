"""Nginx with one worker, as what is measured beside this project."""

import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.client import HTTPConnection
from pathlib import Path

from tests.support.programs import require_program
from tests.support.upstream_server import refusing

_CONFIG = """
daemon off; master_process off; worker_processes 1; pid {folder}/pid; error_log stderr warn;
events {{ worker_connections 1024; }}
http {{
  access_log off; sendfile on; tcp_nopush on; keepalive_requests 1000000000;
  default_type application/octet-stream;
  client_body_temp_path {folder}/t1; proxy_temp_path {folder}/t2; fastcgi_temp_path {folder}/t3;
  uwsgi_temp_path {folder}/t4; scgi_temp_path {folder}/t5;
  server {{ listen {listen}; {server} }}
}}
"""
_START_SECONDS = 10.0


@contextmanager
def nginx(folder: Path, server: str, *, chain: Path | None = None) -> Iterator[str]:
    """Run it with the given directives in its one server; gives ``host:port``.

    With ``chain``, a secret key and its certificate, it speaks HTTP/2 over TLS.
    """
    address = refusing().removeprefix("http://")
    folder.mkdir()
    config = folder / "nginx.conf"
    if chain is not None:
        server += f" ssl_certificate {chain}; ssl_certificate_key {chain};"
    listen = address if chain is None else f"{address} ssl http2"
    config.write_text(_CONFIG.format(folder=folder, listen=listen, server=server))
    arguments = ["-p", str(folder), "-e", "stderr", "-c", str(config)]
    with subprocess.Popen([require_program("nginx"), *arguments]) as program:
        try:
            _wait_for(address)
            yield address
        finally:
            program.terminate()


def _wait_for(address: str) -> None:
    end = time.monotonic() + _START_SECONDS
    while True:
        connection = HTTPConnection(address)
        try:
            connection.connect()
        except OSError:
            if time.monotonic() > end:
                raise
            time.sleep(0.02)
        else:
            return
        finally:
            connection.close()
