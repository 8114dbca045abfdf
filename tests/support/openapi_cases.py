"""Requests made from an OpenAPI document, sent to a running relay, and every answer held against the document.

    python -m tests.support.openapi_cases --url http://127.0.0.1:8787 --token OPERATOR_TOKEN --examples 500

tries the operator's API of a relay that holds nothing of value: it creates, changes and bans what it finds.
"""

import argparse
import http.client
import json
import sys
import urllib.parse
from collections import Counter
from typing import Any

import schemathesis
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st

CHECKS = [
    schemathesis.checks.not_a_server_error,
    schemathesis.checks.status_code_conformance,
    schemathesis.checks.content_type_conformance,
    schemathesis.checks.response_headers_conformance,
    schemathesis.checks.response_schema_conformance,
]
# Ends the relay.
LEFT_OUT = {"POST /admin/v1/drain"}


def fetch(url: str, path: str, token: str) -> dict[str, Any]:
    """The document."""
    connection = http.client.HTTPConnection(urllib.parse.urlsplit(url).netloc, timeout=10)
    try:
        connection.request("GET", path, headers={"Authorization": f"Bearer {token}"})
        answer = connection.getresponse()
        assert answer.status == 200, answer.status
        document: dict[str, Any] = json.loads(answer.read())
        return document
    finally:
        connection.close()


def known_values(operation: str) -> dict[str, list[Any]]:
    """What a random text would hardly ever be, by parameter; used for half of the cases."""
    kinds = {"accounts": "acct", "organisations": "org", "keys": "key", "schedule": "sched"}
    kind = next((name for word, name in kinds.items() if f"/{word}/" in operation), "acct")
    return {
        "id": ["sim-openai"] if "/channels/" in operation else [f"{kind}_1", f"{kind}_2", f"{kind}_999"],
        "account": ["acct_1", "acct_999"],
        "key": ["key_1"],
        "since": ["24h", "2026-01-31", "2026-01-31T12:00:00Z"],
        "until": ["2099-01-01"],
        "status": ["200", "402", "rate_limit_requests", "active", "frozen"],
        "limit": [1, 2, 1000],
        "before": ["call_0000000000001"],
        "after": ["acct_1", "entry_1"],
        "amount": ["5", "0.000000001", "-1"],
        "kind": ["purchased", "trial", "adjustment"],
        "email": ["one@example.com", "two@example.com"],
        "plan": ["free", "paid"],
        "scopes": [["chat"], [], None],
        "allow_ips": [["203.0.113.0/24"], None],
        "on_disconnect": ["drain", None],
        "expires": ["2099-01-01", None],
        "effective": ["2099-01-01"],
        "daily_limit": ["10", "0", None],
        "monthly_limit": ["10", None],
    }


def explore(
    document: dict[str, Any], url: str, token: str, *, examples: int, leave_out: set[str] = LEFT_OUT, start: int = 0
) -> Counter[tuple[str, int]]:
    """Sends `examples` cases per operation. Returns how often each operation was answered with which status.

    Raises what schemathesis raises for a 5xx or an answer that the document does not allow.
    """
    schema = schemathesis.openapi.from_dict(document)
    schema.config.update(base_url=url)
    seen: Counter[tuple[str, int]] = Counter()
    for found in schema.get_all_operations():
        operation = found.ok()
        label = f"{operation.method.upper()} {operation.path}"
        if label not in leave_out:
            _explore(operation, label, token, examples, start, seen)
    return seen


def _explore(operation: Any, label: str, token: str, examples: int, start: int, seen: Counter[tuple[str, int]]) -> None:
    values = known_values(label)

    @seed(start)
    @settings(
        max_examples=examples, database=None, deadline=None, suppress_health_check=list(HealthCheck),
        phases=[Phase.explicit, Phase.generate],
    )  # fmt: skip
    @given(case=operation.as_strategy(), data=st.data())
    def send(case: Any, data: st.DataObject) -> None:
        places = [case.path_parameters, case.query, case.body]
        if data.draw(st.booleans()):
            for place in places:
                for name in list(place) if isinstance(place, dict) else ():
                    if name in values:
                        place[name] = data.draw(st.sampled_from(values[name]))
        answer = case.call(headers={"Authorization": f"Bearer {token}"}, timeout=20)
        seen[label, answer.status_code] += 1
        case.validate_response(answer, checks=CHECKS)

    send()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else None)
    parser.add_argument("--url", required=True)
    parser.add_argument(
        "--token", required=True, help="the operator's token, or a key for --path /relay/v1/openapi.json"
    )
    parser.add_argument("--path", default="/admin/v1/openapi.json")
    parser.add_argument("--examples", type=int, default=500)
    parser.add_argument("--seed", type=int, default=0)
    words = parser.parse_args()
    document = fetch(words.url, words.path, words.token)
    seen = explore(document, words.url, words.token, examples=words.examples, start=words.seed)
    for (label, status), count in sorted(seen.items()):
        print(f"{count:6} {status} {label}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
