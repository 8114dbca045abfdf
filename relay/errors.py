"""What can go wrong with a call, and what each fault means.

One flat table, ERRORS, keyed by the names that call records and error bodies carry (`_fastpath.ERROR_CODES`). A deeper
hierarchy of exception classes would say no more than these four facts: the HTTP status, whose fault it is, whether the
same request can ever succeed if repeated (`final`), and a sentence for the person who reads it.

    client      request    malformed_json duplicate_key invalid_type invalid_value missing_model unsupported_feature
                           tool_unpriced
                           malformed_http malformed_form body_too_large unsupported_encoding body_timeout
                           unsupported_charset browser_request misspelt_key malformed_encoding
                           idempotency_repeat path_not_found method_not_allowed upgrade_required model_not_found
                           object_not_found too_many_files objects_apart
                key        missing_key invalid_key ambiguous_key key_expired key_revoked key_suspended account_inactive
                permission address_not_allowed scope_not_allowed model_not_allowed
                limit      rate_limit_requests rate_limit_tokens concurrency_limit daily_limit monthly_limit
                           tokens_per_call cap_reached* files_limit
                money      insufficient_balance max_cost balance_exhausted* max_cost_reached*
                gone       client_gone* client_stalled*
    upstream    upstream_failed upstream_unavailable upstream_timeout upstream_garbage upstream_account
                upstream_truncated* upstream_stalled* upstream_error
    relay       switched_off model_unpriced overloaded store_unavailable draining drain_deadline* recovered* internal

    * ends a call that has begun: seen in a record or as the last event of a stream

`relay.wire.errors` turns an entry into the bytes that the SDKs of a dialect understand.
"""

from typing import Final, Literal

import msgspec

from relay import _fastpath

Fault = Literal["client", "upstream", "relay"]


class RelayError(Exception):
    """Base of relay's exceptions that people read. The text never holds a secret or content of a call."""


class ErrorKind(msgspec.Struct, frozen=True):
    """Facts of one error code.

    status               HTTP status of a refusal with this code; what a record shows where nothing had been sent
    fault                who has to do something about it
    final                repeating the same request cannot help now: SDKs are told not to retry
    message              one sentence or two for a person; never content, never a secret
    retry_after_seconds  advice where nothing exact is known; 0: none
    """

    status: int
    fault: Fault
    final: bool
    message: str
    retry_after_seconds: int = 0


def _client(status: int, message: str, *, final: bool = True, retry: int = 0) -> ErrorKind:
    return ErrorKind(status, "client", final, message, retry)


def _upstream(status: int, message: str, *, retry: int = 0) -> ErrorKind:
    return ErrorKind(status, "upstream", False, message, retry)


def _relay(status: int, message: str, *, final: bool = False, retry: int = 0) -> ErrorKind:
    return ErrorKind(status, "relay", final, message, retry)


