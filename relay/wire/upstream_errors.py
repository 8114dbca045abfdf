"""What an upstream's error answer is about. Sources: the providers' error documentation; research on what they send.

A customer must never read about the operator's own account, so those answers are told apart here. Only the fields that
name a kind of error are compared, never its text as a whole: an error may quote the request.
"""

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
# Anthropic says so in words only, as an `invalid_request_error`.
_ACCOUNT_MESSAGES: Final = ("Your credit balance is too low",)


def judge(dialect: int, status: int, body: bytes) -> int:
    """REQUEST, ACCOUNT or UPSTREAM. `body` is empty where it could not be read."""
    if status in (401, 402, 403) or _kinds(body) & _ACCOUNT_KINDS:
        return ACCOUNT
    if _message(body).startswith(_ACCOUNT_MESSAGES):
        return ACCOUNT
    if status in (408, 409, 425, 429) or status >= 500:
        return UPSTREAM
    return REQUEST


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
