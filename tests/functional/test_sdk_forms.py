"""Multipart calls that are priced by model, through a relay with the official SDK."""

import io
import re
import wave

import aiohttp
import openai
import pytest

from relay.simulator import Running
from tests.functional.clients import async_openai
from tests.functional.relay_process import Customer, nano
from tests.functional.setting import BODY_BYTES_MAX, cost_nano
from tests.functional.test_sdk_media import check

pytestmark = pytest.mark.asyncio(loop_scope="session")


def sound(length_seconds: int = 3) -> bytes:
    out = io.BytesIO()
    with wave.open(out, "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(8000)
        file.writeframes(b"\0\0" * length_seconds * 8000)
    return out.getvalue()


PICTURE = ("cat.png", b"\x89PNG\r\n\x1a\n" + b"x" * 500, "image/png")


async def test_transcription_by_tokens(customer: Customer, simulator: Running):
    async with async_openai(customer) as client:
        answer = await client.audio.transcriptions.create(model="gpt-4o-transcribe", file=("a.wav", sound()))
    entry = simulator.book.last
    assert len(answer.text.split()) == entry.output_tokens
    record = await check(customer, "gpt-4o-transcribe", input=entry.input_tokens, output=entry.output_tokens)
    assert record["path"] == "/v1/audio/transcriptions"


async def test_transcription_by_duration(customer: Customer, simulator: Running):
    async with async_openai(customer) as client:
        answer = await client.audio.transcriptions.create(
            model="whisper-1", file=("a.wav", sound()), response_format="verbose_json"
        )
    assert answer.duration == 6.7
    await check(customer, "whisper-1", video_seconds=7)


async def test_transcription_as_text_is_charged_by_the_length_of_the_sound(customer: Customer, simulator: Running):
    async with async_openai(customer) as client:
        answer = await client.audio.transcriptions.create(
            model="whisper-1", file=("a.wav", sound(4)), response_format="srt"
        )
    assert answer.strip()
    await check(customer, "whisper-1", source="estimated", video_seconds=4)


async def test_transcription_stream(customer: Customer, simulator: Running):
    async with async_openai(customer) as client:
        stream = await client.audio.transcriptions.create(
            model="gpt-4o-transcribe", file=("a.wav", sound()), stream=True
        )
        events = [event async for event in stream]
    assert events[-1].type == "transcript.text.done"
    entry = simulator.book.last
    await check(customer, "gpt-4o-transcribe", stream=True, input=entry.input_tokens, output=entry.output_tokens)


@pytest.mark.filterwarnings("ignore:deprecated:DeprecationWarning")  # the SDK's own word on its method
async def test_translation(customer: Customer, simulator: Running):
    async with async_openai(customer) as client:
        answer = await client.audio.translations.create(model="whisper-1", file=("a.wav", sound()))
    assert answer.text
    assert (await check(customer, "whisper-1", video_seconds=7))["path"] == "/v1/audio/translations"


async def test_image_edit(customer: Customer, simulator: Running):
    async with async_openai(customer) as client:
        answer = await client.images.edit(model="gpt-image-1", image=[PICTURE, PICTURE], prompt="A hat", n=2)
    assert len(answer.data) == 2
    entry = simulator.book.last
    record = await check(customer, "gpt-image-1", images=2, input=entry.input_tokens, output=entry.output_tokens)
    assert record["path"] == "/v1/images/edits"


async def test_a_form_is_the_same_whatever_its_boundary(customer: Customer, simulator: Running):
    """SDKs draw a new boundary for every attempt: a repeat with the same key is not called another body."""
    headers = {"Idempotency-Key": "key"}
    async with async_openai(customer) as client:
        await client.images.edit(model="gpt-image-1", image=PICTURE, prompt="A hat", extra_headers=headers)
        with pytest.raises(openai.ConflictError, match=r"That was call_[0-9a-z]{13}\.$"):
            await client.images.edit(model="gpt-image-1", image=PICTURE, prompt="A hat", extra_headers=headers)
        with pytest.raises(openai.ConflictError, match="with another body"):
            await client.images.edit(model="gpt-image-1", image=PICTURE, prompt="A cat", extra_headers=headers)


async def test_image_edit_stream(customer: Customer, simulator: Running):
    async with async_openai(customer) as client:
        stream = await client.images.edit(model="gpt-image-1", image=PICTURE, prompt="A hat", stream=True)
        events = [event async for event in stream]
    assert [event.type for event in events] == ["image_edit.completed"]
    entry = simulator.book.last
    await check(customer, "gpt-image-1", stream=True, images=1, input=entry.input_tokens, output=entry.output_tokens)


async def test_image_edit_by_json(customer: Customer, simulator: Running):
    body = {"model": "gpt-image-1", "prompt": "A hat", "images": [{"image_url": "https://example.com/cat.png"}]}
    async with async_openai(customer) as client:
        answer = await client.post("/images/edits", body=body, cast_to=object)
    assert len(answer["data"]) == 1
    entry = simulator.book.last
    await check(customer, "gpt-image-1", images=1, input=entry.input_tokens, output=entry.output_tokens)


@pytest.mark.filterwarnings("ignore:deprecated:DeprecationWarning")  # the SDK's own word on its method
async def test_image_variation(customer: Customer, simulator: Running):
    async with async_openai(customer) as client:
        answer = await client.images.create_variation(model="dall-e-3", image=PICTURE, n=2)
        assert len(answer.data) == 2
        await check(customer, "dall-e-3", images=2)
        with pytest.raises(openai.NotFoundError):  # without a model it is one for the provider's default, unknown here
            await client.images.create_variation(image=PICTURE)


def boundaries_out(body: bytes) -> bytes:
    boundary = body[: body.index(b"\r\n")]
    return body.replace(boundary, b"--B")


async def test_the_form_goes_on_byte_for_byte(customer: Customer, simulator: Running):
    """In pieces of any size, the model behind the file; what arrives is what was sent."""
    data = aiohttp.FormData(quote_fields=False)
    data.add_field("file", sound(), filename="Grüße.wav", content_type="audio/wav")
    data.add_field("response_format", "json")
    data.add_field("model", "whisper-1")
    written: list[bytes] = []

    class Kept:
        async def write(self, piece: bytes) -> None:
            written.append(bytes(piece))

    form = data()
    await form.write(Kept())  # type: ignore[arg-type]
    body = b"".join(written)

    async def pieces():
        for at in range(0, len(body), 7000):
            yield body[at : at + 7000]

    url = customer.relay.base_url + "/v1/audio/transcriptions"
    headers = {"Authorization": f"Bearer {customer.secret}", "Content-Type": form.headers["Content-Type"]}
    async with aiohttp.ClientSession(headers=headers) as session:
        for sent in (body, pieces()):
            async with session.post(url, data=sent) as answer:
                assert answer.status == 200, await answer.text()
            assert simulator.book.last.body == body
            assert simulator.book.last.header("content-type") == form.headers["Content-Type"]


async def test_a_renamed_model_changes_only_its_own_bytes(customer: Customer, simulator: Running):
    for options in ({"prompt": "gpt-renamed in a text"}, {"temperature": 0.5}):
        async with async_openai(customer) as client:
            await client.audio.transcriptions.create(model="gpt-renamed", file=("a.wav", sound(1)), **options)
        body = simulator.book.last.body
        values = re.findall(rb'name="model"\r\n\r\n([^\r]+)\r\n', body)
        assert values == [b"gpt-4o-2024-11-20"]
        assert sound(1) in body
        if "prompt" in options:
            assert b"gpt-renamed in a text" in body


async def test_forms_that_are_refused(customer: Customer, simulator: Running):
    before = simulator.book.requests
    head = b'--b\r\nContent-Disposition: form-data; name="model"\r\n\r\nwhisper-1\r\n'
    form = "multipart/form-data; boundary=b"
    cases = [
        (form, head, 400, "malformed_form"),
        (form, head + head + b"--b--\r\n", 400, "malformed_form"),
        (form, b'--b\r\nContent-Disposition: form-data; name="x"\r\n\r\n1\r\n--b--', 400, "missing_model"),
        (form, head.replace(b"whisper-1", b"unknown") + b"--b--", 404, "model_not_found"),
        ("application/json", b'{"model":"whisper-1"}', 400, "invalid_value"),
        ("multipart/form-data", head + b"--b--", 400, "invalid_value"),
        (form, b"x" * (BODY_BYTES_MAX + 1), 413, "body_too_large"),
    ]
    url = customer.relay.base_url + "/v1/audio/transcriptions"
    async with aiohttp.ClientSession(headers={"Authorization": f"Bearer {customer.secret}"}) as session:
        for content_type, body, status, code in cases:
            async with session.post(url, data=io.BytesIO(body), headers={"Content-Type": content_type}) as answer:
                shown = (await answer.json())["error"]
            assert (answer.status, shown["code"]) == (status, code), body[:80]
    assert simulator.book.requests == before
    assert [record["cost"] for record in await customer.calls(len(cases))] == ["0"] * len(cases)


async def test_a_long_recording_is_held_for(customer: Customer, simulator: Running):
    poor = await customer.relay.customer("0.001")  # ten seconds
    async with async_openai(poor) as client:
        with pytest.raises(openai.APIStatusError) as caught:
            await client.audio.transcriptions.create(model="whisper-1", file=("a.wav", sound(11)))
        assert caught.value.code == "insufficient_balance"
        await client.audio.transcriptions.create(model="whisper-1", file=("a.wav", sound(9)))
    assert nano((await poor.calls(2))[0]["cost"]) == cost_nano("whisper-1", video_seconds=7)
