"""Files that requests name: only their owner's, and only at the channel that has them."""

import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import anthropic
import openai
import pytest
import pytest_asyncio

from relay.simulator import Running, start
from tests.functional.clients import async_anthropic, async_openai
from tests.functional.raw_upstream import RawUpstream
from tests.functional.relay_process import Customer, RelayProcess
from tests.functional.setting import SIM_KEY, channel, rates
from tests.support.http1 import response_bytes

pytestmark = pytest.mark.asyncio(loop_scope="session")

NOTES = ("notes.txt", b"some notes\n", "text/plain")


async def uploaded(customer: Customer) -> str:
    async with async_openai(customer) as client:
        return (await client.files.create(file=NOTES, purpose="user_data")).id


def chat(file: str, **more: Any) -> dict[str, Any]:
    return {"model": "gpt-4o", "messages": [{"role": "user", "content": [file_part(file)]}], **more}


def file_part(file: str) -> dict[str, Any]:
    return {"type": "file", "file": {"file_id": file}}


def responses(*parts: Any, **more: Any) -> dict[str, Any]:
    content = [{"type": "input_file", "file_id": part} if isinstance(part, str) else part for part in parts]
    return {"model": "gpt-5", "input": [{"role": "user", "content": content}], **more}


def sandbox(file: str) -> dict[str, Any]:
    return {"type": "code_interpreter", "container": {"type": "auto", "file_ids": [file]}}


async def ask_everywhere(client: openai.AsyncOpenAI, file: str) -> AsyncIterator[Any]:
    """Calls that name a file, one after the other; yields an answer, or the error."""
    calls = (
        lambda: client.chat.completions.create(**chat(file)),
        lambda: client.chat.completions.create(**chat(file, stream=True)),
        lambda: client.responses.create(**responses(file)),
        lambda: client.responses.create(**responses(file, stream=True)),
        lambda: client.responses.create(**responses({"type": "input_image", "file_id": file, "detail": "auto"})),
        lambda: client.responses.create(model="gpt-5", input="Hello", tools=[sandbox(file)]),
        lambda: client.responses.create(**responses(file, background=True)),
        lambda: client.responses.input_tokens.count(**responses(file)),
        lambda: client.responses.compact(**responses(file)),
    )
    for call in calls:
        try:
            answer = await call()
            if isinstance(answer, openai.AsyncStream):
                answer = [event async for event in answer]
        except openai.APIStatusError as error:
            answer = error
        yield answer


async def test_a_file_can_be_named_by_its_owner_alone(customer: Customer, relay: RelayProcess, simulator: Running):
    stranger, colleague = await relay.customer(), await relay.another_key(customer)
    file = await uploaded(customer)
    for own in (customer, colleague):
        async with async_openai(own) as client:
            async for answer in ask_everywhere(client, file):
                assert not isinstance(answer, Exception), answer
    before = simulator.book.requests
    async with async_openai(stranger) as client:
        refused = [answer async for answer in ask_everywhere(client, file)]
        refused += [answer async for answer in ask_everywhere(client, "file-that-never-was")]
        refused += [answer async for answer in ask_everywhere(client, "no name of a file")]
    assert len(refused) == 27
    for error in refused:
        assert isinstance(error, openai.NotFoundError), error
        assert (error.code, error.param) == ("object_not_found", "file_id")
        assert error.response.headers["x-should-retry"] == "false"
    assert simulator.book.requests == before
    records = await stranger.calls(27)
    assert {(row["status"], row["error_code"], row["cost"]) for row in records} == {(404, "object_not_found", "0")}
    assert await stranger.settled_nano() == 100 * 10**9


