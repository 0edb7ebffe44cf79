"""The page's ASGI application: who may ask, what is answered, and in which order.

A browser comes once with the token in the address and gets it as a cookie; scripts send
``Authorization: Bearer TOKEN``. Requests wait in one line for the one model. A browser gets
sentences, never a traceback.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import logging
import secrets
from concurrent.futures import ThreadPoolExecutor
from importlib.resources import files

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, RedirectResponse, Response
from starlette.routing import Route

from t2i_hpc.common.errors import ConfigurationError, UserError, ran_out_of_memory
from t2i_hpc.serving.served_run import ImageRequest, ServedRun

_LOG = logging.getLogger("t2i_hpc.serve")
_MOST_BYTES = 64 << 10
_LOOK_SECONDS = 0.5  # between two looks whether a browser that waits has left
_FILES = {"/": ("page.html", "text/html"), "/page.js": ("page.js", "text/javascript")}
_FILES["/page.css"] = ("page.css", "text/css")
_HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; "
    "img-src data: blob:; connect-src 'self'; base-uri 'none'; form-action 'none'; "
    "frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",  # the token is in the first address
    "Cache-Control": "no-store",
}


class Application:
    """Routes and their one line of waiting requests.

    Args:
        served: the model.
        token: that each request must know; empty: none.
        most_waiting: requests that may wait.
    """

    def __init__(self, served: ServedRun, token: str, most_waiting: int) -> None:
        self._served, self._token, self._most_waiting = served, token, most_waiting
        # Cookies know no ports: two pages on one machine need two names.
        self._cookie = f"t2i_hpc_{hashlib.sha256(token.encode()).hexdigest()[:8]}"
        self._waiting = 0
        self._model = ThreadPoolExecutor(1, thread_name_prefix="model")

    def asgi(self) -> Starlette:
        """Return it for a server."""
        pages = [Route(path, self._page) for path in _FILES]
        api = [Route("/api/run", self._about), Route("/api/images", self._images, methods=["POST"])]
        return Starlette(routes=[*pages, *api], exception_handlers={Exception: _failed})

    def close(self) -> None:
        """Let the request that runs end, and drop those that wait."""
        self._model.shutdown(cancel_futures=True)

    async def _page(self, request: Request) -> Response:
        given = request.query_params.get("token")
        if given is not None and self._is_token(given):
            answer: Response = RedirectResponse("/", 303)
            answer.set_cookie(self._cookie, given, httponly=True, samesite="strict")
            return _secured(answer)
        if not self._is_allowed(request):
            said = "Open the address that t2i_hpc.serve printed: it holds a token.\n"
            return _secured(PlainTextResponse(said, 403))
        name, kind = _FILES[request.url.path]
        text = (files(__package__) / name).read_text(encoding="utf-8")
        return _secured(Response(text, media_type=kind))

    async def _about(self, request: Request) -> Response:
        if not self._is_allowed(request):
            return _refusal("this needs the token of the address that was printed", 403)
        return _secured(JSONResponse(self._served.about()))

    async def _images(self, request: Request) -> Response:
        if not self._is_allowed(request):
            return _refusal("this needs the token of the address that was printed", 403)
        if self._waiting >= self._most_waiting:
            return _refusal("the model is busy: try again in a moment", 503)
        self._waiting += 1
        try:
            asked = ImageRequest.parse(await _json_of(request))
            return await self._answer(request, asked)
        except UserError as error:
            return _refusal(str(error), 400)
        except Exception as error:
            if not ran_out_of_memory(error):
                raise
            return _refusal("the device has too little memory: ask for fewer images", 503)
        finally:
            self._waiting -= 1

    async def _answer(self, request: Request, asked: ImageRequest) -> Response:
        """Wait for the model, but not for the sake of a browser that has left."""
        work = self._model.submit(self._served.answer, asked)
        future = asyncio.wrap_future(work)
        while not (await asyncio.wait({future}, timeout=_LOOK_SECONDS))[0]:
            if await request.is_disconnected() and work.cancel():
                return Response(status_code=499)
        return _secured(JSONResponse(future.result()))

    def _is_allowed(self, request: Request) -> bool:
        if not self._token:
            return True
        scheme, _, given = request.headers.get("authorization", "").partition(" ")
        bearer = given if scheme.lower() == "bearer" else ""
        return self._is_token(bearer) or self._is_token(request.cookies.get(self._cookie, ""))

    def _is_token(self, given: str) -> bool:
        return secrets.compare_digest(given.encode(), self._token.encode())


async def _json_of(request: Request) -> object:
    """Read a request's JSON.

    Raises:
        ConfigurationError: it is too long, of another type, or no JSON.
    """
    # Other sites' forms cannot send this type without asking first.
    if request.headers.get("content-type", "").split(";")[0] != "application/json":
        raise ConfigurationError("a request is JSON: send Content-Type: application/json")
    body = bytearray()
    async for chunk in request.stream():
        body += chunk
        if len(body) > _MOST_BYTES:
            raise ConfigurationError(f"a request has {_MOST_BYTES:,} bytes at most")
    try:
        return json.loads(body)
    except (ValueError, RecursionError) as error:
        raise ConfigurationError("the request is no JSON") from error


def _refusal(sentence: str, status: int) -> Response:
    return _secured(JSONResponse({"error": sentence}, status))


async def _failed(request: Request, error: Exception) -> Response:
    _LOG.error("%s %s failed", request.method, request.url.path, exc_info=error)
    return _refusal("this failed: the terminal of t2i_hpc.serve says why", 500)


def _secured(answer: Response) -> Response:
    answer.headers.update(_HEADERS)
    return answer
