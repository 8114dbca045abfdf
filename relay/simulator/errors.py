"""Errors in the shapes of the three providers."""

from relay.simulator.answer import Answer, Refused
from relay.simulator.plan import JSON, dumps

# kind: (status, OpenAI type, OpenAI code, Anthropic type, Gemini status, message)
_KINDS: dict[str, tuple[int, str, str | None, str, str, str]] = {
    "invalid": (
        400, "invalid_request_error", None, "invalid_request_error", "INVALID_ARGUMENT",
        "The request is invalid.",
    ),
    "key": (
        401, "invalid_request_error", "invalid_api_key", "authentication_error", "UNAUTHENTICATED",
        "invalid x-api-key",
    ),
    "balance": (
        402, "insufficient_quota", "insufficient_quota", "billing_error", "FAILED_PRECONDITION",
        "Your credit balance is too low to access the API.",
    ),
    "permission": (
        403, "invalid_request_error", "unsupported_country_region_territory", "permission_error", "PERMISSION_DENIED",
        "Your key does not have permission to use the specified resource.",
    ),
    "not_found": (
        404, "invalid_request_error", "model_not_found", "not_found_error", "NOT_FOUND",
        "The model does not exist.",
    ),
    "too_large": (
        413, "invalid_request_error", None, "request_too_large", "INVALID_ARGUMENT",
        "Request exceeds the maximum size",
    ),
    "rate": (
        429, "requests", "rate_limit_exceeded", "rate_limit_error", "RESOURCE_EXHAUSTED",
        "Rate limit reached. Please try again later.",
    ),
    "quota": (
        429, "insufficient_quota", "insufficient_quota", "rate_limit_error", "RESOURCE_EXHAUSTED",
        "You exceeded your current quota, please check your plan and billing details.",
    ),
    "server": (
        500, "server_error", None, "api_error", "INTERNAL",
        "The server had an error while processing your request.",
    ),
    "overloaded": (
        503, "server_error", None, "overloaded_error", "UNAVAILABLE",
        "The model is overloaded.",
    ),
    "timeout": (
        504, "server_error", None, "timeout_error", "DEADLINE_EXCEEDED",
        "The request timed out.",
    ),
}  # fmt: skip

_OF_STATUS = {
    400: "invalid", 401: "key", 402: "balance", 403: "permission", 404: "not_found", 413: "too_large", 429: "rate",
    503: "overloaded", 504: "timeout", 529: "overloaded",
}  # fmt: skip

_OPENAI_KEY_MESSAGE = (
    "Incorrect API key provided: {shown}. You can find your API key at https://platform.openai.com/account/api-keys."
)


def kind_of(status: int) -> str:
    return _OF_STATUS.get(status, "invalid" if status < 500 else "server")


def error_body(
    dialect: str,
    kind: str,
    status: int = 0,
    message: str = "",
    param: str | None = None,
    code: str | None = None,
    request_id: str = "",
) -> JSON:
    known_status, openai_type, openai_code, anthropic_type, gemini_status, text = _KINDS[kind]
    message = message or text
    if dialect == "anthropic":
        if kind == "balance" and status == 400:
            anthropic_type = "invalid_request_error"  # as Anthropic says it when the credits are used up
        error: JSON = {"type": "error", "error": {"type": anthropic_type, "message": message}}
        if request_id:
            error["request_id"] = request_id
        return error
    if dialect == "gemini":
        inner: JSON = {"code": status or known_status, "message": message, "status": gemini_status}
        if kind == "key" and (status or known_status) == 400:
            inner["status"] = "INVALID_ARGUMENT"
            inner["details"] = [
                {
                    "@type": "type.googleapis.com/google.rpc.ErrorInfo",
                    "reason": "API_KEY_INVALID",
                    "domain": "googleapis.com",
                    "metadata": {"service": "generativelanguage.googleapis.com"},
                }
            ]
        if kind in ("rate", "quota"):
            inner["details"] = [{"@type": "type.googleapis.com/google.rpc.RetryInfo", "retryDelay": "1s"}]
        return {"error": inner}
    return {"error": {"message": message, "type": openai_type, "param": param, "code": code or openai_code}}


def error_answer(
    dialect: str, refused: Refused, request_id: str = "", retry_after: float = -1, array: bool = False
) -> Answer:
    """`array`: Gemini's stream without `alt=sse`, which wraps errors as well."""
    status = refused.status or _KINDS[refused.kind][0]
    if dialect == "anthropic" and not refused.status and refused.kind == "overloaded":
        status = 529
    body = error_body(dialect, refused.kind, status, refused.message, refused.param, refused.code, request_id)
    headers: list[tuple[str, str]] = []
    if retry_after < 0 and status in (429, 503, 529) and refused.kind != "quota" and dialect != "gemini":
        retry_after = 1
    if retry_after >= 0:
        headers.append(("retry-after", str(int(-(-retry_after // 1)))))
        if dialect == "openai":
            headers.append(("retry-after-ms", str(int(retry_after * 1000))))
    if dialect == "anthropic":
        headers.append(("x-should-retry", "true" if status in (408, 409, 429) or status >= 500 else "false"))
        return Answer(status, "application/json", dumps(body), headers=headers)
    if dialect == "gemini":
        return Answer(
            status,
            "application/json; charset=UTF-8",
            dumps([body] if array else body, pretty=True) + b"\n",
            headers=headers,
        )
    return Answer(status, "application/json; charset=utf-8", dumps(body, pretty=True), headers=headers)


def own_account_message(dialect: str, kind: str) -> str:
    """What the provider says about the state of its customer's account; empty: the usual text."""
    if kind == "balance" and dialect == "anthropic":
        return (
            "Your credit balance is too low to access the Anthropic API. "
            "Please go to Plans & Billing to upgrade or purchase credits."
        )
    if kind == "key" and dialect == "openai":
        return openai_key_message("sim-operator-key")
    if kind == "key" and dialect == "gemini":
        return "API key not valid. Please pass a valid API key."
    return ""


def openai_key_message(key: str) -> str:
    shown = key if len(key) < 8 else key[:4] + "*" * (len(key) - 8) + key[-4:]
    return _OPENAI_KEY_MESSAGE.format(shown=shown)
