from urllib.parse import quote

import pytest
from hypothesis import given
from hypothesis import strategies as st

from relay.wire.endpoints import BY_NAME, ENDPOINTS
from relay.wire.paths import allowed_methods, resolve, upstream_path_for


@pytest.mark.parametrize(
    ("method", "path", "name", "model", "upstream"),
    [
        ("POST", "/v1/chat/completions", "chat", None, "/chat/completions"),
        ("POST", "/v1/completions", "completions", None, "/completions"),
        ("POST", "/v1/responses", "responses", None, "/responses"),
        ("POST", "/v1/embeddings", "embeddings", None, "/embeddings"),
        ("POST", "/v1/messages", "messages", None, "/v1/messages"),
        ("POST", "/v1/messages/count_tokens", "count_tokens", None, "/v1/messages/count_tokens"),
        ("POST", "/v1beta/models/g-2.5_x:generateContent", "generate_content", "g-2.5_x", None),
        ("POST", "/v1beta/models/g:streamGenerateContent", "stream_generate_content", "g", None),
        ("POST", "/v1beta/models/g:countTokens", "gemini_count_tokens", "g", None),
        ("POST", "/v1beta/models/g:embedContent", "embed_content", "g", None),
        ("POST", "/v1beta/models/g:batchEmbedContents", "batch_embed_contents", "g", None),
        ("GET", "/v1/models", "models", None, ""),
        ("GET", "/v1/models/gpt-4o", "model", "gpt-4o", ""),
        ("GET", "/v1beta/models", "gemini_models", None, ""),
        ("GET", "/v1beta/models/gemini-x", "gemini_model", "gemini-x", ""),
        # wrong base URLs
        ("POST", "/chat/completions", "chat", None, "/chat/completions"),
        ("POST", "/responses", "responses", None, "/responses"),
        ("POST", "/v1/v1/messages", "messages", None, "/v1/messages"),
        ("POST", "/v1/messages/v1/messages", "messages", None, "/v1/messages"),
        ("POST", "/v1/v1/messages/count_tokens", "count_tokens", None, "/v1/messages/count_tokens"),
        ("POST", "/messages", "messages", None, "/v1/messages"),
        ("POST", "/v1/chat/completions/chat/completions", "chat", None, "/chat/completions"),
        ("POST", "/v1beta/chat/completions", "chat", None, "/chat/completions"),
        ("POST", "/models/g:generateContent", "generate_content", "g", "/v1beta/models/g:generateContent"),
        ("POST", "/v1/models/g:generateContent", "generate_content", "g", "/v1beta/models/g:generateContent"),
        ("POST", "/v1/v1beta/models/g:generateContent", "generate_content", "g", None),
        ("POST", "/v1beta/v1beta/models/g:countTokens", "gemini_count_tokens", "g", None),
        ("GET", "/models", "models", None, ""),
        ("GET", "/v1/v1/models", "models", None, ""),
        ("GET", "/v1/v1beta/models", "gemini_models", None, ""),
        ("GET", "/v1beta/v1/models", "models", None, ""),
        # models with unusual names
        ("POST", "/v1beta/models/llama3:8b:generateContent", "generate_content", "llama3:8b", None),
        ("POST", "/v1beta/models/g%3AgenerateContent", "generate_content", "g", "/v1beta/models/g:generateContent"),
        ("GET", "/v1/models/text%40001", "model", "text@001", ""),
        # stored objects
        ("GET", "/v1/responses/resp_1-A", "response_get", None, "/responses/resp_1-A"),
        ("DELETE", "/v1/responses/resp_1", "response_delete", None, "/responses/resp_1"),
        ("POST", "/v1/responses/resp_1/cancel", "response_cancel", None, "/responses/resp_1/cancel"),
        ("POST", "/v1/responses/compact", "response_compact", None, "/responses/compact"),
        ("GET", "/v1/messages/batches/b1/results", "message_batch_results", None, "/v1/messages/batches/b1/results"),
        ("GET", "/v1/videos/v1", "video_get", None, "/videos/v1"),
    ],
)
def test_resolve(method, path, name, model, upstream):
    found = resolve(method, path)
    assert found is not None
    assert (found.endpoint.name, found.model) == (name, model)
    if upstream is not None:
        assert found.upstream_path == upstream


