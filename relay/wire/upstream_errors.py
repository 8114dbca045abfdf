"""What an upstream's error answer is about. Sources: the providers' error documentation; research on what they send.

A customer must never read about the operator's own account, so those answers are told apart here. Only the fields that
name a kind of error are compared, never its text as a whole: an error may quote the request.
"""

import re
from typing import Any, Final

import orjson

REQUEST: Final = 0  # the caller's own request: the answer passes as it is
ACCOUNT: Final = 1  # the operator's key, quota or balance: the caller sees 503 upstream_account
UPSTREAM: Final = 2  # the provider's trouble or its rate limit: another channel may do better, else it passes

_ACCOUNT_KINDS: Final = frozenset(
    {
        "insufficient_quota",
        "billing_hard_limit_reached",
        "billing_not_active",
        "account_deactivated",
        "invalid_api_key",
        "access_terminated",
        "billing_error",
        "authentication_error",
        "permission_error",
        "API_KEY_INVALID",
        "UNAUTHENTICATED",
        "PERMISSION_DENIED",
        "BILLING_DISABLED",
        "SERVICE_DISABLED",
        "CONSUMER_SUSPENDED",
    }
)
_WHOLE_ACCOUNT_KINDS: Final = _ACCOUNT_KINDS - {"permission_error", "PERMISSION_DENIED"}
# Anthropic says so in words only, as an `invalid_request_error`.
_ACCOUNT_MESSAGES: Final = ("Your credit balance is too low",)


def is_about_one_model(status: int, body: bytes) -> bool:
    """Whether a refusal of the operator's key or account leaves its other models usable: 403 and 429 are about a model
    or its limits unless they name the account's balance."""
    return status in (403, 429) and not _kinds(body) & _WHOLE_ACCOUNT_KINDS


def judge(dialect: int, status: int, body: bytes) -> int:
    """REQUEST, ACCOUNT or UPSTREAM. `body` is empty where it could not be read."""
    if status in (401, 402, 403) or _kinds(body) & _ACCOUNT_KINDS:
        return ACCOUNT
    if _message(body).startswith(_ACCOUNT_MESSAGES):
        return ACCOUNT
    if status in (408, 409, 425, 429) or status >= 500:
        return UPSTREAM
    return REQUEST


def retry_after_seconds(fields: bytes, body: bytes) -> float | None:
    """How long an upstream asks to wait, None where it does not say.

    fields  its header lines; `retry-after-ms` (OpenAI, Azure), then `retry-after` in seconds. A date is not read: the
            clocks of two machines differ by more than most limits last.
    body    Gemini says it there only, as google.rpc.RetryInfo with a duration such as "34.07s"
    """
    if match := _RETRY_AFTER_MS.search(fields):
        return float(match[1]) / 1000
    if match := _RETRY_AFTER.search(fields):
        return float(match[1])
    details = _error(body).get("details")
    for detail in details if isinstance(details, list) else ():
        delay = detail.get("retryDelay") if isinstance(detail, dict) else None
        if isinstance(delay, str) and (match_text := _DURATION.fullmatch(delay)):
            return float(match_text[1])
    return None


_RETRY_AFTER_MS: Final = re.compile(rb"^retry-after-ms:[ \t]*([0-9]{1,12}(?:\.[0-9]{1,9})?)[ \t]*\r$", re.I | re.M)
_RETRY_AFTER: Final = re.compile(rb"^retry-after:[ \t]*([0-9]{1,9}(?:\.[0-9]{1,9})?)[ \t]*\r$", re.I | re.M)
_DURATION: Final = re.compile(r"([0-9]{1,9}(?:\.[0-9]{1,9})?)s", re.ASCII)


def _error(body: bytes) -> dict[str, Any]:
    try:
        document = orjson.loads(body)
    except orjson.JSONDecodeError:
        return {}
    if isinstance(document, list) and document:
        document = document[0]
    error = document.get("error") if isinstance(document, dict) else None
    return error if isinstance(error, dict) else {}


def _kinds(body: bytes) -> set[str]:
    error = _error(body)
    kinds = {error.get("code"), error.get("type"), error.get("status")}
    details = error.get("details")
    for detail in details if isinstance(details, list) else ():
        if isinstance(detail, dict):
            kinds.add(detail.get("reason"))
    return {kind for kind in kinds if isinstance(kind, str)}


def _message(body: bytes) -> str:
    message = _error(body).get("message")
    return message if isinstance(message, str) else ""
