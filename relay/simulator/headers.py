"""Response headers as the providers send them, the ones about the operator's own account included.

A relay must keep those from its clients; that can only be tested where they are present.
"""

import time
from functools import lru_cache

_DAY = ("Mon", "Tue", "Wed", "Thu", "Fri", "Sat", "Sun")
_MONTH = ("Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec")

_OPENAI = """\
date: {date}
content-type: {type}
access-control-expose-headers: X-Request-ID
openai-organization: sim-operator-org
openai-processing-ms: 17
openai-project: proj_sim_operator
openai-version: 2020-10-01
x-envoy-upstream-service-time: 21
x-ratelimit-limit-requests: 10000
x-ratelimit-limit-tokens: 2000000
x-ratelimit-remaining-requests: 9999
x-ratelimit-remaining-tokens: 1999983
x-ratelimit-reset-requests: 6ms
x-ratelimit-reset-tokens: 0s
x-request-id: {id}
x-openai-proxy-wasm: v0.1
cf-cache-status: DYNAMIC
set-cookie: __cf_bm=sim-operator-cookie-1; path=/; HttpOnly; Secure; SameSite=None
set-cookie: _cfuvid=sim-operator-cookie-2; path=/; HttpOnly; Secure; SameSite=None
strict-transport-security: max-age=31536000; includeSubDomains; preload
x-content-type-options: nosniff
server: cloudflare
cf-ray: 9a1b2c3d4e5f6071-FRA
alt-svc: h3=":443"; ma=86400
"""

_ANTHROPIC = """\
date: {date}
content-type: {type}
cache-control: no-cache
anthropic-ratelimit-requests-limit: 4000
anthropic-ratelimit-requests-remaining: 3999
anthropic-ratelimit-requests-reset: {reset}
anthropic-ratelimit-input-tokens-limit: 2000000
anthropic-ratelimit-input-tokens-remaining: 1999000
anthropic-ratelimit-input-tokens-reset: {reset}
anthropic-ratelimit-output-tokens-limit: 400000
anthropic-ratelimit-output-tokens-remaining: 399000
anthropic-ratelimit-output-tokens-reset: {reset}
anthropic-ratelimit-tokens-limit: 2400000
anthropic-ratelimit-tokens-remaining: 2398000
anthropic-ratelimit-tokens-reset: {reset}
request-id: {id}
anthropic-organization-id: sim-operator-org
strict-transport-security: max-age=31536000; includeSubDomains; preload
via: 1.1 google
x-envoy-upstream-service-time: 423
cf-cache-status: DYNAMIC
set-cookie: _cfuvid=sim-operator-cookie-2; HttpOnly; SameSite=None; Secure; Path=/; Domain=api.anthropic.com
x-robots-tag: none
server: cloudflare
cf-ray: 9a1b2c3d4e5f6072-FRA
"""

_GEMINI = """\
content-type: {type}
vary: Origin
vary: X-Origin
vary: Referer
date: {date}
server: scaffolding on HTTPServer2
x-xss-protection: 0
x-frame-options: SAMEORIGIN
x-content-type-options: nosniff
server-timing: gfet4t7; dur=412
alt-svc: h3=":443"; ma=2592000,h3-29=":443"; ma=2592000
"""

_TEMPLATES = {"openai": _OPENAI, "anthropic": _ANTHROPIC, "gemini": _GEMINI}


@lru_cache(maxsize=64)
def _at(dialect: str, content_type: str, second: int) -> tuple[bytes, bytes]:
    """The head's lines before and behind the request id, for this second."""
    now = time.gmtime(second)
    clock = time.strftime("%H:%M:%S", now)
    date = f"{_DAY[now.tm_wday]}, {now.tm_mday:02} {_MONTH[now.tm_mon - 1]} {now.tm_year} {clock} GMT"
    reset = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(second + 1))
    text = _TEMPLATES[dialect].format(date=date, type=content_type, reset=reset, id="\0")
    before, _, behind = text.replace("\n", "\r\n").partition("\0")
    return before.encode(), behind.encode()


def provider_headers(dialect: str, content_type: str, request_id: str) -> bytes:
    """Header lines of a provider's answer, each ended by CRLF."""
    before, behind = _at(dialect, content_type, int(time.time()))
    return before + request_id.encode() + behind if behind else before
