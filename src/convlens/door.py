"""How a browser comes in: the address that was opened has a ticket, which is good once and becomes a cookie; with the
cookie the guard sees the token. So a page needs no script that knows a secret, and an address in a history is worth
nothing."""

from __future__ import annotations

import hmac
from http.cookies import CookieError, SimpleCookie
from urllib.parse import parse_qs

from .guard import App, Limits, Receive, Scope, Send

CLOSED = """<!doctype html><html lang="en"><meta charset="utf-8"><title>ConvLens</title>
<h1>This page has not been opened from here</h1>
<p>The address that ConvLens printed opens it once, in one browser. Start <code>convlens open RUN</code> again for a new
address.</p><p lang="zh">ConvLens 给出的地址只能在一个浏览器中打开一次；要得到新地址，请重新运行
<code>convlens open RUN</code>。</p></html>"""


class Door:
    """In front of a Guard with the same `limits`; `ticket` stands in the address that is opened, `/?ticket=...`."""

    def __init__(self, app: App, ticket: str, limits: Limits) -> None:
        self.app, self.ticket, self.limits, self.token = app, ticket, limits, limits.token or ""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        host = dict(scope["headers"]).get(b"host", b"").decode("latin-1") if scope["type"] == "http" else ""
        if not self.limits.knows(host):  # the guard refuses it; the ticket is still good
            await self.app(scope, receive, send)
            return
        name = f"convlens-{scope['server'][1]}"  # cookies are the same for all ports of a host
        inside = _same(_cookie(scope, name), self.token)
        if inside:
            headers = [(key, value) for key, value in scope["headers"] if key != b"authorization"]
            scope["headers"] = [*headers, (b"authorization", f"Bearer {self.token}".encode())]
        given = parse_qs(scope["query_string"].decode("latin-1")).get("ticket", [""])[0]
        if scope["path"] != "/" or scope["method"] != "GET" or (inside and not given):
            await self.app(scope, receive, send)
        elif inside or _same(given, self.ticket):
            self.ticket = self.ticket if inside else ""
            cookie = f"{name}={self.token}; HttpOnly; SameSite=Strict; Path=/"
            await _answer(send, 303, b"", {"Location": "/", "Set-Cookie": cookie})
        elif dict(scope["headers"]).get(b"authorization"):
            await self.app(scope, receive, send)  # the guard looks at it
        else:
            await _answer(send, 403, CLOSED.encode(), {"Content-Type": "text/html; charset=utf-8"})


def _cookie(scope: Scope, name: str) -> str:
    text = dict(scope["headers"]).get(b"cookie", b"").decode("latin-1")
    try:
        cookies = SimpleCookie(text)
    except CookieError:
        return ""
    return cookies[name].value if name in cookies else ""


def _same(given: str, secret: str) -> bool:
    return bool(secret) and hmac.compare_digest(given.encode(), secret.encode())


async def _answer(send: Send, status: int, body: bytes, headers: dict[str, str]) -> None:
    always = {"Content-Length": str(len(body)), "Cache-Control": "no-store", "Referrer-Policy": "no-referrer"}
    always |= {"Content-Security-Policy": "default-src 'none'; frame-ancestors 'none'"}
    raw = [(key.lower().encode(), value.encode()) for key, value in (always | headers).items()]
    await send({"type": "http.response.start", "status": status, "headers": raw})
    await send({"type": "http.response.body", "body": body})
