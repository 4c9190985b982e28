"""A real Chromium without a window, spoken to over its own debugging protocol: no driver, nothing downloaded.

It runs without a network: every name but this machine's address is unknown to it.
Source: Chrome DevTools Protocol, https://chromedevtools.github.io/devtools-protocol/
"""

import asyncio
import base64
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from itertools import count
from pathlib import Path
from typing import Any, Final

import aiohttp

from tests.support.programs import require_program

CHROMIUM: Final = "chromium"
_SECONDS: Final = 60
_FLAGS: Final = (
    "--headless=new",
    "--no-sandbox",  # root has none, and the pages are ours
    "--disable-gpu",
    "--disable-dev-shm-usage",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-extensions",
    "--disable-sync",
    "--force-color-profile=srgb",
    "--hide-scrollbars",
    "--no-first-run",
    "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1",
    "--remote-debugging-port=0",
)

Message = dict[str, Any]


class Tab:
    """One page at a time.

    Attributes:
        requests: URLs that it asked for.
        errors: what the console says is wrong, exceptions and refusals by the policy included.
    """

    def __init__(self, socket: aiohttp.ClientWebSocketResponse) -> None:
        self.requests: list[str] = []
        self.errors: list[str] = []
        self._socket = socket
        self._numbers = count(1)
        self._waiting: dict[int, asyncio.Future[Message]] = {}
        self._loaded = asyncio.Event()
        self._reading = asyncio.create_task(self._read())
        self._session = ""

    async def open(self) -> None:
        """Make the tab."""
        target = await self.send("Target.createTarget", url="about:blank")
        attached = await self.send("Target.attachToTarget", targetId=target["targetId"], flatten=True)
        self._session = attached["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            await self.send(f"{domain}.enable")

    async def close(self) -> None:
        """Stop listening."""
        self._reading.cancel()
        with suppress(asyncio.CancelledError):
            await self._reading

    async def send(self, method: str, **parameters: object) -> Message:
        """Send a command, and return its result."""
        number = next(self._numbers)
        answer = self._waiting[number] = asyncio.get_running_loop().create_future()
        message = {"id": number, "method": method, "params": parameters}
        await self._socket.send_json({**message, "sessionId": self._session} if self._session else message)
        found = await asyncio.wait_for(answer, _SECONDS)
        assert "error" not in found, found["error"]
        result: Message = found["result"]
        return result

    async def go(self, url: str) -> None:
        """Load a page, and wait until all of it is there."""
        self._loaded.clear()
        await self.send("Page.navigate", url=url)
        await self.loaded()

    async def loaded(self) -> None:
        """Wait for the end of a load that began after the last one ended."""
        await asyncio.wait_for(self._loaded.wait(), _SECONDS)

    async def act(self, expression: str) -> None:
        """Evaluate what leads to another page, and wait for that."""
        self._loaded.clear()
        await self.run(expression)
        await self.loaded()

    async def run(self, expression: str) -> Any:  # noqa: ANN401  whatever the page gives
        """Evaluate an expression, and return its value; a promise is waited for."""
        found = await self.send(
            "Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True, userGesture=True
        )
        assert "exceptionDetails" not in found, found["exceptionDetails"]
        return found["result"].get("value")

    async def press(self, key: str, text: str = "", *, leads_away: bool = False) -> None:
        """Press a key, and wait for the page that it leads to, if it does."""
        codes = {"Tab": 9, "Enter": 13}
        self._loaded.clear()
        for kind in ("keyDown", "keyUp"):
            await self.send(
                "Input.dispatchKeyEvent",
                type=kind,
                key=key,
                windowsVirtualKeyCode=codes.get(key, 0),
                **({"text": text} if kind == "keyDown" and text else {}),
            )
        if leads_away:
            await self.loaded()

    async def resize(self, width: int, height: int = 800) -> None:
        """Set the size of the window."""
        await self.send(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=height,
            deviceScaleFactor=1,
            mobile=width < 500,
        )

    async def prefer(self, scheme: str) -> None:
        """Prefer ``light`` or ``dark``."""
        features = [{"name": "prefers-color-scheme", "value": scheme}]
        await self.send("Emulation.setEmulatedMedia", features=features)

    async def allow_scripts(self, *, are_allowed: bool) -> None:
        """Switch scripts of pages on or off."""
        await self.send("Emulation.setScriptExecutionDisabled", value=not are_allowed)

    async def take_picture(self, path: Path) -> None:
        """Write the whole page as PNG."""
        size = (await self.send("Page.getLayoutMetrics"))["cssContentSize"]
        clip = {"x": 0, "y": 0, "width": size["width"], "height": size["height"], "scale": 1}
        taken = await self.send("Page.captureScreenshot", format="png", captureBeyondViewport=True, clip=clip)
        await asyncio.to_thread(path.write_bytes, base64.b64decode(taken["data"]))

    async def _read(self) -> None:
        async for message in self._socket:
            found = json.loads(message.data)
            if "id" in found:
                self._waiting.pop(found["id"]).set_result(found)
            else:
                self._note(found["method"], found["params"])

    def _note(self, method: str, told: Message) -> None:
        match method:
            case "Page.loadEventFired":
                self._loaded.set()
            case "Network.requestWillBeSent":
                self.requests.append(told["request"]["url"])
            case "Log.entryAdded" if told["entry"]["level"] in {"error", "warning"}:
                self.errors.append(told["entry"]["text"])
            case "Runtime.consoleAPICalled" if told["type"] in {"error", "warning", "assert"}:
                self.errors.append(str(told["args"]))
            case "Runtime.exceptionThrown":
                self.errors.append(str(told["exceptionDetails"]))


@asynccontextmanager
async def opened_tab(folder: Path) -> AsyncIterator[Tab]:
    """Start Chromium with a profile of its own, and open a tab."""
    process = await asyncio.create_subprocess_exec(
        require_program(CHROMIUM),
        *_FLAGS,
        f"--user-data-dir={folder / 'profile'}",
        "about:blank",
        stdout=asyncio.subprocess.DEVNULL,
        stderr=asyncio.subprocess.PIPE,
        env={"HOME": str(folder), "PATH": "/usr/bin:/bin", "LANG": "C.UTF-8"},
    )
    try:
        assert process.stderr is not None
        address = await asyncio.wait_for(_find_address(process.stderr), _SECONDS)
        drain = asyncio.create_task(_drain(process.stderr))
        async with (
            aiohttp.ClientSession() as session,
            session.ws_connect(address, max_msg_size=0) as socket,
        ):
            tab = Tab(socket)
            await tab.open()
            try:
                yield tab
            finally:
                await tab.close()
        drain.cancel()
    finally:
        with suppress(ProcessLookupError):
            process.terminate()
        await process.wait()


async def _find_address(stderr: asyncio.StreamReader) -> str:
    while line := await stderr.readline():
        _, found, address = line.decode(errors="replace").partition("DevTools listening on ")
        if found:
            return address.strip()
    raise RuntimeError("chromium did not start")


async def _drain(stderr: asyncio.StreamReader) -> None:
    while await stderr.read(65536):
        pass
