import pytest

from relay.wire import paths
from relay.wire.endpoints import D_ANTHROPIC, D_GEMINI, D_OPENAI
from relay.wire.unserved import BASE_URL, NOT_SERVED, caller, judge


@pytest.mark.parametrize(
    "path",
    [
        "/v1/conversations", "/v1/conversations/c1/items", "/v1/vector_stores", "/v1/vector_stores/v/files/f",
        "/v1/containers/c/files", "/v1/fine_tuning/jobs", "/v1/assistants", "/v1/threads/t/runs/r",
        "/v1/uploads/u/parts",
        "/v1/evals/e/runs", "/v1/organization/admin_api_keys", "/v1/realtime/client_secrets",
        "/v1/realtime/calls/c/accept",
        "/v1/chat/completions/cc_1", "/v1/chat/completions/cc_1/messages", "/v1/videos/edits", "/v1/audio/voices",
        "/v1/skills", "/assistants", "/v1beta/openai/vector_stores",
    ],
)  # fmt: skip
def test_finding_clients_F26_openais_paths(path):
    assert paths.resolve("POST", path) is None
    assert judge(path) == (D_OPENAI, NOT_SERVED)


@pytest.mark.parametrize(
    "path",
    [
        "/v1/files",
        "/v1/files/f1/content",
        "/v1/skills/s/versions",
        "/v1/agents/a",
        "/v1/sessions",
        "/v1/environments/e",
    ],
)
def test_finding_clients_F26_anthropics_paths(path):
    assert judge(path, D_ANTHROPIC) == (D_ANTHROPIC, NOT_SERVED)


@pytest.mark.parametrize(
    "path",
    [
        "/v1beta/files", "/v1beta/files/f1", "/upload/v1beta/files", "/v1beta/cachedContents/c", "/v1beta/interactions",
        "/v1beta/models/imagen-4:predict", "/v1beta/models/veo-3:predictLongRunning", "/v1beta/fileSearchStores",
        "/v1alpha/auth_tokens", "/v1beta/tunedModels", "/v1beta/models/veo-3/operations/x:predict",
    ],
)  # fmt: skip
def test_finding_clients_F26_googles_paths(path):
    assert paths.resolve("POST", path) is None
    assert judge(path) == (D_GEMINI, NOT_SERVED)


@pytest.mark.parametrize("path", ["/v1/files", "/v1/files/f1", "/v1/cachedContents/c1", "/v1/interactions"])
def test_finding_clients_F26_googles_sdk_asks_under_v1_as_well(path):
    assert judge(path, D_GEMINI) == (D_GEMINI, NOT_SERVED)
    assert caller({"x-goog-api-client": "k"}) == D_GEMINI


@pytest.mark.parametrize(
    ("path", "dialect"),
    [
        ("/v3/chat/completions", D_OPENAI), ("/V1/Chat/Completions", D_OPENAI), ("/v1", D_OPENAI),
        ("/v1/", D_OPENAI),
        ("/proxy/v1/messages", D_ANTHROPIC), ("/google/v1beta/models/g:generateContent", D_GEMINI),
        ("/v1/v1/v1/responses", D_OPENAI), ("/v1beta", D_OPENAI),
    ],
)  # fmt: skip
def test_finding_newcomer_27_the_base_url_is_mentioned_where_it_may_be_wrong(path, dialect):
    assert judge(path) == (dialect, BASE_URL)


@pytest.mark.parametrize("path", ["/favicon.ico", "/v1/nothing", "/robots.txt", "/v2/teapots", "/" + "a" * 5000])
def test_finding_newcomer_27_nowhere_else(path):
    assert judge(path) == (D_OPENAI, None)
