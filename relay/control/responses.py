"""Answers of the control plane's HTTP interfaces: JSON that no cache keeps, and one error shape."""

from __future__ import annotations

from typing import Any

import orjson
from aiohttp import web

from relay.control.failures import CommandError

_HEADERS = {"Cache-Control": "no-store", "X-Content-Type-Options": "nosniff"}


def json_response(document: dict[str, Any], status: int = 200, headers: dict[str, str] | None = None) -> web.Response:
    """A document as an answer."""
    return web.Response(
        body=orjson.dumps(document),
        status=status,
        content_type="application/json",
        headers=_HEADERS | (headers or {}),
    )


def error_response(failure: CommandError) -> web.Response:
    """A refusal in the one error shape: {"error": {"code", "message", "field"?}}."""
    headers = {"WWW-Authenticate": "Bearer"} if failure.status == 401 else None
    return json_response(failure.document(), failure.status, headers)


def query_fields(request: web.Request) -> dict[str, Any]:
    """The parameters of a query, each of which may stand there once. CommandError."""
    fields: dict[str, Any] = {}
    for name, value in request.query.items():
        if name in fields:
            raise CommandError("invalid", "a parameter stands twice in the query", "query")
        fields[name] = value
    return fields
