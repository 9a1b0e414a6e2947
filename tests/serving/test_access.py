"""Who may speak to the gateway."""

from __future__ import annotations

import httpx
import pytest
from headrace.serving.access import COOKIE, Guard, check_listening
from headrace.serving.errors import ServingError
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse
from starlette.routing import Route

TOKEN = "correct-horse-battery"


def client(token: str | None, host: str = "127.0.0.1:8080") -> httpx.AsyncClient:
    async def hello(_: Request) -> PlainTextResponse:
        return PlainTextResponse("hello")

    app = Starlette(routes=[Route(path, hello, methods=["GET", "POST"]) for path in ("/", "/topics", "/health")])
    return httpx.AsyncClient(transport=httpx.ASGITransport(Guard(app, token)), base_url=f"http://{host}")


@pytest.mark.parametrize("host", ["127.0.0.1:8080", "localhost:8080", "[::1]:8080", "127.1.2.3"])
async def test_without_a_token_loopback_names_are_answered(host: str) -> None:
    async with client(None, host) as c:
        assert (await c.get("/topics")).status_code == 200


@pytest.mark.parametrize("host", ["evil.example", "127.0.0.1.evil.example:8080", "10.0.0.7:8080", "localhost.evil"])
async def test_a_name_that_was_made_to_point_here_is_refused(host: str) -> None:
    async with client(None, host) as c:
        answer = await c.get("/topics")
    assert answer.status_code == 403
    assert "loopback" in answer.json()["reason"]


@pytest.mark.parametrize("origin", ["http://evil.example", "http://127.0.0.1:9999", "null", "http://["])
async def test_a_page_from_elsewhere_may_not_publish(origin: str) -> None:
    async with client(None) as c:
        assert (await c.post("/topics", headers={"Origin": origin})).status_code == 403


async def test_the_gateways_own_page_may_speak_to_it() -> None:
    async with client(None) as c:
        assert (await c.get("/topics", headers={"Origin": "http://127.0.0.1:8080"})).status_code == 200


@pytest.mark.parametrize("given", ["", "Bearer", "Bearer wrong", f"Basic {TOKEN}", f"Bearer {TOKEN}x", "Bearer \xfc"])
async def test_with_a_token_a_request_without_it_is_refused(given: str) -> None:
    async with client(TOKEN, "gateway.example") as c:
        answer = await c.get("/topics", headers=[(b"authorization", given.encode("latin-1"))])
    assert answer.status_code == 401
    assert answer.headers["www-authenticate"] == "Bearer"


async def test_with_a_token_the_host_does_not_matter() -> None:
    async with client(TOKEN, "gateway.example") as c:
        assert (await c.get("/topics", headers={"Authorization": f"Bearer {TOKEN}"})).status_code == 200


async def test_health_needs_no_token() -> None:
    async with client(TOKEN, "gateway.example") as c:
        assert (await c.get("/health")).status_code == 200


async def test_a_browser_keeps_the_token_in_a_cookie_that_no_other_site_can_use() -> None:
    async with client(TOKEN, "gateway.example") as c:
        first = await c.get("/", params={"token": TOKEN})
        assert first.status_code == 303
        assert first.headers["location"] == "/"
        assert "HttpOnly" in first.headers["set-cookie"]
        assert "SameSite=strict" in first.headers["set-cookie"]
        assert (await c.get("/topics")).status_code == 200
        assert (await c.post("/topics", headers={"Origin": "http://evil.example"})).status_code == 403


@pytest.mark.parametrize("foreign", ["a:b=1", "päge=1", "[]=1", "=", ";;", 'q="', "x"])
async def test_a_cookie_of_another_program_on_this_host_is_passed_over(foreign: str) -> None:
    mine = f"{COOKIE}={TOKEN}"
    for cookies, status in ((foreign, 401), (f"{foreign}; {mine}", 200), (f"{mine}; {foreign}", 200)):
        async with client(TOKEN, "gateway.example") as c:
            answer = await c.get("/topics", headers=[(b"cookie", cookies.encode("latin-1"))])
        assert answer.status_code == status, cookies


async def test_the_token_in_the_address_opens_nothing_but_the_page() -> None:
    async with client(TOKEN, "gateway.example") as c:
        assert (await c.get("/topics", params={"token": TOKEN})).status_code == 401


def test_listening_beyond_this_machine_wants_a_token() -> None:
    with pytest.raises(ServingError, match=r"listen on 0\.0\.0\.0, beyond this machine, without a token"):
        check_listening("0.0.0.0", None)


@pytest.mark.parametrize("token", ["", "short", "fifteen-letters", "ünlaut-and-more-letters", "with\nline-break-in-it"])
def test_a_weak_token_is_refused(token: str) -> None:
    with pytest.raises(ServingError, match="at least 16 printable ASCII"):
        check_listening("0.0.0.0", token)
