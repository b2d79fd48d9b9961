"""What stands before the application: who may ask, how much, and for how long. Every refusal is one line of JSON."""

import asyncio
import hmac
import json
import logging
import time
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any
from urllib.parse import urlsplit

from anomaly_lib.serving.options import is_loopback

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Message, Receive, Send], Awaitable[None]]

BODY_SECONDS = 30.0
BODIES = 8  # largest requests that are held at once
WITHOUT_TOKEN = ("/health", "/")  # of "/" only the page, which holds no data
FAILED = "the server failed at this request; its log says where"
LOG = logging.getLogger("anomaly_lib.serving")


class Refused(Exception):
    """A request that is not answered: its status and one line that says why."""

    def __init__(self, status: int, why: str, **headers: str) -> None:
        super().__init__(why)
        self.status, self.why = status, why
        self.headers = {name.replace("_", "-"): value for name, value in headers.items()}


class Guard:
    """An ASGI application before another."""

    def __init__(
        self, app: App, *, host: str, token: str | None, most_bytes: int, note: Callable[[str, int, float], object],
        body_seconds: float = BODY_SECONDS,
    ) -> None:  # fmt: skip
        self.app, self.host, self.token, self.most_bytes, self.note = app, host, token, most_bytes, note
        self.body_seconds, self.held = body_seconds, 0

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        """Answer one request, whatever becomes of it, and take note of it."""
        if scope["type"] != "http":
            return
        began, status, whole = time.perf_counter(), 0, False

        async def noting(message: Message) -> None:
            nonlocal status, whole
            if message["type"] == "http.response.start":
                status = message["status"]
                message["headers"] = [*message.get("headers", ()), *SAFE_HEADERS]
            await send(message)
            whole = message["type"] == "http.response.body" and not message.get("more_body", False)

        taken = 0
        try:
            headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]}
            self.check(scope, headers)
            body = await self.body(headers, receive)
            taken = len(body)
            self.held += taken
            await self.app(scope, _replayed(body, receive), noting)
        except Refused as refused:
            await answer(noting, refused.status, refused.why, refused.headers)
        except Exception:
            LOG.exception("%s %s failed", scope["method"], scope["path"])
            if status and not whole:
                raise  # half an answer has gone out: the connection has to end
            if not status:
                await answer(noting, 500, FAILED)
        except asyncio.CancelledError:
            if not status:
                await answer(noting, 503, "the server is being stopped")
        finally:
            self.held -= taken
            self.note(scope["path"], status, time.perf_counter() - began)

    def check(self, scope: Message, headers: dict[str, str]) -> None:
        """Refuse pages of other sites that speak through a browser, and whoever lacks the token."""
        host = headers.get("host", "")
        name = urlsplit(f"//{host}").hostname or ""
        if is_loopback(self.host) and name != self.host and not is_loopback(name):
            raise Refused(421, f"Host {host[:100]!r}: this server answers to localhost and 127.0.0.1")
        origin = headers.get("origin")
        if scope["method"] not in ("GET", "HEAD") and origin is not None and urlsplit(origin).netloc != host:
            raise Refused(403, f"Origin {origin[:100]!r}: pages of other sites may not ask this server")
        if self.token is None or scope["path"] in WITHOUT_TOKEN:
            return
        kind, _, given = headers.get("authorization", "").partition(" ")
        right = hmac.compare_digest(given.strip().encode("utf-8", "replace"), self.token.encode())
        if kind.lower() != "bearer" or not right:
            raise Refused(401, "give the token: -H 'Authorization: Bearer TOKEN'", WWW_Authenticate="Bearer")

    async def body(self, headers: dict[str, str], receive: Receive) -> bytes:
        """The whole body, if it is not too large and comes in time."""
        declared = headers.get("content-length", "")
        limit = self.most_bytes
        too_large = Refused(413, f"a request may have {limit / 2**20:g} MiB; send fewer or smaller images")
        refused = too_large if declared.isdigit() and int(declared) > limit else None
        if refused is not None and "expect" in headers:  # the client asks before it sends
            raise refused
        deadline, chunks, seen = time.monotonic() + self.body_seconds, [], 0
        while True:
            try:
                message = await asyncio.wait_for(receive(), max(0.0, deadline - time.monotonic()))
            except asyncio.TimeoutError:
                raise refused or Refused(408, f"the request did not come in {self.body_seconds:g} s") from None
            if message["type"] != "http.request":
                raise refused or Refused(400, "the request broke off")
            chunk = message.get("body", b"")
            seen += len(chunk)
            if seen > limit:
                refused = too_large
            elif self.held + seen > BODIES * limit:
                refused = refused or Refused(429, "too many requests at once; ask again", Retry_After="1")
            if refused is None:
                chunks.append(chunk)
            else:
                chunks.clear()  # what still comes is dropped, so that the client reads the answer
            if not message.get("more_body", False) or seen > 4 * limit:
                break
        if refused is not None:
            raise refused
        return b"".join(chunks)


SAFE_HEADERS = [
    (b"x-content-type-options", b"nosniff"),
    (b"cross-origin-resource-policy", b"same-origin"),
    (b"referrer-policy", b"no-referrer"),
    (b"cache-control", b"no-store"),
]


def _replayed(body: bytes, receive: Receive) -> Receive:
    """What a server gives an application, of a body that has been read."""
    given = False

    async def again() -> Message:
        nonlocal given
        if given:
            return await receive()
        given = True
        return {"type": "http.request", "body": body, "more_body": False}

    return again


def one_line(why: str) -> dict[str, str]:
    """What a refusal holds."""
    return {"error": " ".join(why.encode("utf-8", "replace").decode().split())}


async def answer(send: Send, status: int, why: str, headers: dict[str, str] | None = None) -> None:
    """Send a refusal."""
    content = json.dumps(one_line(why), ensure_ascii=False).encode()
    fields = {"content-type": "application/json", "content-length": str(len(content)), **(headers or {})}
    named = [(name.lower().encode(), value.encode("latin-1")) for name, value in fields.items()]
    await send({"type": "http.response.start", "status": status, "headers": named})
    await send({"type": "http.response.body", "body": content})