async def test_pictures_are_edited_by_json(customer: Customer, relay: RelayProcess, simulator: Running):
    """The model is on another channel than the one to which files go; both are one account at the provider."""
    stranger = await relay.customer()
    file = await uploaded(customer)
    for named in ({"images": [{"file_id": file}]}, {"images": [], "mask": {"file_id": file}}):
        body = named | {"model": "gpt-image-1", "prompt": "A hat"}
        async with async_openai(customer) as client:
            await client.post("/images/edits", body=body, cast_to=object)
        async with async_openai(stranger) as client:
            with pytest.raises(openai.NotFoundError) as caught:
                await client.post("/images/edits", body=body, cast_to=object)
            assert (caught.value.code, caught.value.param) == ("object_not_found", "file_id")


def message(file: str) -> dict[str, Any]:
    source = {"type": "file", "file_id": file}
    content = [{"type": "document", "source": source}, {"type": "text", "text": "Hello"}]
    return {"model": "claude-sonnet-5", "messages": [{"role": "user", "content": content}]}


async def test_messages_name_files(customer: Customer, simulator: Running):
    """Anthropic's files are not served, so nobody has one; OpenAI's are at another channel."""
    file = await uploaded(customer)
    before = simulator.book.requests
    async with async_anthropic(customer) as client:
        for name, kind, status in (("file_011abc", "object_not_found", 404), (file, "objects_apart", 400)):
            batch = [{"custom_id": "c", "params": message(name) | {"max_tokens": 9}}]
            for call in (
                lambda name=name: client.messages.create(**message(name), max_tokens=9),
                lambda name=name: client.messages.create(**message(name), max_tokens=9, stream=True),
                lambda name=name: client.messages.count_tokens(**message(name)),
                lambda batch=batch: client.messages.batches.create(requests=batch),
            ):
                with pytest.raises(anthropic.APIStatusError) as caught:
                    await call()
                assert caught.value.status_code == status
                assert caught.value.body["error"]["code"] == kind
    assert simulator.book.requests == before
    assert await customer.settled_nano() == 100 * 10**9


async def test_too_many_names(customer: Customer, simulator: Running):
    file = await uploaded(customer)
    async with async_openai(customer) as client:
        await client.responses.create(**responses(*[file] * 32))
        before = simulator.book.requests
        with pytest.raises(openai.BadRequestError, match="more than 32 files") as caught:
            await client.responses.create(**responses(*[file] * 33))
        assert caught.value.code == "too_many_files"
    assert simulator.book.requests == before


async def test_half_a_character_beside_an_earlier_response(customer: Customer, raw: RawUpstream):
    """JSON may hold half of a surrogate pair: what is looked up in such a body is found all the same."""
    answer = b'{"id":"resp_half","usage":{"input_tokens":1,"output_tokens":1}}'
    text, exchange = raw.script(response_bytes(answer))
    async with async_openai(customer) as client:
        await client.responses.create(model="raw-chat", input=text)
        body = json.dumps({"model": "raw-chat", "input": text + "\ud83d", "previous_response_id": "resp_half"})
        options = {"headers": {"Content-Type": "application/json"}}
        again = await client.post("/responses", cast_to=object, options=options, content=body.encode())
        assert "resp_half" in str(again)
        body = body.replace("resp_half", "resp_\\ud83d")
        with pytest.raises(openai.NotFoundError):
            await client.post("/responses", cast_to=object, options=options, content=body.encode())
        half = json.dumps(responses("file-\ud83d"))
        with pytest.raises(openai.NotFoundError):
            await client.post("/responses", cast_to=object, options=options, content=half.encode())
    assert len(exchange.bodies) == 2
    assert b"\\ud83d" in exchange.bodies[1]


# -- batches


def lines(*bodies: dict[str, Any], url: str = "/v1/chat/completions") -> tuple[str, bytes]:
    rows = [{"custom_id": f"c{n}", "method": "POST", "url": url, "body": body} for n, body in enumerate(bodies)]
    return "batch.jsonl", b"".join(json.dumps(row).encode() + b"\n" for row in rows)


