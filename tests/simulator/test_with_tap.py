"""The simulator's reports and what the relay's tap reads from the same bytes: written apart, they must agree."""

import json

import pytest

from relay._fastpath import TOKEN_UNIT, tap
from relay.policy.tokenizers import table_for
from relay.simulator import Running
from tests.support.rawclient import RawClient

CHAT, COMPLETIONS, RESPONSES, MESSAGES, GENERATE = 0, 1, 2, 4, 6
JSON, SSE, ARRAY = 0, 1, 2

ASK = [{"role": "user", "content": "DIRECTIVES"}]
GEMINI = {"contents": [{"parts": [{"text": "DIRECTIVES"}]}]}
USAGE = {"stream": True, "stream_options": {"include_usage": True}}
CASES = {
    "chat": (CHAT, JSON, "/v1/chat/completions", {"messages": ASK}),
    "chat stream": (CHAT, SSE, "/v1/chat/completions", {"messages": ASK, **USAGE}),
    "completions": (COMPLETIONS, JSON, "/v1/completions", {"prompt": "DIRECTIVES"}),
    "completions stream": (COMPLETIONS, SSE, "/v1/completions", {"prompt": "DIRECTIVES", **USAGE}),
    "responses": (RESPONSES, JSON, "/v1/responses", {"input": "DIRECTIVES"}),
    "responses stream": (RESPONSES, SSE, "/v1/responses", {"input": "DIRECTIVES", "stream": True}),
    "messages": (MESSAGES, JSON, "/v1/messages", {"messages": ASK, "max_tokens": 999}),
    "messages stream": (MESSAGES, SSE, "/v1/messages", {"messages": ASK, "max_tokens": 999, "stream": True}),
    "gemini": (GENERATE, JSON, "/v1beta/models/m:generateContent", GEMINI),
    "gemini stream": (GENERATE, SSE, "/v1beta/models/m:streamGenerateContent?alt=sse", GEMINI),
    "gemini array": (GENERATE, ARRAY, "/v1beta/models/m:streamGenerateContent", GEMINI),
}
VARIANTS = (
    "", "cached=7", "cached=7 cache_write=5", "reasoning=6", "tools=2", "usage=twice", "usage_at=each",
    "usage_at=choice",
    "usage_at=finish", "usage_at=groq", "shape=deepseek cached=7", "shape=kimi cached=7", "shape=xai reasoning=6",
    "eol=cr comments=1", "eol=crlf comments=2 blank=1", "size=300 utf8=1", "obfuscation=1", "ping=2",
)  # fmt: skip
HEADERS = {"Authorization": "Bearer sim-1", "x-api-key": "sim-1", "x-goog-api-key": "sim-1", "anthropic-version": "x"}


@pytest.mark.parametrize("case", CASES)
async def test_they_agree(simulator: Running, case):
    form, kind, path, request = CASES[case]
    table = table_for("gpt-4o")
    async with await RawClient.connect(simulator.host, simulator.port) as client:
        for variant in VARIANTS:
            directives = f"#sim input=100 events=9 seed=1 {variant}#"
            body = json.dumps({"model": "m", **request}).replace("DIRECTIVES", directives).encode()
            answer = await client.request("POST", path, HEADERS, body)
            assert answer.status == 200
            entry = simulator.book.last
            for step in (len(answer.body), 3):
                pieces = [answer.body[at : at + step] for at in range(0, len(answer.body), step)]
                found = tap(form, kind, pieces, table)
                prompt = found["input_tokens"] + found["cache_read_tokens"] + found["cache_write_tokens"]
                numbers = (prompt, found["cache_read_tokens"], found["output_tokens"])
                assert numbers == (100, entry.cached_tokens, entry.output_tokens), (variant, step)
                assert found["usage_seen"], (variant, step)
                assert found["terminal_seen"], (variant, step)
                assert found["text"] > TOKEN_UNIT, (variant, step)


@pytest.mark.parametrize("case", CASES)
async def test_searches_and_failures(simulator: Running, case):
    form, kind, path, request = CASES[case]
    table = table_for("gpt-4o")

    async def read(directives: str) -> dict:
        body = json.dumps({"model": "m", **request}).replace("DIRECTIVES", f"#sim {directives}#").encode()
        async with await RawClient.connect(simulator.host, simulator.port) as client:
            answer = await client.request("POST", path, HEADERS, body)
        return tap(form, kind, [answer.body], table)

    if form in (RESPONSES, MESSAGES, GENERATE):
        assert (await read("search=3"))["web_searches"] == 3
    if form in (RESPONSES, GENERATE):
        assert (await read("images=2"))["images"] == 2
    assert not (await read("usage=missing"))["usage_seen"]
    if kind != JSON:
        assert (await read("error_at=2"))["error_seen"]
        # An array is complete with its bracket; streams of events say themselves that they have ended.
        assert (await read("done=0"))["terminal_seen"] == (kind == ARRAY)