ERRORS: Final[dict[str, ErrorKind]] = {
    # the request
    "malformed_json": _client(400, "The request body is not a valid JSON object."),
    "duplicate_key": _client(400, "The request body has the same key twice in one object."),
    "misspelt_key": _client(400, "A key of the request body differs from a known one only in the case of its letters."),
    "invalid_type": _client(400, "A field of the request body has the wrong type."),
    "invalid_value": _client(400, "A field of the request has a value that is not allowed."),
    "missing_model": _client(400, "The request names no model, or an empty one."),
    "unsupported_feature": _client(400, "This relay does not support what the request asks for."),
    "tool_unpriced": _client(
        400,
        "The request asks for a tool that the provider bills, or for another model, and this relay has no price for it "
        "(an operator sets one in rates.tools, or billing.unpriced).",
    ),
    "malformed_http": _client(400, "The request is not valid HTTP/1.1."),
    "malformed_form": _client(400, "The request body is not a valid multipart form."),
    "body_too_large": _client(413, "The request body is larger than this relay accepts."),
    "unsupported_encoding": _client(
        415, "Request bodies may be compressed by one of gzip, deflate, br and zstd, and forms not at all."
    ),
    "malformed_encoding": _client(400, "The request body is not compressed as its Content-Encoding says."),
    "unsupported_charset": _client(
        415, "JSON is read as UTF-8 here: send it so, and no other charset in Content-Type."
    ),
    "browser_request": _client(
        403, "This is an address for programs: a browser cannot open it as a page, a frame, a script or a worker."
    ),
    "body_timeout": _client(408, "The request did not arrive in time.", final=False),
    "idempotency_repeat": _client(
        409, "A call with this Idempotency-Key has been made. Its answer is not kept, and it is not made again."
    ),
    "path_not_found": _client(404, "There is nothing at this path."),
    "method_not_allowed": _client(405, "This path does not answer this HTTP method."),
    "upgrade_required": _client(
        426, "Realtime sessions are WebSockets, and nothing else is: send any other request by POST."
    ),
    "model_not_found": _client(404, "There is no such model on this relay. GET /v1/models lists those of your key."),
    "object_not_found": _client(404, "There is no such object of this account."),
    "files_limit": _client(403, "The files of this account would take more room than it has."),
    "too_many_files": _client(400, "The request names more than 32 files."),
    "objects_apart": _client(
        400, "What the request names does not lie together at one channel that may serve this call."
    ),
    # the key
    "missing_key": _client(401, "No API key was sent. Send one as `Authorization: Bearer sk-...`."),
    # "Incorrect API key provided" is what OpenAI says: litellm tells a wrong key from a wrong request by these words.
    "invalid_key": _client(401, "Incorrect API key provided: it is not a key of this relay."),
    "ambiguous_key": _client(401, "Two different valid API keys were sent. Send one."),
    "key_expired": _client(401, "Incorrect API key provided: it has expired."),
    "key_revoked": _client(401, "Incorrect API key provided: it has been revoked."),
    "key_suspended": _client(401, "Incorrect API key provided: it is suspended."),
    "account_inactive": _client(403, "The account of this API key is not active."),
    # what the key may do
    "address_not_allowed": _client(403, "This API key may not be used from your address."),
    "scope_not_allowed": _client(403, "This API key may not use this endpoint."),
    "model_not_allowed": _client(403, "This API key may not use this model."),
    # limits
    "rate_limit_requests": _client(429, "Too many requests per minute.", final=False, retry=1),
    "rate_limit_tokens": _client(429, "Too many tokens per minute.", final=False, retry=1),
    "concurrency_limit": _client(429, "Too many calls at the same time.", final=False, retry=1),
    # Final although time would heal them: some SDKs would sleep for as long as Retry-After says, here hours or weeks.
    "daily_limit": _client(429, "The spending limit of this day (UTC) is reached."),
    "monthly_limit": _client(429, "The spending limit of this month (UTC) is reached."),
    "tokens_per_call": _client(429, "The call may use more tokens than are allowed in one call to this model."),
    "cap_reached": _client(429, "A spending limit was reached during the call; it was ended."),
    # money
    "insufficient_balance": _client(402, "The balance does not cover this call."),
    "max_cost": _client(402, "The call may cost more than its x-relay-max-cost."),
    "balance_exhausted": _client(402, "The balance ran out during the call; it was ended."),
    "max_cost_reached": _client(402, "The call reached its x-relay-max-cost; it was ended."),
    # the client went away: nobody reads these, records show them
    "client_gone": _client(499, "The client closed the connection."),
    "client_stalled": _client(499, "The client stopped reading the answer."),
    # upstream
    "upstream_failed": _upstream(502, "The provider failed to answer. The call was not charged."),
    "upstream_unavailable": _upstream(503, "No provider for this model is available at the moment.", retry=2),
    "upstream_timeout": _upstream(504, "The provider did not answer in time. The call was not charged."),
    "upstream_garbage": _upstream(502, "What the provider sent was no valid answer. The call was not charged."),
    "upstream_account": _upstream(503, "The provider is not available to this relay at the moment.", retry=30),
    "upstream_truncated": _upstream(502, "The provider's answer broke off."),
    "upstream_stalled": _upstream(504, "The provider stopped sending in the middle of the answer."),
    "upstream_error": _upstream(502, "The provider answered with an error."),
    # the relay itself
    "switched_off": _relay(503, "This model is switched off here at the moment.", retry=60),
    "model_unpriced": _relay(404, "This model has no price on this relay and cannot be used yet.", final=True),
    "overloaded": _relay(503, "The relay is at its limit of simultaneous work.", retry=2),
    "store_unavailable": _relay(503, "The relay cannot record calls at the moment.", retry=5),
    "draining": _relay(503, "The relay is about to restart.", retry=2),
    "drain_deadline": _relay(503, "The relay had to restart; the call was ended."),
    "recovered": _relay(500, "The relay stopped during the call."),
    "internal": _relay(500, "The relay failed. This is its fault, not yours."),
}

# The hot path numbers the codes; a code without an entry here would be a refusal that nobody can render.
if set(ERRORS) != set(_fastpath.ERROR_CODES) - {""}:
    raise RuntimeError(
        f"relay/errors.py and _fastpath.ERROR_CODES differ: {sorted(set(ERRORS) ^ (set(_fastpath.ERROR_CODES) - {''}))}"
    )