async def test_lines_of_a_batch_name_files(customer: Customer, relay: RelayProcess, simulator: Running):
    """Also within a file for batches: what names another account's file makes no batch. Nor does that account's."""
    stranger = await relay.customer()
    file = await uploaded(customer)
    bodies = [chat(file), chat(file, max_tokens=5)]
    for who, name, good in (
        (customer, file, True),
        (customer, "file-that-never-was", False),
        (stranger, file, False),
        (customer, None, True),
    ):
        bodies = [chat(name) if name else {"model": "gpt-4o", "messages": []}, {"model": "gpt-4o", "messages": []}]
        async with async_openai(who) as client:
            for batch in (
                lines(*bodies),
                lines(*({**body, "input": body["messages"]} for body in bodies), url="/v1/responses"),
            ):
                made = await client.files.create(file=batch, purpose="batch")
                call = client.batches.create(
                    input_file_id=made.id, endpoint="/v1/chat/completions", completion_window="24h"
                )
                if good:
                    await call
                    continue
                with pytest.raises(openai.BadRequestError) as caught:
                    await call
                assert (caught.value.code, caught.value.param) == ("invalid_value", "input_file_id")
    batch_file = await uploaded(customer)
    async with async_openai(stranger) as client:
        with pytest.raises(openai.NotFoundError) as caught:
            await client.batches.create(
                input_file_id=batch_file, endpoint="/v1/chat/completions", completion_window="24h"
            )
        assert (caught.value.code, caught.value.param) == ("object_not_found", "input_file_id")


@pytest.mark.filterwarnings("ignore:The Sora API:DeprecationWarning")
async def test_videos_begin_with_a_file(customer: Customer, relay: RelayProcess, simulator: Running):
    file = await uploaded(customer)
    body: dict[str, Any] = {"model": "sora-2", "prompt": "A cat", "seconds": "4"}
    form = {"headers": {"Content-Type": "multipart/form-data"}}
    none = [("unread", ("", b""))]  # a form needs a part that is a file
    reference = {"input_reference": {"file_id": file}}
    for who in (customer, await relay.customer()):
        async with async_openai(who) as client:
            for options, files in (({}, None), (form, none)):
                call = client.post("/videos", body=body | reference, cast_to=object, options=options, files=files)
                if who is customer:
                    assert (await call)["status"] == "queued"
                    continue
                with pytest.raises(openai.NotFoundError) as caught:
                    await call
                assert (caught.value.code, caught.value.param) == ("object_not_found", "file_id")
            with pytest.raises(openai.BadRequestError) as caught:
                await client.post(
                    "/videos", body=body | {"input_reference": file}, cast_to=object, options=form, files=none
                )
            assert (caught.value.code, caught.value.param) == ("unsupported_feature", "input_reference")
            assert (await client.videos.create(**body)).status == "queued"


# -- where a call goes that names files: two providers


@pytest_asyncio.fixture(loop_scope="session")
async def providers() -> AsyncIterator[tuple[Running, Running]]:
    first, second = await start(), await start()
    yield first, second
    await first.stop()
    await second.stop()


def two_channels(providers: tuple[Running, Running], *priorities: int) -> str:
    names = ("one", "two")
    text = "[server]\ndrain_seconds = 2\n[plans.open]\n[jobs]\npoll_seconds = 3600\n"
    for name, running, priority in zip(names, providers, priorities, strict=True):
        models = '["gpt-4o", "gpt-5", "sora-2"]' if name == "two" else '["gpt-4o", "gpt-5"]'
        text += channel(name, "openai", running.base_url + "/v1", models, SIM_KEY, f"priority = {priority}")
    return text + rates()


