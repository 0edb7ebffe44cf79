"""Who may use the page, what it refuses, and how requests wait: the application in this process."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from typing import Any

import pytest

from t2i_hpc.common.errors import ConfigurationError
from t2i_hpc.serving.app import Application
from t2i_hpc.serving.served_run import ImageRequest

httpx = pytest.importorskip("httpx2")
TOKEN = {"Authorization": "Bearer secret"}
JSON = {"Content-Type": "application/json"}
ASKED = {"captions": ["a red circle"]}


class Model:
    """Stands for a run: answers with what it is told to do."""

    def __init__(self, work: Callable[[ImageRequest], Any]) -> None:
        self.answer = work

    def about(self) -> dict[str, str]:
        return {"run": "demo"}


def application(work: Callable[[ImageRequest], Any] = lambda asked: {}, **more: Any) -> Application:
    model: Any = Model(work)
    return Application(model, **{"token": "secret", "most_waiting": 1, **more})


def asking(app: Application, *requests: tuple[str, str, dict[str, Any]]) -> list[Any]:
    """Send requests at once; return their replies in the order they came in."""

    async def send() -> list[Any]:
        transport = httpx.ASGITransport(app.asgi(), raise_app_exceptions=False)
        async with httpx.AsyncClient(transport=transport, base_url="http://page") as client:
            sent = [client.request(method, path, **more) for method, path, more in requests]
            return [await each for each in asyncio.as_completed(sent)]

    try:
        return asyncio.run(send())
    finally:
        app.close()


def images(**more: Any) -> tuple[str, str, dict[str, Any]]:
    return "POST", "/api/images", {"json": ASKED, "headers": TOKEN, **more}


@pytest.mark.parametrize(
    ("path", "method"),
    [("/", "GET"), ("/page.js", "GET"), ("/api/run", "GET"), ("/api/images", "POST")],
)
@pytest.mark.parametrize(
    "more",
    [
        {},
        {"params": {"token": "guess"}},
        {"headers": {"Authorization": "Bearer guess"}},
        {"headers": {"Authorization": "secret"}},
        {"headers": {"Cookie": "t2i_hpc_2bb80d53=guess"}},
        {"params": {"token": "ä"}},
    ],
)
def test_nothing_is_told_without_the_token(path: str, method: str, more: dict[str, Any]) -> None:
    (reply,) = asking(application(), (method, path, more))
    assert reply.status_code == 403
    assert "demo" not in reply.text
    assert "set-cookie" not in reply.headers


def test_the_token_of_the_address_becomes_a_cookie() -> None:
    (reply,) = asking(application(), ("GET", "/", {"params": {"token": "secret"}}))
    assert (reply.status_code, reply.headers["location"]) == (303, "/")
    cookie = reply.headers["set-cookie"]
    assert "HttpOnly" in cookie
    assert "SameSite=strict" in cookie
    (reply,) = asking(
        application(), ("GET", "/api/run", {"headers": {"Cookie": cookie.partition(";")[0]}})
    )
    assert reply.json() == {"run": "demo"}


def test_a_page_without_a_token_answers_everybody() -> None:
    (reply,) = asking(application(token=""), ("GET", "/api/run", {}))
    assert reply.status_code == 200
    assert "default-src 'none'" in reply.headers["content-security-policy"]


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ({"content": b"{}", "json": None}, "Content-Type: application/json"),
        (
            {
                "json": None,
                "content": b"{",
                "headers": {**TOKEN, "Content-Type": "application/json"},
            },
            "no JSON",
        ),
        ({"json": {"captions": ["a" * 70_000]}}, "65,536 bytes at most"),
        ({"json": {"captions": ["a" * 1_001]}}, "1,000 characters"),
        ({"json": {"captions": "a red circle"}}, "list of texts"),
        ({"json": {"captions": []}}, "list of texts"),
        (
            {"json": {**ASKED, "checkpoints": ["other/weights.safetensors"]}},
            "checkpoints= is a list",
        ),
        ({"json": {**ASKED, "seed": -1}}, "seed= is a whole number from 0 to 4294967295"),
        ({"json": {**ASKED, "columns": True}}, "columns= is a whole number from 1 to 64"),
        ({"json": {**ASKED, "output": "x"}}, "captions, checkpoints, columns, seed"),
    ],
)
def test_wrong_requests_are_refused_in_a_sentence(more: dict[str, Any], said: str) -> None:
    method, path, plain = images()
    (reply,) = asking(application(), (method, path, {**plain, **more}))
    assert reply.status_code == 400
    assert said in reply.json()["error"]


def test_a_defect_is_no_traceback_in_the_browser(caplog: pytest.LogCaptureFixture) -> None:
    def defect(asked: ImageRequest) -> Any:
        raise ZeroDivisionError("of the model")

    (reply,) = asking(application(defect), images())
    assert reply.status_code == 500
    assert reply.json() == {"error": "this failed: the terminal of t2i_hpc.serve says why"}
    assert "ZeroDivisionError: of the model" in caplog.text


def test_what_a_user_can_put_right_is_said() -> None:
    def wrong(asked: ImageRequest) -> Any:
        raise ConfigurationError("no word of the caption is known")

    (reply,) = asking(application(wrong), images())
    assert (reply.status_code, reply.json()) == (400, {"error": "no word of the caption is known"})


def test_requests_wait_in_one_line_and_not_too_many() -> None:
    busy, refused = [], threading.Event()

    def work(asked: ImageRequest) -> Any:
        busy.append(asked)
        assert len(busy) == 1  # one at a time
        refused.wait(30)
        busy.pop()
        return {"done": True}

    app = application(work, most_waiting=2)

    async def send() -> tuple[Any, list[Any]]:
        transport = httpx.ASGITransport(app.asgi())
        async with httpx.AsyncClient(transport=transport, base_url="http://page") as client:
            sent = [asyncio.ensure_future(client.request(m, p, **o)) for m, p, o in [images()] * 3]
            done, others = await asyncio.wait(sent, return_when=asyncio.FIRST_COMPLETED)
            refused.set()
            return done.pop().result(), [await each for each in others]

    first, others = asyncio.run(send())
    app.close()
    assert (first.status_code, first.json()["error"]) == (
        503,
        "the model is busy: try again in a moment",
    )
    assert [reply.json() for reply in others] == [{"done": True}] * 2
