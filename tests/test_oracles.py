"""Every name of the compiled module has a judge in plain Python and a test that compares the two on generated cases.

A new public name in relay/_fastpath.pyi makes this fail until it stands here.
"""

import ast
import re
from functools import cache
from pathlib import Path

import pytest

TESTS = Path(__file__).parent
SPECIFICATION = ast.parse((TESTS.parent / "relay" / "_fastpath.pyi").read_text())

# name: the oracle, as tests/support/MODULE::NAME, and tests that compare the two, below tests/.
JUDGED = {
    "TokenTable": ("token_oracle::Automaton", "test_estimator::test_any_cut_gives_what_the_oracle_gives"),
    "count_text": ("token_oracle::Automaton", "test_estimator::test_any_cut_gives_what_the_oracle_gives"),
    "count_pieces": ("token_oracle::Automaton", "test_estimator::test_any_cut_gives_what_the_oracle_gives"),
    "Calibration": ("token_oracle::CalibrationOracle", "test_estimator::test_calibration_follows_the_oracle"),
    "RequestScanner": ("request_oracle::Request", "fastpath/test_scanner::test_any_request"),
    "scan_request": (
        "request_oracle::Request", "fastpath/test_scanner::test_any_request",
        "json_oracle::strict", "fastpath/test_json::test_any_document",
        "media_oracle::tokens", "fastpath/test_media::test_pictures_cost_what_the_oracle_says",
    ),
    "UsageTap": ("tap_oracle::Oracle", "fastpath/test_tap::test_any_stream"),
    "tap": (
        "tap_oracle::Oracle", "fastpath/test_tap::test_any_stream",
        "fastpath/test_tap::test_any_document",
    ),
    "weigh_report": ("evidence_oracle::weigh", "fastpath/test_evidence::test_any_report_of_any_dialect"),
    "request_bounds": ("evidence_oracle::bounds", "fastpath/test_evidence::test_bounds_are_their_oracle"),
    "Scope": (
        "money_oracle::ScopeOracle", "money_oracle::BucketOracle", "fastpath/test_limits::test_bucket_is_its_oracle",
        "fastpath/test_admission_stateful::Money",
    ),
    "Rate": (
        "money_oracle::RateOracle", "fastpath/test_money::test_cost_is_the_exact_fraction_rounded_up_once",
        "fastpath/test_money::test_prices_that_depend_on_the_call_are_their_oracle",
    ),
    "Balance": ("money_oracle::BalanceOracle", "fastpath/test_admission_stateful::Money"),
    "ApiKey": ("money_oracle::KeyOracle", "fastpath/test_money::test_what_a_key_may_do_is_its_oracle"),
    "Policy": ("money_oracle::policy", "fastpath/test_money::test_a_policy_is_its_oracle"),
    "Admission": ("money_oracle::CallOracle", "money_oracle::admit", "fastpath/test_admission_stateful::Money"),
    "JobHold": ("money_oracle::JobOracle", "fastpath/test_jobs::test_jobs_are_their_oracle"),
    "limits_of": ("money_oracle::tightest", "fastpath/test_limits::test_headers_are_their_oracle"),
    "Journal": (
        "slots::document", "fastpath/test_journal_slots::test_slots_are_their_oracle",
        "fastpath/test_session::Sessions",
    ),
    "FieldTable": (
        "http_oracle::request_head", "fastpath/test_http::test_every_known_field_is_read_as_the_oracle_does",
    ),
    "decode_chunked": ("http_oracle::chunked", "fastpath/test_http::test_chunked_bodies_are_their_oracle"),
    "keyed_hash": ("http_oracle::siphash", "fastpath/test_http::test_the_keyed_hash_is_siphash"),
    "parse_response_head": ("http_oracle::response_head", "fastpath/test_http::test_response_heads_are_their_oracle"),
    "AnswerReader": (
        "http_oracle::response_head", "http_oracle::chunked",
        "fastpath/test_http::test_an_answer_is_read_as_its_oracles_do",
    ),
    "parse_request_head": (
        "http_oracle::request_head", "fastpath/test_http::test_request_fields_are_their_oracle",
        "fastpath/test_http::test_nothing_is_served_that_aiohttps_parser_refuses",
    ),
    "Breaker": ("routing_oracle::BreakerOracle", "fastpath/test_routing::test_a_breaker_is_its_oracle"),
    "RetryBudget": ("routing_oracle::BudgetOracle", "fastpath/test_routing::test_a_retry_budget_is_its_oracle"),
    "UpstreamKey": ("routing_oracle::KeysOracle", "fastpath/test_routing::test_the_keys_of_a_channel_are_their_oracle"),
    "Rest": ("routing_oracle::RestOracle", "fastpath/test_routing::test_the_keys_of_a_channel_are_their_oracle"),
    "Channel": (
        "routing_oracle::KeysOracle", "fastpath/test_routing::test_the_keys_of_a_channel_are_their_oracle",
        "routing_oracle::PlacesOracle", "fastpath/test_routing::test_what_is_shut_of_a_channel_is_its_oracle",
    ),
    "pick_channel": ("routing_oracle::pick", "fastpath/test_routing::test_the_choice_is_its_oracle"),
    "Session": ("session_oracle::SessionOracle", "fastpath/test_session::Sessions"),
    "fold_calls": ("fold::fold_calls", "storage/test_store_fold::test_the_fold_equals_its_oracle"),
    "Tally": ("tally::Tally", "observe/test_tally::test_the_tally_equals_its_oracle"),
    "Credential": ("engine_oracle::opens", "fastpath/test_engine::test_a_secret_opens_its_own_key_and_no_other"),
}  # fmt: skip

