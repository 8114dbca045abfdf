"""JSON as the compiled reader must take it, by the standard library: the oracle of relay/fastpath/json.pxi."""

import json
from collections.abc import Iterator
from typing import Any, NoReturn

DEPTH_MAX = 127  # containers inside one another in a request


class Pairs(list[tuple[str, Any]]):
    """An object, with repeated keys kept."""

    def get(self, key: str) -> Any:
        """The value of `key`, None where it is absent."""
        for name, value in self:
            if name == key:
                return value
        return None

    def __contains__(self, key: object) -> bool:
        return any(name == key for name, _ in self)


class Number(str):
    """A number as it was written."""


def _constant(name: str) -> NoReturn:
    raise ValueError(name)


_STRICT = json.JSONDecoder(
    object_pairs_hook=Pairs, parse_int=Number, parse_float=Number, parse_constant=_constant, strict=True
)
_LENIENT = json.JSONDecoder(
    object_pairs_hook=Pairs, parse_int=Number, parse_float=Number, parse_constant=_constant, strict=False
)


def depth(value: Any) -> int:
    """How many containers lie inside one another."""
    deepest, todo = 0, [(value, 1)]
    while todo:
        item, level = todo.pop()
        if isinstance(item, (Pairs, list)):
            deepest = max(deepest, level)
            children = [v for _, v in item] if isinstance(item, Pairs) else item
            todo.extend((child, level + 1) for child in children)
    return deepest


def strict(body: bytes) -> Any:
    """What a request body says; ValueError where the relay must refuse it."""
    try:
        value = _STRICT.decode(body.decode("utf-8"))
    except RecursionError:
        raise ValueError("too deep") from None
    if depth(value) > DEPTH_MAX:
        raise ValueError("too deep")
    return value


def lenient(text: bytes) -> Any:
    """What an answer says; ValueError where nothing can be read."""
    return _LENIENT.decode(text.decode("utf-8", "surrogateescape"))


def utf8(text: str) -> bytes:
    """The bytes that are counted: a lone surrogate reads as U+FFFD."""
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace").encode()


def compact(value: Any) -> str:
    """The JSON text that is counted of a schema: no spaces between tokens, strings decoded."""
    if isinstance(value, Pairs):
        return "{" + ",".join(f'"{name}":{compact(item)}' for name, item in value) + "}"
    if isinstance(value, Number):
        return str(value)
    if isinstance(value, str):
        return f'"{value}"'
    if isinstance(value, list):
        return "[" + ",".join(map(compact, value)) + "]"
    return {None: "null", True: "true", False: "false"}[value]


def objects(value: Any) -> Iterator[Pairs]:
    """The objects of a place: arrays are transparent."""
    if isinstance(value, Pairs):
        yield value
    elif isinstance(value, list):
        for item in value:
            yield from objects(item)


def strings(value: Any) -> Iterator[str]:
    """The strings of a place, as far as arrays hold them."""
    if isinstance(value, str) and not isinstance(value, Number):
        yield value
    elif isinstance(value, list) and not isinstance(value, Pairs):
        for item in value:
            yield from strings(item)
