"""OpenAPI 3.1 documents of the customer's and the operator's API, made from what their handlers use.

Routes and parameters come from the tables that register the handlers (`commands.COMMANDS`, `customer.ROUTES`), answers
from the types in `answers`: there is no second description that could fall behind.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import msgspec

from relay import __version__
from relay.control import answers
from relay.control.commands import COMMANDS, Command, Params
from relay.control.operations import Operations

Document = dict[str, Any]

_REFUSALS = {
    400: "A parameter cannot be right.",
    401: "No valid key or token.",
    403: "This caller may not.",
    404: "There is no such thing.",
    409: "The state of things does not allow it.",
    500: "A fault of the relay's own.",
    503: "Not now: the store cannot be reached, or the relay is stopping.",
}
# What the id in a path looks like, by what stands in front of it.
_PATH_IDS = {
    "accounts": "acct_1",
    "organisations": "org_1",
    "keys": "key_1",
    "channels": "openai",
    "schedule": "sched_1",
    "calls": "call_1kbbkb1000001",
}


@dataclass(frozen=True)
class Route:
    """One operation. `path` is whole, with `{names}`; `refusals` are statuses beside 200."""

    name: str
    method: str
    path: str
    params: type[Params]
    answer: type[msgspec.Struct]
    about: str
    refusals: tuple[int, ...]


def document(title: str, about: str, security: str, routes: Iterable[Route]) -> Document:
    """The OpenAPI document of these routes. `security`: what the bearer token is."""
    routes = list(routes)
    _, components = _schemas({route.answer for route in routes} | {answers.Error})
    named, taken = _schemas({route.params for route in routes})  # written out where they are used
    schema_of = {type_: taken[name] for type_, name in named.items()}
    paths: Document = {}
    for route in routes:
        paths.setdefault(route.path, {})[route.method.lower()] = _operation(route, schema_of[route.params])
    return {
        "openapi": "3.1.0",
        "info": {"title": title, "description": about, "version": __version__},
        "paths": paths,
        "components": {
            "schemas": components,
            "securitySchemes": {"bearer": {"type": "http", "scheme": "bearer", "description": security}},
        },
        "security": [{"bearer": []}],
    }


def _operation(route: Route, params: Document) -> Document:
    in_path = Command.PATH_FIELD.findall(route.path)
    properties = {name: schema for name, schema in params.get("properties", {}).items() if name not in in_path}
    required = [name for name in params.get("required", ()) if name not in in_path]
    operation: Document = {
        "operationId": route.name.replace(" ", "_"),
        "summary": route.about,
        "parameters": [
            {
                "name": name,
                "in": "path",
                "required": True,
                "schema": {"type": "string", "minLength": 1},
                "example": _PATH_IDS[route.path.split("{")[0].rstrip("/").rpartition("/")[2]],
            }
            for name in in_path
        ],
        "responses": {
            "200": _content("The answer.", route.answer),
            **{str(status): _content(_REFUSALS[status], answers.Error) for status in route.refusals},
        },
    }
    if route.method == "GET":
        operation["parameters"] += [
            {"name": name, "in": "query", "required": name in required, "schema": _without_null(schema)}
            for name, schema in properties.items()
        ]
    elif properties:
        body: Document = {"type": "object", "properties": properties, "additionalProperties": False}
        if required:
            body["required"] = required
        operation["requestBody"] = {"required": bool(required), "content": {"application/json": {"schema": body}}}
    if not operation["parameters"]:
        del operation["parameters"]
    return operation


def _content(about: str, type_: type[msgspec.Struct]) -> Document:
    reference = {"$ref": f"#/components/schemas/{type_.__name__}"}
    return {"description": about, "content": {"application/json": {"schema": reference}}}


def _without_null(schema: Document) -> Document:
    """A query has no null: a parameter is left out."""
    kinds = [kind for kind in schema.get("anyOf", ()) if kind != {"type": "null"}]
    return kinds[0] if len(kinds) == 1 else schema


def _schemas(types: set[type[Any]]) -> tuple[dict[type[Any], str], Document]:
    """The name of each type, and the schemas by name."""
    ordered = sorted(types, key=lambda type_: type_.__qualname__)
    refs, components = msgspec.json.schema_components(ordered, ref_template="#/components/schemas/{name}")
    return {type_: ref["$ref"].rpartition("/")[2] for type_, ref in zip(ordered, refs, strict=True)}, components


def about(function: Callable[..., Any]) -> str:
    """The first paragraph of what a handler says of itself."""
    return " ".join((inspect.getdoc(function) or "").partition("\n\n")[0].split())


def admin() -> Document:
    """The operator's API over HTTP."""
    routes = [
        Route(
            name=command.name,
            method=command.method,
            path="/admin/v1" + command.path,
            params=command.params,
            answer=answers.OF_COMMAND[command.name],
            about=about(getattr(Operations, command.operation)),
            refusals=(400, 401, 403, 404, 409, 500, 503),
        )
        for command in COMMANDS.values()
        if not command.local
    ]
    return document(
        "relay: the operator's API",
        "Every command of the command line over HTTP. Amounts are decimal credits as text, times RFC 3339.",
        "The operator's token (admin.token).",
        routes,
    )
