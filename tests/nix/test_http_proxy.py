"""Whether Nix asks an HTTP proxy: libcurl decides, and its own program is asked the same."""

import socket
import subprocess
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from threading import Thread

import pytest

from nixcache_oci.clients.http.forward_proxy import find_http_proxy
from tests.support.programs import require_program

CASES = [
    ("127.0.0.1", {}, None),
    ("127.0.0.1", {"http_proxy": "P"}, "http_proxy"),
    ("127.0.0.1", {"all_proxy": "P"}, "all_proxy"),
    ("127.0.0.1", {"ALL_PROXY": "P"}, "ALL_PROXY"),
    ("127.0.0.1", {"HTTP_PROXY": "P"}, None),
    ("127.0.0.1", {"https_proxy": "P"}, None),
    ("127.0.0.1", {"http_proxy": "", "all_proxy": "P"}, "all_proxy"),
    ("127.0.0.1", {"http_proxy": "P", "no_proxy": ""}, "http_proxy"),
    ("127.0.0.1", {"http_proxy": "P", "no_proxy": "", "NO_PROXY": "127.0.0.1"}, None),
    ("127.0.0.1", {"http_proxy": "P", "no_proxy": "localhost"}, "http_proxy"),
    ("127.0.0.1", {"http_proxy": "P", "no_proxy": "localhost,127.0.0.1"}, None),
    ("127.0.0.1", {"http_proxy": "P", "no_proxy": "localhost 127.0.0.1"}, None),
    ("127.0.0.1", {"http_proxy": "P", "no_proxy": "0.0.1"}, "http_proxy"),
    ("127.0.0.1", {"http_proxy": "P", "no_proxy": "x", "NO_PROXY": "127.0.0.1"}, "http_proxy"),
    ("127.0.0.1", {"http_proxy": "P", "no_proxy": "*"}, None),
    ("127.0.0.1", {"http_proxy": "P", "no_proxy": "127.0.0.0/8"}, None),
    ("127.0.0.1", {"http_proxy": "P", "no_proxy": "10.0.0.0/8"}, "http_proxy"),
    ("127.0.0.1", {"http_proxy": "P", "no_proxy": "127.0.0.0/99"}, "http_proxy"),
    ("localhost", {"http_proxy": "P", "no_proxy": "localhost"}, None),
    ("localhost", {"http_proxy": "P", "no_proxy": ".localhost"}, None),
    ("localhost", {"http_proxy": "P", "no_proxy": "LOCALHOST"}, None),
    ("localhost", {"http_proxy": "P", "no_proxy": "host"}, "http_proxy"),
    ("localhost", {"http_proxy": "P", "no_proxy": "127.0.0.1"}, "http_proxy"),
]


@contextmanager
def answering(what: str) -> Iterator[int]:
    """Listen on loopback, and answer everything with one word; gives the port."""
    with socket.create_server(("127.0.0.1", 0)) as listening:

        def serve() -> None:
            connection, _ = listening.accept()
            with connection:
                connection.recv(65536)
                answer = f"HTTP/1.1 200 OK\r\nContent-Length: {len(what)}\r\nConnection: close\r\n\r\n{what}"
                connection.sendall(answer.encode())

        Thread(target=serve, daemon=True).start()
        port: int = listening.getsockname()[1]
        yield port


@pytest.mark.parametrize(("host", "variables", "found"), CASES)
def test_which_variable(host: str, variables: Mapping[str, str], found: str | None) -> None:
    """The first that has a text counts, unless no_proxy has the host."""
    assert find_http_proxy(f"http://{host}:37515", variables) == found


@pytest.mark.parametrize("word", ["::1", "[::1]", "::/0"])
def test_version_6(word: str) -> None:
    """Addresses are compared as such, in brackets or not."""
    assert find_http_proxy("http://[::1]:37515", {"http_proxy": "P", "no_proxy": word}) is None
    assert find_http_proxy("http://127.0.0.1:37515", {"http_proxy": "P", "no_proxy": word}) == "http_proxy"


@pytest.mark.needs("curl")
@pytest.mark.parametrize(("host", "variables", "found"), CASES)
def test_libcurl_decides_the_same(host: str, variables: Mapping[str, str], found: str | None) -> None:
    """With the same variables curl asks whom we say that Nix asks."""
    with answering("itself") as port, answering("proxy") as proxy:
        environment = {
            name: value.replace("P", f"http://127.0.0.1:{proxy}") if "NO" not in name.upper() else value
            for name, value in variables.items()
        }
        done = subprocess.run(
            [require_program("curl"), "-q", "-4", "--silent", "--fail", f"http://{host}:{port}/"],
            env=environment,
            capture_output=True,
            text=True,
            timeout=60,
            check=True,
        )
    assert done.stdout == ("itself" if found is None else "proxy")