# Sockets and what ties the parts together: there is no second relay in plain Python to judge them. The same requests
# by aiohttp's parser are, and the provider's own books, over generated requests and endings.
TOGETHER = {
    "FrontDoor": ("proxy/test_frontdoor::test_requests_by_chance_are_answered_alike",),
    "Bridge": ("proxy/test_frontdoor::test_requests_by_chance_are_answered_alike",),
    "Call": ("faults/test_endings::test_every_ending_in_random_mix",),
    "Engine": (
        "faults/test_endings::test_every_ending_in_random_mix",
        "fastpath/test_engine::test_ids_ascend_whatever_the_clock_says",
    ),
    "Attempts": ("fastpath/test_attempts::test_attempts_and_the_budget_are_bounded",),  # of parts that are judged above
    "UpstreamConnection": ("functional/test_bytes::test_streams_cut_at_every_byte",),
    "Endpoint": ("test_endpoints_page::test_every_served_endpoint_has_a_row_and_no_other",),
    "Route": ("functional/test_routing::test_a_slow_channel_gets_fewer_calls",),
    "Model": ("functional/test_routing::test_a_slow_channel_gets_fewer_calls",),
}


@cache
def named(module: str) -> dict[str, ast.AST]:
    tree = ast.parse((TESTS / f"{module}.py").read_text())
    return {node.name: node for node in tree.body if hasattr(node, "name")}


def is_generated(module: str, name: str) -> bool:
    """A test whose cases hypothesis makes."""
    node = named(module)[name]
    if isinstance(node, ast.ClassDef):
        return any(ast.unparse(base).endswith("StateMachine") for base in node.bases)
    decorators = [ast.unparse(decorator) for decorator in getattr(node, "decorator_list", ())]
    return any(re.match(r"given\(", text) for text in decorators)


def test_every_public_name_stands_here_and_no_other() -> None:
    public = {
        node.name
        for node in SPECIFICATION.body
        if isinstance(node, ast.ClassDef | ast.FunctionDef) and not node.name.startswith("_")
    }
    assert public == JUDGED.keys() | TOGETHER.keys()
    assert not JUDGED.keys() & TOGETHER.keys()


@pytest.mark.parametrize("name", JUDGED)
def test_its_oracle_and_its_property_test_exist(name: str) -> None:
    places = [place.split("::") for place in JUDGED[name]]
    oracles = [(module, item) for module, item in places if (TESTS / "support" / f"{module}.py").exists()]
    tests = [(module, item) for module, item in places if (module, item) not in oracles]
    assert oracles
    assert tests
    for module, item in oracles:
        assert item in named(f"support/{module}"), (module, item)
    for module, item in tests:
        assert is_generated(module, item), (module, item)
    # Each oracle is used by a file of its tests.
    texts = [(TESTS / f"{module}.py").read_text() for module, _ in tests]
    for module, item in oracles:
        assert any(re.search(rf"\b{module}\b", text) for text in texts), (module, item)


@pytest.mark.parametrize("name", TOGETHER)
def test_its_tests_exist(name: str) -> None:
    for place in TOGETHER[name]:
        module, item = place.split("::")
        assert item in named(module), place