@pytest.mark.filterwarnings("ignore:The Sora API:DeprecationWarning")
async def test_a_call_goes_to_the_channel_of_its_files(providers: tuple[Running, Running], tmp_path: Path):
    one, two = providers
    relay = RelayProcess(tmp_path, two_channels(providers, 0, 1))
    await relay.start()
    try:
        customer = await relay.customer()
        at_one = await uploaded(customer)
        async with async_openai(customer) as client:
            response_at_one = (await client.responses.create(model="gpt-5", input="Hello")).id
        relay.write_config(two_channels(providers, 1, 0))
        await relay.command("reload")
        assert at_one == await uploaded(customer)  # simulators count: the first file of each has the same name
        at_two = await uploaded(customer)
        assert (one.book.requests, two.book.requests) == (2, 2)
        async with async_openai(customer) as client:
            for file, has, other in ((at_one, one, two), (at_two, two, one)):
                before = other.book.requests, has.book.requests
                count = 0
                async for answer in ask_everywhere(client, file):
                    assert not isinstance(answer, Exception), answer
                    count += 1
                assert (other.book.requests, has.book.requests - count) == before
            goes_on = await client.responses.create(**responses(at_one, previous_response_id=response_at_one))
            assert goes_on.previous_response_id == response_at_one
            # Nowhere else, not even when it fails.
            before = two.book.requests
            with pytest.raises(openai.InternalServerError):
                await client.responses.create(**responses(at_one, {"type": "input_text", "text": "#sim status=500#"}))
            assert two.book.requests == before
            counts = one.book.requests, two.book.requests
            apart = [
                responses(at_one, at_two),
                responses(at_one, at_two, background=True),
                responses(at_one, tools=[sandbox(at_two)]),
                responses(at_two, previous_response_id=response_at_one),
            ]
            for body in apart:
                with pytest.raises(openai.BadRequestError, match="does not lie together") as caught:
                    await client.responses.create(**body)
                assert caught.value.code == "objects_apart"
                assert caught.value.response.headers["x-should-retry"] == "false"
            # A model or a choice of channel that does not go there.
            chooser = await relay.another_key(customer, scopes=["chat", "channel"])
            async with async_openai(chooser) as other_client:
                with pytest.raises(openai.BadRequestError) as caught:
                    await other_client.chat.completions.create(**chat(at_one), extra_headers={"x-relay-channel": "two"})
                assert caught.value.code == "objects_apart"
            with pytest.raises(openai.BadRequestError) as caught:
                await client.chat.completions.create(**chat(at_one) | {"model": "sora-2"})
            assert caught.value.code == "objects_apart"
            assert (one.book.requests, two.book.requests) == counts
            made = await client.post(
                "/videos",
                body={"model": "sora-2", "prompt": "A cat", "seconds": "4", "input_reference": {"file_id": at_two}},
                cast_to=object,
            )
            assert made["status"] == "queued"
            await client.videos.retrieve(made["id"])
            # Whose a file is outlives a restart; one that its owner deletes is nobody's.
            assert await relay.stop() == 0
            await relay.start()
        async with async_openai(customer) as client:
            await client.chat.completions.create(**chat(at_one))
            await client.files.delete(at_one)
            with pytest.raises(openai.NotFoundError):
                await client.chat.completions.create(**chat(at_one))
        async with async_openai(await relay.customer()) as client:
            with pytest.raises(openai.NotFoundError):
                await client.chat.completions.create(**chat(at_two))
        assert (await relay.command("ledger verify"))["ok"]
        assert relay.faults == []
    finally:
        assert await relay.stop() == 0


MESSAGES = {"max_tokens": 9, "messages": [{"role": "user", "content": "Hello"}]}
REPORT = {
    "type": "message",
    "content": [{"type": "text", "text": "a"}],
    "usage": {"input_tokens": 1, "output_tokens": 1},
}