@pytest.mark.parametrize(
    "path",
    [
        "",
        "/",
        "v1/chat/completions",
        "/v1",
        "/v1/",
        "/v1/chat/../chat/completions",
        "/v1/./chat/completions",
        "/v1/chat%2fcompletions",
        "/v1/chat%2Fcompletions",
        "/%76%31/chat/completions",
        "/v1/chat\\completions",
        "/v1/chat/completions;x=1",
        "/v1/chat/completions?x",
        "/v1/chat/completions#x",
        "/v1/chat/completions\x00",
        "/v1/chat/completions\n",
        "/v1/chat/completions ",
        "/V1/chat/completions",
        "/v1/Chat/Completions",
        "/v1/v1/v1/messages",
        "/v2/chat/completions",
        "/v1/fine_tuning/jobs",
        "/v1/chat/completions/x",
        "/v1beta/models/:generateContent",
        "/v1beta/models/g:unknownMethod/x",
        "/v1beta/models/..:generateContent",
        "/v1beta/models/.:generateContent",
        "/v1beta/models/a..b:generateContent",
        "/v1beta/models/a/../b:generateContent",
        "/v1beta/models/%2e%2e:generateContent",
        "/v1beta/models/a%2fb:generateContent",
        "/v1beta/models/a%2f..%2fb:generateContent",
        "/v1beta/models/%2fa:generateContent",
        "/v1beta%2fmodels/a:generateContent",
        "/v1beta/models%2fa:generateContent",
        "/v1/responses/a%2fcancel",
        "/v1/files/a%2fcontent",
        "/v1/chat/completions/.",
        "/v1//../chat/completions",
        "/v1beta/models/a%252fb:generateContent",
        "/v1beta/models/a b:generateContent",
        "/v1beta/models/g\u00e9:generateContent",
        "/v1beta/models/" + "g" * 201 + ":generateContent",
        "/v1beta/models/meta/llama:generateContent",
        "/v1/models/meta/llama",
        "/v1/responses/..",
        "/v1/responses/a.b",
        "/v1/responses/a%3Ab",
        "/v1/responses/" + "a" * 129,
        "http://elsewhere/v1/chat/completions",
    ],
)
def test_not_a_path(path):
    assert resolve("POST", path) is None
    assert resolve("GET", path) is None
    assert allowed_methods(path) == ()


def test_a_model_with_a_slash_is_taken_only_where_it_is_listed():
    models = {"meta/llama-3", "a/b/c:free"}
    assert resolve("POST", "/v1beta/models/meta/llama-3:generateContent", models).model == "meta/llama-3"
    assert resolve("POST", "/v1beta/models/a/b/c:free:generateContent", models).model == "a/b/c:free"
    assert resolve("GET", "/v1/models/meta/llama-3", models).model == "meta/llama-3"
    assert resolve("POST", "/v1beta/models/meta/llama-4:generateContent", models) is None


def test_a_model_named_like_a_method_is_still_a_model():
    assert resolve("GET", "/v1beta/models/generateContent").model == "generateContent"


