"""Who may speak to the gateway."""

from __future__ import annotations

import hmac
import ipaddress
from urllib.parse import parse_qs, urlsplit

from headrace.serving.errors import ServingError
from starlette.datastructures import Headers
from starlette.requests import cookie_parser
from starlette.responses import JSONResponse, RedirectResponse
from starlette.types import ASGIApp, Receive, Scope, Send
from starlette.websockets import WebSocket

COOKIE = "headrace-token"
SUBPROTOCOL = "headrace"
"""A WebSocket that cannot set headers offers the subprotocols `headrace` and the token."""
OPEN = frozenset({"/health", "/ready"})
"""Paths that need no token: whoever restarts the gateway, or sends it work, asks them."""
SHORTEST_TOKEN = 16
"""Characters. A shorter token can be guessed over a network."""


def is_loopback(host: str) -> bool:
    """Whether a host name or address is this machine itself."""
    if host.lower().rstrip(".") == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False


def check_listening(host: str, token: str | None) -> None:
    """Raises ServingError where a gateway would listen beyond this machine without a token, or with a weak one."""
    if token is not None and (len(token) < SHORTEST_TOKEN or not token.isascii() or not token.isprintable()):
        raise ServingError(f"the token must have at least {SHORTEST_TOKEN} printable ASCII characters")
    if token is None and not is_loopback(host):
        raise ServingError(
            f"the gateway would listen on {host}, beyond this machine, without a token: set HEADRACE_TOKEN (or "
            f"--token), or let it listen on 127.0.0.1"
        )


class Guard:
    """ASGI middleware. With a token, every request must bring it; without one, requests must be meant for loopback.

    A web page elsewhere can make a browser send requests to this machine (directly, or under a name that it lets
    point here). So without a token the Host must be loopback and the Origin, where there is one, the Host itself.
    """

    def __init__(self, app: ASGIApp, token: str | None) -> None:
        self._app = app
        self._token = token

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] not in ("http", "websocket"):
            await self._app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        query = parse_qs(scope.get("query_string", b"").decode("latin-1"))
        offered = query.get("token", [""])[0]
        if self._token and scope["type"] == "http" and scope["path"] == "/" and self._equal(offered):
            # A browser that was sent here with the token keeps it out of the address bar from now on.
            response = RedirectResponse("/", status_code=303)
            response.set_cookie(COOKIE, self._token, httponly=True, samesite="strict")
            await response(scope, receive, send)
            return
        refusal = self._with_token(scope, headers, offered) if self._token else _without_token(headers)
        if refusal is None:
            await self._app(scope, receive, send)
            return
        status, reason = refusal
        answer = JSONResponse({"reason": reason}, status, {"WWW-Authenticate": "Bearer"} if status == 401 else None)
        if scope["type"] == "websocket":
            await WebSocket(scope, receive, send).send_denial_response(answer)
        else:
            await answer(scope, receive, send)

    def _with_token(self, scope: Scope, headers: Headers, offered: str) -> tuple[int, str] | None:
        scheme, _, given = headers.get("authorization", "").partition(" ")
        if scope["path"] in OPEN or (scheme.lower() == "bearer" and self._equal(given.strip())):
            return None
        if scope["type"] == "websocket" and (
            self._equal(offered) or any(self._equal(p) for p in scope.get("subprotocols", ()) if p != SUBPROTOCOL)
        ):
            return None
        # The reader of http.cookies fails on names that other programs of the same host may well have set.
        cookie = cookie_parser(headers.get("cookie", "")).get(COOKIE)
        if cookie is not None and self._equal(cookie):
            return _same_origin(headers)
        return 401, "this gateway wants its token: send Authorization: Bearer <token>, or open /?token=<token>"

    def _equal(self, given: str) -> bool:
        return hmac.compare_digest(given.encode(), (self._token or "").encode())


def _without_token(headers: Headers) -> tuple[int, str] | None:
    host = _host(headers.get("host", ""))
    if not is_loopback(host):
        return 403, f"this gateway answers on loopback only, not as {host!r}: use 127.0.0.1 or localhost"
    return _same_origin(headers)


def _same_origin(headers: Headers) -> tuple[int, str] | None:
    origin = headers.get("origin")
    if origin is not None and _authority(origin) != headers.get("host", "").lower():
        return 403, f"a page of {origin} may not speak to this gateway: its own page and programs may"
    return None


def _authority(origin: str) -> str | None:
    try:
        return urlsplit(origin).netloc.lower()
    except ValueError:
        return None


def _host(header: str) -> str:
    try:
        return urlsplit(f"//{header}").hostname or ""
    except ValueError:
        return ""
