"""The FastAPI application behind a site: for what has parameters, described as OpenAPI, its errors in short JSON."""

from __future__ import annotations

from http import HTTPStatus
from importlib.metadata import version
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import Response
from starlette.exceptions import HTTPException

from identity_server.web.documents import problem
from spiffe_core.errors import IdentityError
from spiffe_core.wire.status import STATUS


def web_app(title: str, description: str) -> FastAPI:
    """An application without routes, without pages for people, and with its description at /openapi.json.

    Its routes answer GET and HEAD; that is what 405 says.
    """
    app = FastAPI(
        title=title,
        description=description,
        version=version("muniment"),
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,
    )

    @app.exception_handler(IdentityError)
    async def refused(_: Request, error: Any) -> Response:
        return _problem(STATUS[error.kind][1], error.public)

    @app.exception_handler(HTTPException)
    async def http(_: Request, error: Any) -> Response:
        allow = {"Allow": "GET, HEAD"} if error.status_code == HTTPStatus.METHOD_NOT_ALLOWED else {}
        return _problem(error.status_code, str(error.detail).lower(), {**(error.headers or {}), **allow})

    @app.exception_handler(RequestValidationError)
    async def invalid(_: Request, error: Any) -> Response:
        fields = ", ".join(sorted({".".join(map(str, one["loc"])) for one in error.errors()}))
        return _problem(HTTPStatus.UNPROCESSABLE_ENTITY, f"cannot be read: {fields}")

    @app.exception_handler(Exception)
    async def failed(_: Request, __: Any) -> Response:  # the cause goes to the log
        return _problem(HTTPStatus.INTERNAL_SERVER_ERROR, "this is a fault of the server; its log has the cause")

    return app


def _problem(status: int, text: str, headers: Any = None) -> Response:
    safe = {"Cache-Control": "no-store", "X-Content-Type-Options": "nosniff"}
    return Response(problem(text), status, {**safe, **(headers or {})}, "application/json")
