"""Calls on the hot path that need a decision from the store first: whose files and stored response they name, or a job.

The pipeline sets such a call aside when its body is complete and before anything is taken; here it is sent on, refused,
or answered.
"""

import asyncio
import json
import logging
from collections.abc import Awaitable, Callable
from typing import Any

from relay import _fastpath, quiet
from relay._fastpath import Call
from relay.proxy.objects import Objects
from relay.proxy.sidecalls import RefusedError
from relay.proxy.upstreams import UpstreamError
from relay.storage import StoreError

log = logging.getLogger("relay.aside")

Facts = dict[str, Any]


class Aside:
    """`background`: answers a call that asks for a job; set by the composition root."""

    def __init__(self, objects: Objects) -> None:
        self._objects = objects
        self._tasks: set[asyncio.Task[None]] = set()
        self.background: Callable[[Call, Facts, frozenset[str] | None], Awaitable[None]] | None = None

    def take(self, call: Call) -> None:
        """From the engine: answers in a later turn with `proceed`, `turn_down` or `answer`."""
        task = asyncio.get_running_loop().create_task(self._decide(call))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    @property
    def open(self) -> int:
        return len(self._tasks)

    async def _decide(self, call: Call) -> None:
        code = "internal"
        param = None
        wait_ns = 0
        numbers = (-1, -1)
        try:
            facts = call.facts()
            channels = await self._channels(facts)
            if not facts["background"]:
                call.proceed(channels)
            elif self.background is None:
                raise RefusedError("unsupported_feature")
            else:
                await self.background(call, facts, channels)
            return
        except RefusedError as error:
            code, param, wait_ns = error.code, error.param, error.retry_after_ns
            numbers = error.numbers or numbers
        except UpstreamError as error:
            code, wait_ns, param = error.code, error.retry_after_ns, error.message
        except StoreError:
            code = "store_unavailable"
        except Exception as error:
            log.error("a call set aside failed (%s)", quiet.describe(error))
        call.turn_down(_fastpath.ERROR_CODES.index(code), param, wait_ns, *numbers)

    async def _channels(self, facts: Facts) -> frozenset[str] | None:
        """The channels that have what the call names: files, sandboxes, the stored response that it goes on from.

        Raises RefusedError: not the account's, or not all in one place.
        """
        conversation, given, name = facts["stored_names"]
        if conversation:
            raise RefusedError("object_not_found", "conversation")  # they are made at paths that are not served
        if given and name is None:
            raise RefusedError("invalid_type", "previous_response_id")
        previous = json.loads(name) if given else None
        named = [(kind, json.loads(name)) for kind, name in facts["files"]]
        return await self._objects.channels_of(facts["key"].account_id, named, previous)

    async def close(self) -> None:
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
