"""Batches whose requests stand in the body: what they ask of each model, and the models' names at the channel.

Bodies have been read by `strict_object`: no key stands in them twice, so what is found here is what the provider reads.
"""

import asyncio
import json
from collections.abc import Callable
from typing import Any

import orjson

from relay.proxy.jobparts import Asked
from relay.proxy.sidecalls import RefusedError
from relay.wire import spans
from relay.wire.uploads import output_bound

THREAD_BYTES = 1 << 20  # what is larger is read in a thread


async def asked(
    data: bytes,
    requests: list[Any],
    ways: dict[str, str],
    count: Callable[[bytes], int],
    margin: Callable[[int], int],
    otherwise: int,
) -> list[Asked]:
    """What a message batch asks of each of its models; `ways`: how they are called at the channel.

    count      tokens of a text
    margin     what is held for so many tokens of prompt
    otherwise  output of a request without a limit
    Raises RefusedError.
    """
    outputs = dict.fromkeys(ways, 0)
    names: dict[str, list[str]] = {model: [] for model in ways}
    if len(ways) == 1:
        tokens = dict.fromkeys(ways, count(data))
    else:
        tokens = dict.fromkeys(ways, 0)
        given = [one.get("custom_id") for one in requests]  # the results tell by these whose they are
        if not all(isinstance(name, str) for name in given) or len(set(given)) != len(given):
            raise RefusedError("invalid_value", "custom_id")
        for one, (start, end) in zip(requests, await located(data, ("requests", spans.EVERY)), strict=True):
            tokens[one["params"]["model"]] += count(data[start:end])
    for one in requests:
        model = one["params"]["model"]
        outputs[model] += output_bound(one["params"], otherwise)
        names[model].append(one.get("custom_id"))
    return [
        Asked(model, name, {"input_tokens": margin(tokens[model]), "output_tokens": outputs[model]}, names[model])
        for model, name in ways.items()
    ]


async def renamed(data: bytes, requests: list[Any], ways: dict[str, str]) -> bytes:
    """A message batch with each model as the channel calls it; nothing else changes. Raises RefusedError."""
    if all(name == model for model, name in ways.items()):
        return data
    places = await located(data, ("requests", spans.EVERY, "params", "model"))
    edits = []
    for one, (start, end) in zip(requests, places, strict=True):
        model = one["params"]["model"]
        if ways[model] != model:
            edits.append((start, end, orjson.dumps(ways[model])))
    return spans.put(data, edits)


async def renamed_lines(data: bytes, document: dict[str, Any], model: str, name: str) -> bytes:
    """Google's: the batch, and each request in it, may name the path's model once more. Raises RefusedError where it is
    another: the channel would be asked for what nobody has held for."""
    batch = document["batch"]
    places = []
    if any("model" in one["request"] for one in batch["inputConfig"]["requests"]["requests"]):
        path = ("batch", "inputConfig", "requests", "requests", spans.EVERY, "request", "model")
        places = await located(data, path)
    if "model" in batch:
        places += await located(data, ("batch", "model"))
    edits = []
    for start, end in places:
        said = json.loads(data[start:end])  # as `strict_object` does: it may hold half of a surrogate pair
        if said not in (model, f"models/{model}"):
            raise RefusedError("invalid_value", "model")
        edits.append((start, end, orjson.dumps(said.removesuffix(model) + name)))
    return spans.put(data, edits) if name != model else data


async def located(data: bytes, path: tuple[str, ...]) -> list[tuple[int, int]]:
    """Where the values at a path stand. Raises RefusedError."""
    try:
        if len(data) <= THREAD_BYTES:
            return spans.find(data, path)
        return await asyncio.to_thread(spans.find, data, path)
    except ValueError:  # UTF-16, for instance, which the standard library reads, too
        raise RefusedError("malformed_json") from None