@pytest.mark.parametrize(
    ("method", "path", "name", "upstream"),
    [
        ("POST", "/v1//chat/completions", "chat", "/chat/completions"),
        ("POST", "//v1/chat/completions", "chat", "/chat/completions"),
        ("POST", "///v1///chat///completions//", "chat", "/chat/completions"),
        ("POST", "/v1/chat/completions/", "chat", "/chat/completions"),
        ("POST", "//v1/messages/", "messages", "/v1/messages"),
        ("POST", "/v1beta//models/g:generateContent/", "generate_content", "/v1beta/models/g:generateContent"),
        ("GET", "/v1//models/", "models", ""),
        ("GET", "//v1beta/models", "gemini_models", ""),
        ("GET", "/v1//responses/r1/", "response_get", "/responses/r1"),
        ("POST", "/v1beta/openai/chat/completions", "chat", "/chat/completions"),
        ("POST", "/v1beta/openai/embeddings", "embeddings", "/embeddings"),
        ("GET", "/v1beta/openai/models", "models", ""),
        ("GET", "/v1beta/openai/models/g", "model", ""),
        ("GET", "/v1beta/openai/batches", "batch_list", "/batches"),
        ("GET", "/v1beta/openai/files/f1", "file_get", "/files/f1"),
        ("POST", "/api/v1/chat/completions", "chat", "/chat/completions"),
        ("GET", "/api/v1/models", "models", ""),
        ("POST", "/openai/v1/responses", "responses", "/responses"),
        ("GET", "/v1alpha/models", "gemini_models", ""),
        ("GET", "/v1alpha/batches", "gemini_batch_list", "/v1beta/batches"),
        ("POST", "/v1alpha/models/g:batchGenerateContent", "batch_generate_content", None),
    ],
)
def test_finding_clients_F20_paths_that_are_meant(method, path, name, upstream):
    found = resolve(method, path)
    assert found is not None
    assert found.endpoint.name == name
    if upstream is not None:
        assert found.upstream_path == upstream
    assert method in allowed_methods(path)


def test_finding_clients_F20_slashes_in_names_of_models_come_escaped():
    models = {"meta/llama-3", "a/b/c:free"}
    for path in ("/v1/models/meta%2Fllama-3", "/v1/models/meta%2fllama-3", "/v1/models/meta%2fllama-3/"):
        assert resolve("GET", path, models).model == "meta/llama-3"
    assert resolve("GET", "/v1/models/a%2Fb/c%3Afree", models).model == "a/b/c:free"
    assert resolve("POST", "/v1beta/models/meta%2Fllama-3:generateContent", models).model == "meta/llama-3"
    for path in ("/v1/models/meta%2Fllama-4", "/v1/models/meta%252Fllama-3", "/v1/models%2Fmeta/llama-3"):
        assert resolve("GET", path, models) is None


def test_finding_clients_F20_v1alpha_goes_on_as_such():
    assert resolve("POST", "/v1alpha/models/g:generateContent").alpha
    assert resolve("POST", "//v1alpha/models/g:streamGenerateContent").alpha
    assert not resolve("POST", "/v1beta/models/g:generateContent").alpha
    assert not resolve("POST", "/v1/chat/completions").alpha


def test_wrong_method_tells_the_right_ones():
    assert resolve("GET", "/v1/chat/completions") is None
    assert allowed_methods("/v1/chat/completions") == ("POST",)
    assert allowed_methods("/v1/files") == ("GET", "POST")
    assert allowed_methods("/v1/responses/r1") == ("DELETE", "GET")
    assert allowed_methods("/v1beta/models/g:generateContent") == ("POST",)


def test_upstream_path_takes_the_upstreams_name():
    endpoint = BY_NAME["generate_content"]
    assert upstream_path_for(endpoint, "models-x/y") == "/v1beta/models/models-x/y:generateContent"
    assert upstream_path_for(BY_NAME["chat"], "anything") == "/chat/completions"
    for bad in ("", "../x", "a b", "a?b", "a#b", "a%2fb", "x" * 201):
        with pytest.raises(ValueError, match="not a model name"):
            upstream_path_for(endpoint, bad)


def test_every_endpoint_is_reached_by_its_own_path_and_its_aliases():
    for e in ENDPOINTS:
        filled = e.path.replace("{model}", "m-1").replace("{id}", "id_1")
        for path in (filled, *e.aliases):
            found = resolve(e.method, path)
            assert found is not None, path
            assert found.endpoint is e, path
            assert "{" not in found.upstream_path


@given(st.text(alphabet="/v1betamodels.:%2fF3aA@\\ gx-", max_size=40))
def test_whatever_resolves_is_safe(path):
    for method in ("GET", "POST", "DELETE"):
        found = resolve(method, path)
        if found is not None:
            assert quote(found.upstream_path, safe="/:@") == found.upstream_path
            assert "//" not in found.upstream_path
            assert ".." not in found.upstream_path
            assert "%2f" not in path.lower()
