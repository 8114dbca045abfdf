"""Images and files of requests: their size is read from their first bytes, and costs what each provider charges."""

import base64
import json
import random
import struct

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from relay._fastpath import count_text, scan_request
from relay.policy.tokenizers import table_for
from tests.support import media_oracle
from tests.support.tap_oracle import CHAT, GENERATE, IMAGES, MESSAGES, RESPONSES

TABLE = table_for("gpt-4o")
NOISE = random.Random(3).randbytes(3000)


def png(w, h):
    return b"\x89PNG\r\n\x1a\n" + struct.pack(">I4sIIBBBBB", 13, b"IHDR", w, h, 8, 2, 0, 0, 0) + NOISE


def gif(w, h):
    return b"GIF89a" + struct.pack("<HH", w, h) + NOISE


def jpeg(w, h, before=b""):
    frame = b"\xff\xc2" + struct.pack(">HBHHB", 17, 8, h, w, 3) + bytes(9)
    return b"\xff\xd8\xff\xe0\x00\x10JFIF" + bytes(10) + before + b"\xff\xff\xdb\x00\x04ab" + frame + NOISE


def webp(w, h, kind):
    head = b"RIFF\x00\x00\x00\x00WEBP" + kind
    if kind == b"VP8 ":
        return head + bytes(4) + b"\x00\x00\x00\x9d\x01\x2a" + struct.pack("<HH", w, h) + NOISE
    if kind == b"VP8L":
        return head + bytes(4) + b"\x2f" + struct.pack("<I", (w - 1) | (h - 1) << 14) + NOISE
    return head + bytes(8) + (w - 1).to_bytes(3, "little") + (h - 1).to_bytes(3, "little") + NOISE


EXIF = b"\xff\xe1" + struct.pack(">H", 65535) + bytes(65533)
FILES = {
    "png": png,
    "gif": gif,
    "jpeg": jpeg,
    "jpeg behind a large preview": lambda w, h: jpeg(w, h, EXIF + EXIF),
    "webp lossy": lambda w, h: webp(w, h, b"VP8 "),
    "webp lossless": lambda w, h: webp(w, h, b"VP8L"),
    "webp extended": lambda w, h: webp(w, h, b"VP8X"),
}


def b64(data):
    return base64.b64encode(data).decode()


def url(data, mime="image/png"):
    return f"data:{mime};base64,{b64(data)}"


def chat(model, *parts):
    return {"model": model, "messages": [{"role": "user", "content": list(parts)}]}


def image(address, **extra):
    return {"type": "image_url", "image_url": {"url": address, **extra}}


def cost(format, body, cuts=()):
    """Tokens beyond those of the same body without files."""
    text = body if isinstance(body, bytes) else json.dumps(body).encode()
    result = scan_request(format, text, TABLE, cuts)
    assert not result["error"]
    assert result["text"] == 0
    return result["prompt_tokens"] - (0 if format in (GENERATE, IMAGES) else 7) - (2 if format == GENERATE else 0)


@pytest.mark.parametrize("make", FILES.values(), ids=FILES)
def test_size_is_read_from_the_first_bytes(make):
    for w, h, tiles in [(1, 1, 1), (512, 512, 1), (513, 512, 2), (1024, 1024, 4), (2048, 4096, 6), (8000, 100, 4)]:
        assert cost(CHAT, chat("gpt-4o", image(url(make(w, h))))) == 85 + 170 * tiles, (w, h)


@pytest.mark.parametrize("make", [png, gif, jpeg, FILES["webp lossless"]])
def test_every_cut_and_escaped_slashes(make):
    text = json.dumps(chat("gpt-4o", image(url(make(700, 300)[:300]), detail="high")))
    for body in (text.encode(), text.replace("/", "\\/").encode(), text.replace("A", "\\u0041").encode()):
        for cut in range(len(body)):
            assert cost(CHAT, body, (cut,)) == 85 + 170 * 2
        assert cost(CHAT, body, tuple(range(len(body)))) == 85 + 170 * 2


