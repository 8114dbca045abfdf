"""Calls in three dialects, made over raw connections so that a test knows which bytes of each answer arrived."""

import asyncio
import contextlib
import itertools
import json
import random
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from functools import cache

from relay import _fastpath
from relay.policy.tokenizers import table_for
from relay.simulator.text import Text
from tests.functional.relay_process import Customer
from tests.support import http1
from tests.support.rawclient import RawClient

CALL_SECONDS = 30.0
_numbers = itertools.count(1)


@dataclass(frozen=True)
class Dialect:
    name: str
    model: str
    format: int  # of _fastpath

    def target(self, stream: bool) -> str:
        if self.name == "gemini":
            method = "streamGenerateContent?alt=sse" if stream else "generateContent"
            return f"/v1beta/models/{self.model}:{method}"
        return {"chat": "/v1/chat/completions", "messages": "/v1/messages", "responses": "/v1/responses"}[self.name]

    def headers(self, secret: str) -> dict[str, str]:
        given = {"chat": "authorization", "responses": "authorization", "messages": "x-api-key"}
        name = given.get(self.name, "x-goog-api-key")
        headers = {"Content-Type": "application/json", name: f"Bearer {secret}" if name == "authorization" else secret}
        if self.name == "messages":
            headers["anthropic-version"] = "2023-06-01"
        return headers

    def body(self, prompt: str, stream: bool, output_limit: int | None = None) -> bytes:
        document: dict = {"model": self.model, "stream": stream}
        messages = [{"role": "user", "content": prompt}]
        if self.name == "chat":
            document["messages"] = messages
            if stream:
                document["stream_options"] = {"include_usage": True}
            if output_limit is not None:
                document["max_completion_tokens"] = output_limit
        elif self.name == "responses":
            document["input"] = prompt
            if output_limit is not None:
                document["max_output_tokens"] = output_limit
        elif self.name == "messages":
            document |= {"messages": messages, "max_tokens": output_limit or 1024}
        else:
            document = {"contents": [{"role": "user", "parts": [{"text": prompt}]}]}
            if output_limit is not None:
                document["generationConfig"] = {"maxOutputTokens": output_limit}
        return json.dumps(document).encode()

    def tap(self, body: bytes, stream: bool, model: str = "") -> dict:
        """What the relay's own reader finds in an answer, or the beginning of one."""
        return _fastpath.tap(self.format, 1 if stream else 0, [body], table_for(model or self.model))


CHAT = Dialect("chat", "gpt-4o", 0)
RESPONSES = Dialect("responses", "gpt-5", 2)
MESSAGES = Dialect("messages", "claude-sonnet-5", 4)
GEMINI = Dialect("gemini", "gemini-2.5-flash", 6)
DIALECTS = (CHAT, RESPONSES, MESSAGES, GEMINI)


@dataclass
class Call:
    """One call as its client saw it."""

    dialect: Dialect
    stream: bool
    customer: Customer
    tag: str
    status: int = 0  # 0: no answer
    id: str = ""  # as the relay named it
    body: bytes = b""  # what arrived
    complete: bool = False  # the framing was closed
    error: str = ""  # what ended it on the client's side
    ending: str = "finished"  # what the test wanted of it

    @property
    def record_id(self) -> int:
        digits = "0123456789abcdefghjkmnpqrstvwxyz"
        number = 0
        for letter in self.id.removeprefix("call_"):
            number = number * 32 + digits.index(letter)
        return number


During = Callable[[Call, RawClient], Awaitable[None]]


async def make_call(
    customer: Customer,
    dialect: Dialect,
    *,
    stream: bool,
    directives: str = "",
    output_limit: int | None = None,
    headers: dict[str, str] | None = None,
    during: During | None = None,
    call: Call | None = None,
) -> Call:
    """One call on a connection of its own. `during`: what the client does instead of reading to the end."""
    if call is None:
        call = Call(dialect, stream, customer, f"tag{next(_numbers)}.")
    prompt = f"{call.tag} Tell me. #sim {directives}#" if directives else f"{call.tag} Tell me."
    body = dialect.body(prompt, stream, output_limit)
    request = http1.request_bytes(
        "POST", dialect.target(stream), {"Host": "relay"} | dialect.headers(customer.secret) | (headers or {}), body
    )
    try:
        client = await RawClient.connect("127.0.0.1", customer.relay.port)
    except OSError as error:
        call.error = type(error).__name__
        return call
    try:
        await client.send(request)
        if during is not None:
            await during(call, client)
        else:
            await client.until(lambda: client.lost or client.eof or _complete(client.received), CALL_SECONDS)
    finally:
        _read(call, client)
        with contextlib.suppress(AssertionError):
            if client.transport is not None:
                client.transport.abort()
    return call


def _complete(received: bytes) -> bool:
    # cheap first: a stream is looked at as a whole only where it may have ended
    if received.endswith(b"0\r\n\r\n") or b"\r\nTransfer-Encoding: chunked" not in received[:4096]:
        message = http1.parse(received)
        return message is not None and message.complete
    return False


def _read(call: Call, client: RawClient) -> None:
    message = http1.parse(client.received, ended=client.lost and client.error is None)
    if client.error is not None:
        call.error = type(client.error).__name__
    if message is None:
        return
    call.status, call.body, call.complete = message.status, message.body, message.complete
    call.id = message.header("x-relay-request-id") or message.header("x-request-id") or ""


@cache
def _count(model: str, events: int, seed: int, size: int) -> int:
    text = Text(seed, size, 1)
    counted = _fastpath.count_text(table_for(model), text.whole(events).encode())
    return -(-counted // _fastpath.TOKEN_UNIT)


def words(dialect: Dialect, events: int, seed: int, size: int = 0) -> str:
    """Directives for an answer of so many words, or pieces of so many bytes.

    Its reported output is what the relay's own count of its text is.
    So the relay learns nothing about its estimates from it, and a test can repeat its count of any part of any answer.
    """
    return f"events={events} seed={seed} size={size} output={_count(dialect.model, events, seed, size)}"


@dataclass
class Load:
    """Concurrent callers, each with a customer of its own, calling without a pause until told to stop."""

    customers: list[Customer]
    rng: random.Random
    calls: list[Call] = field(default_factory=list)
    stopped: bool = False
    _tasks: list[asyncio.Task[None]] = field(default_factory=list)

    def start(self) -> None:
        loop = asyncio.get_running_loop()
        self._tasks = [loop.create_task(self._run(customer)) for customer in self.customers]

    async def _run(self, customer: Customer) -> None:
        while not self.stopped:
            dialect = self.rng.choice(DIALECTS)
            stream = self.rng.random() < 0.7
            pace = self.rng.choice((0, 5, 20, 60)) if stream else 0
            first = 0 if stream else self.rng.choice((0, 30, 150))
            said = words(dialect, self.rng.randint(1, 12), self.rng.randrange(40))
            directives = f"{said} pace_ms={pace} first_ms={first}"
            call = await make_call(customer, dialect, stream=stream, directives=directives)
            self.calls.append(call)
            if not call.status:
                return  # the relay is dead

    async def finish(self) -> None:
        """Lets the calls under way end."""
        self.stopped = True
        await asyncio.gather(*self._tasks)