async def test_sandboxes_of_messages_are_their_owners(customer: Customer, relay: RelayProcess, raw: RawUpstream):
    """Anthropic's sandboxes live for weeks, and a next turn names the one that the answer before named."""
    stranger, colleague = await relay.customer(), await relay.another_key(customer)

    async def ask(who: Customer, container: Any, *, stream: bool, names: str | None = None) -> None:
        named = {"container": {"id": names, "expires_at": "2027-01-01T00:00:00Z"}} if names else {}
        if stream:
            delta = {
                "type": "message_delta",
                "delta": {"stop_reason": "end_turn", **named},
                "usage": {"output_tokens": 1},
            }
            events = [
                {"type": "message_start", "message": {"usage": {"input_tokens": 1, "output_tokens": 1}}},
                {"type": "content_block_start", "index": 0, "content_block": {"type": "text", "text": ""}},
                {"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": "a"}},
                delta,
                {"type": "message_stop"},
            ]
            body = b"".join(b"event: %b\ndata: %b\n\n" % (e["type"].encode(), json.dumps(e).encode()) for e in events)
            text, _ = raw.script(response_bytes(body, headers={"content-type": "text/event-stream"}))
        else:
            text, _ = raw.script(response_bytes(json.dumps({**REPORT, **named}).encode()))
        call = {**MESSAGES, "model": "raw-claude", "messages": [{"role": "user", "content": text}], "stream": stream}
        call |= {"container": container} if container is not None else {}
        async with async_anthropic(who) as client:
            answer = await client.post("/v1/messages", body=call, cast_to=object, stream=False)
            assert answer

    for number, stream in enumerate((False, True)):
        own = f"container_{number}"
        await ask(customer, None, stream=stream, names=own)
        for container in (own, {"id": own}, {"id": own, "skills": [{"type": "custom", "skill_id": "s"}]}):
            for who in (customer, colleague):
                await ask(who, container, stream=stream, names=own)
            with pytest.raises(anthropic.NotFoundError) as caught:
                await ask(stranger, container, stream=stream)
            assert caught.value.body["error"]["code"] == "object_not_found"
        await ask(stranger, {"skills": [{"type": "custom", "skill_id": "s"}]}, stream=stream)
    for unknown in ("container_9", {"id": "container_9"}, {"id": ["container_0"]}, "no name of a container"):
        async with async_anthropic(stranger) as client:
            for batch in (False, True):
                asked = {**MESSAGES, "model": "raw-claude", "container": unknown}
                path = "/v1/messages/batches" if batch else "/v1/messages"
                body = {"requests": [{"custom_id": "c", "params": asked}]} if batch else asked
                with pytest.raises(anthropic.NotFoundError):
                    await client.post(path, body=body, cast_to=object)


async def test_sandboxes_of_responses_are_their_owners(customer: Customer, relay: RelayProcess, raw: RawUpstream):
    """What names one is 404 for anybody else. Its owner's is looked at as any tool is: this one has no price here."""
    stranger = await relay.customer()
    items = [
        {"type": "code_interpreter_call", "container_id": "cntr_1", "status": "completed"},
        {"type": "shell_call", "environment": {"type": "container_reference", "container_id": "cntr_2"}},
        {"type": "message", "content": [{"type": "output_text", "text": "a"}]},
    ]
    done = {"id": "resp_cntr", "output": items, "usage": {"input_tokens": 1, "output_tokens": 1}}
    text, _ = raw.script(response_bytes(json.dumps(done).encode()))
    tools = [
        {"type": "code_interpreter", "container": "cntr_1"},
        {"type": "shell", "environment": {"type": "container_reference", "container_id": "cntr_2"}},
    ]
    async with async_openai(customer) as client, async_openai(stranger) as other:
        for tool in tools:
            for path in ("/responses", "/responses/input_tokens", "/chat/completions"):
                body = {"model": "raw-chat", "input": "Hello", "messages": [], "tools": [tool]}
                for who in (client, other):
                    with pytest.raises(openai.NotFoundError) as caught:
                        await who.post(path, body=body, cast_to=object)
                    assert (caught.value.code, caught.value.param) == ("object_not_found", "container")
        await client.responses.create(model="raw-chat", input=text)
        for tool in tools:
            for more in ({}, {"stream": True}, {"background": True}):
                body = {"model": "raw-chat", "input": "Hello", "tools": [tool], **more}
                with pytest.raises(openai.APIStatusError) as caught:
                    await client.post("/responses", body=body, cast_to=object)
                assert caught.value.code == "tool_unpriced"
                with pytest.raises(openai.NotFoundError):
                    await other.post("/responses", body=body, cast_to=object)