def test_openai_rules():
    address = url(png(1000, 1000))
    assert cost(CHAT, chat("gpt-4o", image(address, detail="low"))) == 85
    assert cost(CHAT, chat("gpt-4o", {"type": "image_url", "image_url": {"detail": "low", "url": address}})) == 85
    assert cost(CHAT, chat("gpt-4o", image(address, detail="low"), image(address))) == 85 * 2 + 170 * 4
    assert cost(CHAT, chat("gpt-4o-mini", image(address))) == 2833 + 4 * 5667
    assert cost(CHAT, chat("gpt-5", image(address))) == 70 + 4 * 140
    assert cost(CHAT, chat("openai/gpt-5", image(address))) == 70 + 4 * 140
    assert cost(CHAT, chat("gpt-5-mini", image(address))) == -(-1024 * 1620 // 1000)
    assert cost(CHAT, chat("gpt-5-mini", image(url(png(9000, 9000))))) == -(-1536 * 1620 // 1000)
    assert cost(CHAT, chat("o3", image(address))) == 75 + 4 * 150
    assert cost(CHAT, chat("gpt-4o", image("https://x.example/a.png"))) == 85 + 170 * 8
    assert cost(CHAT, chat("gpt-4o", {"type": "image_url", "image_url": address})) == 85 + 170 * 4
    assert cost(IMAGES, {"model": "gpt-image-1", "image": [address, address]}) == 2 * (85 + 170 * 4)


def test_responses():
    address = url(gif(512, 512))
    body = {"model": "gpt-4o", "input": [{"role": "user", "content": [{"type": "input_image", "image_url": address}]}]}
    assert cost(RESPONSES, body) == 85 + 170
    body["input"][0]["content"][0]["detail"] = "low"
    assert cost(RESPONSES, body) == 85
    screenshot = {"type": "computer_call_output", "output": {"type": "computer_screenshot", "image_url": address}}
    assert cost(RESPONSES, {"model": "gpt-4o", "input": [screenshot]}) == 85 + 170


def source(data, **extra):
    return {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": data, **extra}}


def test_anthropic():
    data = b64(png(1000, 750))
    for model, tokens in [("claude-sonnet-4-5-20250929", 1000), ("claude-opus-4-7", 1000)]:
        assert cost(MESSAGES, chat(model, source(data))) == tokens
    data = b64(png(4000, 3000))
    for model, tokens in [("claude-3-5-sonnet", 1568), ("claude-opus-4-7", 4784), ("claude-next", 4784)]:
        assert cost(MESSAGES, chat(model, source(data))) == tokens
        assert cost(MESSAGES, chat(model, {"type": "image", "source": {"type": "url", "url": "https://x/y"}})) == tokens
    nested = {"type": "tool_result", "tool_use_id": "t", "content": [source(data), source(data)]}
    assert cost(MESSAGES, chat("claude-3-5-sonnet", nested)) == 2 * 1568


def test_anthropic_plain_text_source_in_any_order():
    text = "The quick brown fox jumps over the lazy dog. " * 5
    for keys in (("type", "media_type", "data"), ("data", "type", "media_type"), ("media_type", "data", "type")):
        for value, kind, mime in [(text, "text", "text/plain"), (b64(png(750, 100)), "base64", "image/png")]:
            fields = {"type": kind, "media_type": mime, "data": value}
            part = {"type": "document" if kind == "text" else "image", "source": {key: fields[key] for key in keys}}
            body = json.dumps(chat("claude-3-5-sonnet", part)).encode()
            result = scan_request(MESSAGES, body, TABLE)
            assert result == scan_request(MESSAGES, body, TABLE, tuple(range(len(body))))
            assert result["text"] == (count_text(TABLE, text.encode()) if kind == "text" else 0)
            assert result["prompt_tokens"] == -(-result["text"] // 4096) + 7 + (0 if kind == "text" else 100)


def gemini(*parts, **extra):
    return {"contents": [{"role": "user", "parts": list(parts)}], **extra}


def test_gemini():
    blob = {"mimeType": "image/png", "data": b64(png(300, 300))}
    assert cost(GENERATE, gemini({"inlineData": blob})) == 1120
    assert cost(GENERATE, gemini({"inline_data": {"data": blob["data"], "mime_type": "image/png"}})) == 1120
    low = {"generationConfig": {"mediaResolution": "MEDIA_RESOLUTION_LOW"}}
    assert cost(GENERATE, gemini({"inlineData": blob}, **low)) == 280
    assert cost(GENERATE, gemini({"fileData": {"fileUri": "https://x/y", "mimeType": "image/png"}})) == 1120
    assert cost(GENERATE, gemini({"fileData": {"fileUri": "https://x/y", "mimeType": "video/mp4"}})) == 8192


def test_other_files():
    pdf = b64(b"%PDF-1.7" + bytes(1_000_000))
    document = {"type": "document", "source": {"type": "base64", "media_type": "application/pdf", "data": pdf}}
    assert cost(MESSAGES, chat("claude-x", document)) == 1_000_008 // 32
    file = {"type": "file", "file": {"filename": "", "file_data": f"data:application/pdf;base64,{pdf}"}}
    assert cost(CHAT, chat("gpt-4o", file)) == 1_000_008 // 32
    small = {"type": "file", "file": {"file_id": "file-123"}}
    assert cost(CHAT, chat("gpt-4o", small)) == 4096
    wav = b64(b"RIFF\x00\x00\x00\x00WAVE" + bytes(512_000))
    audio = {"type": "input_audio", "input_audio": {"data": wav, "format": "wav"}}
    assert cost(CHAT, chat("gpt-4o", audio)) == 512_012 // 512


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\xff",
        b"\xff\xd8",
        b"\xff\xd8\xff\xd9",
        b"\xff\xd8\xff\xc0\x00\x01",
        b"\xff\xd8\xff\xc0\x00\x11\x08\x00\x00\x00\x00",
        b"\xff\xd8" + EXIF * 6 + b"\xff\xc0\x00\x11\x08\x01\x00\x01\x00",
        b"\x89PNG\r\n\x1a\n",
        b"\x89PNG\r\n\x1a\n" + bytes(40),
        b"GIF89a",
        b"RIFF\x00\x00\x00\x00WEBPVP8?" + bytes(40),
        b"RIFF\x00\x00\x00\x00AVI " + bytes(40),
        b"BM" + bytes(50),
        bytes(100),
    ],
)
def test_an_image_without_a_size_counts_as_the_largest(data):
    assert cost(CHAT, chat("gpt-4o", image(url(data)))) == 85 + 170 * 8


def test_odd_addresses():
    for address in ["", "d", "data", "data:", "data:,", "data:image/png,abc", "data:image/png;base64,!!!!", "x" * 9999]:
        assert cost(CHAT, chat("gpt-4o", image(address))) == 85 + 170 * 8
    assert cost(CHAT, chat("gpt-4o", image("data:" + "x" * 200 + ";base64,AAAA"))) > 0
    assert cost(CHAT, chat("gpt-4o", image(url(png(512, 512)).replace("data:", "DATA:")))) == 85 + 170


SIZES = st.one_of(
    st.none(),
    st.tuples(st.integers(1, 4000), st.integers(1, 4000)),
    st.tuples(st.sampled_from([1, 32, 384, 385, 512, 768, 1568, 2048, 2576, 16383]), st.integers(1, 16383)),
)
MODELS = [
    *media_oracle.TILES,
    *media_oracle.PATCHES,
    *("gpt-4o", "openai/gpt-5-mini-2025", "gpt-4.1", "o3-mini", "anthropic/claude-3-5-sonnet", "claude-opus-4-6"),
    *("claude-opus-4-7", "claude-sonnet-4-20250514", "claude-next"),
]


@settings(deadline=None)
@given(
    format=st.sampled_from([CHAT, RESPONSES, MESSAGES, GENERATE]),
    model=st.sampled_from([name for name in MODELS if name]),
    pictures=st.lists(st.tuples(SIZES, st.booleans(), st.sampled_from([png, gif, jpeg])), max_size=4),
    resolution=st.sampled_from([None, ("MEDIA_RESOLUTION_LOW", 280), ("MEDIA_RESOLUTION_MEDIUM", 560)]),
    cuts=st.lists(st.integers(0, 3000), max_size=4),
)
def test_pictures_cost_what_the_oracle_says(format, model, pictures, resolution, cuts):
    parts = []
    for size, low, make in pictures:
        data = make(*size)[:400] if size else b"?"
        if format == MESSAGES:
            parts.append(source(b64(data)))
        elif format == GENERATE:
            parts.append({"inlineData": {"mimeType": "image/png", "data": b64(data)}})
        elif format == RESPONSES:
            part = {"type": "input_image", "image_url": url(data)}
            parts.append(part | {"detail": "low"} if low else part)
        else:
            parts.append(image(url(data), detail="low" if low else "auto"))
    if format == GENERATE:
        config = {"generationConfig": {"mediaResolution": resolution[0]}} if resolution else {}
        body = gemini(*parts, **config)
    elif format == RESPONSES:
        body = {"model": model, "input": [{"role": "user", "content": parts}]}
    else:
        body = chat(model, *parts)
    text = json.dumps(body).encode()
    expected = [(size, low and format not in (MESSAGES, GENERATE)) for size, low, _ in pictures]
    named = "" if format == GENERATE else model
    wanted = media_oracle.tokens(format, named, expected, resolution[1] if resolution and format == GENERATE else 1120)
    assert cost(format, text, tuple(sorted(min(cut, len(text)) for cut in cuts))) == wanted
