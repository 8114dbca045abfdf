import pytest

from relay.wire.headers import (
    HOP_BY_HOP,
    KEY_HEADERS,
    REQUEST_ALLOWED,
    RESPONSE_DROPPED,
    response_passes,
)


def test_names_are_lower_case():
    for names in (*REQUEST_ALLOWED, RESPONSE_DROPPED, KEY_HEADERS):
        assert all(name == name.lower() for name in names)


@pytest.mark.parametrize("dialect", [0, 1, 2])
def test_no_request_header_of_the_connection_the_account_or_the_network_goes_on(dialect):
    kept_back = {
        *KEY_HEADERS,
        *HOP_BY_HOP,
        *(
            b"host",
            b"content-length",
            b"content-encoding",
            b"accept-encoding",
            b"expect",
            b"cookie",
            b"idempotency-key",
        ),
        *(b"x-forwarded-for", b"x-real-ip", b"forwarded", b"via", b"origin", b"referer"),
        *(b"openai-organization", b"openai-project", b"anthropic-workspace-id", b"x-goog-user-project"),
        *(b"x-relay-max-cost", b"x-relay-channel", b"x-sim", b"api-key"),
    }
    assert not REQUEST_ALLOWED[dialect] & kept_back


def test_what_the_apis_need_goes_on():
    assert {b"accept", b"user-agent", b"openai-beta"} <= REQUEST_ALLOWED[0]
    assert {b"anthropic-version", b"anthropic-beta"} <= REQUEST_ALLOWED[1]
    assert {b"x-goog-api-client"} <= REQUEST_ALLOWED[2]


@pytest.mark.parametrize(
    "name",
    [
        *(b"set-cookie", b"transfer-encoding", b"connection", b"keep-alive", b"openai-organization"),
        *(b"x-ratelimit-remaining-tokens", b"anthropic-ratelimit-unified-status", b"anthropic-organization-id"),
        *(b"alt-svc", b"strict-transport-security", b"x-relay-request-id", b"x-codex-primary-used-percent"),
    ],
)
def test_response_headers_dropped(name):
    assert not response_passes(name)


@pytest.mark.parametrize(
    "name",
    [
        *(b"content-type", b"content-encoding", b"x-request-id", b"request-id", b"retry-after", b"retry-after-ms"),
        *(b"openai-processing-ms", b"openai-version", b"openai-model", b"cf-ray", b"x-models-etag", b"x-should-retry"),
        *(b"date", b"server", b"x-anything-new"),
    ],
)
def test_response_headers_passed(name):
    assert response_passes(name)
