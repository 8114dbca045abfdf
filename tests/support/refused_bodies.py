"""Error answers as providers give them, by whose matter they are. Sources stand in `relay/wire/upstream_errors.py`.

Ids, names of teams and keys are invented; each has SECRET in it, so that a test can look for them.
"""

import json
import zlib
from dataclasses import dataclass

from relay.wire.upstream_errors import ACCOUNT, CALL, DOUBT, KEY, MISSING, MODEL, PLACE, REQUEST, UPSTREAM


@dataclass(frozen=True)
class Body:
    provider: str
    status: int
    document: object  # JSON, or text
    verdict: int
    scope: int = CALL
    hidden: bool | None = None  # None: as the verdict has it

    @property
    def data(self) -> bytes:
        return self.document.encode() if isinstance(self.document, str) else json.dumps(self.document).encode()

    @property
    def is_hidden(self) -> bool:
        return self.verdict == ACCOUNT if self.hidden is None else self.hidden

    def __str__(self) -> str:
        return f"{self.provider}-{self.status}-{zlib.crc32(self.data) % 1000}"


def openai(message: str, type_: object = "invalid_request_error", code: object = None, param: object = None) -> object:
    return {"error": {"message": message, "type": type_, "param": param, "code": code}}


def anthropic(type_: str, message: str, **more: object) -> object:
    return {"type": "error", "error": {"type": type_, "message": message, **more}, "request_id": "req_1"}


def google(code: int, status: str, message: str, *reasons: str) -> object:
    details = [{"@type": "type.googleapis.com/google.rpc.ErrorInfo", "reason": reason,
                "metadata": {"consumer": "projects/SECRET"}} for reason in reasons]  # fmt: skip
    return {"error": {"code": code, "message": message, "status": status, "details": details}}


_QUOTA = "You exceeded your current quota, please check your plan and billing details."
_ORG = "org-SECRETSECRET"

DOCUMENTED = (
    # OpenAI
    Body("OpenAI", 429, openai(_QUOTA, "insufficient_quota", "insufficient_quota"), ACCOUNT, KEY),
    Body("OpenAI", 429, openai(_QUOTA, "insufficient_quota", "project_spend_limit_exceeded"), ACCOUNT, KEY),
    Body("OpenAI", 429, openai("Spent.", "billing", "organization_usage_limit_exceeded"), ACCOUNT, KEY),
    Body("OpenAI", 400, openai("Billing hard limit has been reached", code="billing_hard_limit_reached"), ACCOUNT, KEY),
    Body("OpenAI", 500, openai("Your account is not active", "billing_not_active", "billing_not_active"), ACCOUNT, KEY),
    Body("OpenAI", 401, openai("Incorrect API key provided: sk-SECRET.", code="invalid_api_key"), ACCOUNT, DOUBT),
    Body("OpenAI", 401, openai("You have insufficient permissions for this operation. Missing scopes: model.request."),
         ACCOUNT, PLACE),
    Body("OpenAI", 401, openai("You must be a member of an organization to use the API"), ACCOUNT, DOUBT),
    Body("OpenAI", 403, openai("Project `proj_SECRET` does not have access to model `x`", code="model_not_found"),
         ACCOUNT, PLACE),
    Body("OpenAI", 403, openai("Country, region, or territory not supported", "request_forbidden",
                               "unsupported_country_region_territory"), ACCOUNT, PLACE),
    Body("OpenAI", 400, openai("Your organization must be verified to stream this model.", code="unsupported_value"),
         ACCOUNT, CALL),
    Body("OpenAI", 400, openai("Invalid service_tier argument: The requested service tier is not allowed for this "
                               "project.", param="service_tier"), ACCOUNT, CALL),
    Body("OpenAI", 429, openai(f"Rate limit reached for gpt-4o in organization {_ORG} on tokens per min (TPM): Limit "
                               "30000, Used 29000. Please try again in 2s.", "tokens", "rate_limit_exceeded"),
         UPSTREAM, MODEL, True),
    Body("OpenAI", 404, openai("The model `gone` does not exist or you do not have access to it.",
                               code="model_not_found"), MISSING),
    Body("OpenAI", 503, openai("The engine is currently overloaded, please try again", "server_error"), UPSTREAM),
    # Azure OpenAI
    Body("Azure", 401, {"error": {"code": "401", "message": "Access denied due to invalid subscription key or wrong "
                                  "API endpoint."}}, ACCOUNT, DOUBT),
    Body("Azure", 429, {"error": {"code": "429", "message": "Requests to the ChatCompletions_Create Operation under "
                                  "Azure OpenAI API version 2024-10-21 have exceeded token rate limit of your current "
                                  "AIServices S0 pricing tier."}}, UPSTREAM, MODEL, True),
    Body("Azure", 404, {"error": {"code": "DeploymentNotFound", "message": "The API deployment for this resource does "
                                  "not exist."}}, MISSING),
    # Anthropic
    Body("Anthropic", 400, anthropic("invalid_request_error", "Your credit balance is too low to access the Anthropic "
                                     "API. Please go to Plans & Billing."), ACCOUNT, KEY),
    Body("Anthropic", 400, anthropic("invalid_request_error", "You have reached your specified API usage limits. You "
                                     "will regain access on 2026-11-01 at 00:00 UTC."), ACCOUNT, KEY),
    Body("Anthropic", 400, anthropic("invalid_request_error", "You have reached your specified workspace API usage "
                                     "limits."), ACCOUNT, KEY),
    Body("Anthropic", 400, anthropic("invalid_request_error", "This organization has been disabled."), ACCOUNT, KEY),
    Body("Anthropic", 429, anthropic("rate_limit_error", "Monthly limit.",
                                     details={"error_code": "enforced_spend_limit_reached"}), ACCOUNT, KEY),
    Body("Anthropic", 402, anthropic("billing_error", "There is an issue with your billing."), ACCOUNT, KEY),
    Body("Anthropic", 401, anthropic("authentication_error", "invalid x-api-key"), ACCOUNT, DOUBT),
    Body("Anthropic", 403, anthropic("permission_error", "Your API key does not have permission"), ACCOUNT, PLACE),
    Body("Anthropic", 429, anthropic("rate_limit_error", "This request would exceed your organization's (SECRET) rate "
                                     "limit of 40,000 input tokens per minute."), UPSTREAM, MODEL, True),
    Body("Anthropic", 404, anthropic("not_found_error", "model: claude-gone"), MISSING),
    Body("Anthropic", 529, anthropic("overloaded_error", "Overloaded"), UPSTREAM),
    # Gemini, Vertex AI
    Body("Gemini", 400, google(400, "INVALID_ARGUMENT", "API key not valid.", "API_KEY_INVALID"), ACCOUNT, DOUBT),
    Body("Gemini", 403, google(403, "PERMISSION_DENIED", "Permission denied: Consumer 'api_key:SECRET' has been "
                               "suspended.", "CONSUMER_SUSPENDED"), ACCOUNT, KEY),
    Body("Gemini", 403, google(403, "PERMISSION_DENIED", "Your project has been denied access."), ACCOUNT, KEY),
    Body("Gemini", 403, google(403, "PERMISSION_DENIED", "Vertex AI API has not been used in project SECRET before",
                               "SERVICE_DISABLED"), ACCOUNT, PLACE),
    Body("Gemini", 403, google(403, "PERMISSION_DENIED", "This API method requires billing to be enabled. Please "
                               "enable billing on project #SECRET", "BILLING_DISABLED"), ACCOUNT, KEY),
    Body("Gemini", 429, google(429, "RESOURCE_EXHAUSTED", _QUOTA + " For more information on this error, head to: "
                               "https://ai.google.dev/gemini-api/docs/rate-limits."), UPSTREAM, MODEL, True),
    Body("Gemini", 404, google(404, "NOT_FOUND", "models/gone is not found for API version v1beta"), MISSING),
    Body("Gemini", 503, google(503, "UNAVAILABLE", "The model is overloaded. Please try again later."), UPSTREAM),
    # DashScope
    Body("DashScope", 400, {"code": "Arrearage", "message": "Access denied, please make sure your account is in good "
                            "standing.", "request_id": "SECRET"}, ACCOUNT, KEY),
    Body("DashScope", 400, openai("Access denied, please make sure your account is in good standing.", "Arrearage",
                                  "Arrearage"), ACCOUNT, KEY),
    Body("DashScope", 403, openai("The free tier of the model has been exhausted.", "AllocationQuota.FreeTierOnly",
                                  "AllocationQuota.FreeTierOnly"), ACCOUNT, PLACE),
    # Moonshot
    Body("Moonshot", 429, openai(f"Your account {_ORG} <ak-SECRET> is suspended due to insufficient balance, please "
                                 "recharge your account", "exceeded_current_quota_error"), ACCOUNT, KEY),
    Body("Moonshot", 403, openai("Your account org-SECRET<ak-SECRET> is not active, organization <x> exceeded current "
                                 "quota", "exceeded_current_quota_error"), ACCOUNT, KEY),
    Body("Moonshot", 429, openai(f"Your account {_ORG} / proj-SECRET <ak-SECRET> request reached organization TPD rate "
                                 "limit, current: 2, limit: 1", "rate_limit_reached_error"), UPSTREAM, MODEL, True),
    # Zhipu
    Body("Zhipu", 429, {"error": {"code": "1113", "message": "余额不足或无可用资源包,请充值。"}}, ACCOUNT, KEY),
    Body("Zhipu", 429, {"error": {"code": 1113, "message": "Your account is in arrears, please recharge and try "
                                  "again"}}, ACCOUNT, KEY),
    Body("Zhipu", 401, {"error": {"code": "1002", "message": "Invalid Authentication Token"}}, ACCOUNT, DOUBT),
    Body("Zhipu", 429, {"error": {"code": "1302", "message": "High concurrency usage of this API"}},
         UPSTREAM, MODEL, True),
    Body("Zhipu", 400, {"error": {"code": "1211", "message": "Model does not exist"}}, MISSING),
    # xAI
    Body("xAI", 429, {"code": "Some resource has been exhausted", "error": "Your team SECRET has either used all "
                      "available credits or reached its monthly spending limit."}, ACCOUNT, KEY),
    Body("xAI", 403, {"code": "The caller does not have permission", "error": "You have run out of credits or need a "
                      "Grok subscription."}, ACCOUNT, KEY),
    Body("xAI", 400, {"code": "Client specified an invalid argument", "error": "Incorrect API key provided: xa***et."},
         ACCOUNT, DOUBT),
    Body("xAI", 429, {"code": "Some resource has been exhausted", "error": "Too many tokens for team SECRET and model "
                      "grok-4."}, UPSTREAM, MODEL, True),
    Body("xAI", 404, {"code": "Not found", "error": "The model gone does not exist or your team SECRET does not have "
                      "access to it."}, MISSING, CALL, True),
    # Groq
    Body("Groq", 400, openai("Organization has been restricted. Please reach out to support.",
                             code="organization_restricted"), ACCOUNT, KEY),
    Body("Groq", 429, openai("Rate limit reached for model `m` in organization `org_SECRET` service tier `on_demand`",
                             "tokens", "rate_limit_exceeded"), UPSTREAM, MODEL, True),
    Body("Groq", 413, openai("Request too large for model `m` in organization `org_SECRET` service tier `on_demand`",
                             "tokens", "rate_limit_exceeded"), UPSTREAM, MODEL, True),
    # Mistral, DeepSeek
    Body("Mistral", 401, {"detail": "Unauthorized"}, ACCOUNT, DOUBT),
    Body("Mistral", 401, {"message": "Unauthorized", "request_id": "SECRET"}, ACCOUNT, DOUBT),
    Body("Mistral", 429, {"object": "error", "message": "Service tier capacity exceeded for this model.",
                          "type": "invalid_request_error", "param": None, "code": None}, UPSTREAM, MODEL, True),
    Body("Mistral", 429, {"object": "error", "message": "Rate limit exceeded", "type": "rate_limited", "code": "1300"},
         UPSTREAM, MODEL),
    Body("Mistral", 400, {"object": "error", "message": "Invalid model: gone", "type": "invalid_model", "code": "1500"},
         MISSING),
    Body("DeepSeek", 402, openai("Insufficient Balance", "unknown_error", "invalid_request_error"), ACCOUNT, KEY),
    Body("DeepSeek", 400, openai("Insufficient Balance", "unknown_error", "invalid_request_error"), ACCOUNT, KEY),
    Body("DeepSeek", 401, openai("Authentication Fails (no such user)", "authentication_error"), ACCOUNT, DOUBT),
    Body("DeepSeek", 400, openai("Model Not Exist", "invalid_request_error"), MISSING),
    # OpenRouter
    Body("OpenRouter", 402, {"error": {"message": "This request requires more credits, or fewer max_tokens. You "
                                       "requested up to 65536 tokens, but can only afford 3395.", "code": 402,
                                       "metadata": {"provider_name": None}}, "user_id": "user_SECRET"}, ACCOUNT, CALL),
    Body("OpenRouter", 402, {"error": {"message": "Insufficient credits. Add more using https://openrouter.ai",
                                       "code": 402, "metadata": {"limit_source": "openrouter_credits"}}}, ACCOUNT, KEY),
    Body("OpenRouter", 429, {"error": {"message": "Provider returned error", "code": 429, "metadata": {
        "raw": json.dumps(openai(f"Your account {_ORG} <ak-SECRET> is suspended due to insufficient balance",
                                 "exceeded_current_quota_error"))}}}, ACCOUNT, KEY),
    Body("OpenRouter", 404, {"error": {"message": "No endpoints found for gone/gone.", "code": 404}}, MISSING),
    # Together, Fireworks, Cohere
    Body("Together", 429, openai("You have been rate limited. Your rate limit is 60 queries per minute. Please "
                                 "navigate to billing to upgrade to a paid plan.", "credit_limit"), ACCOUNT, KEY),
    Body("Together", 400, openai("Unable to access model gone.", code="model_not_available"), MISSING),
    Body("Fireworks", 412, openai("Account SECRET is suspended, possibly due to reaching the monthly spending limit or "
                                  "failure to pay past invoices.", "error", "PRECONDITION_FAILED"), ACCOUNT, KEY),
    Body("Fireworks", 404, openai("Model not found, inaccessible, and/or not deployed", "error", "NOT_FOUND"), MISSING),
    Body("Cohere", 401, {"id": "SECRET", "message": "invalid api token"}, ACCOUNT, DOUBT),
    Body("Cohere", 402, {"message": "account reached its billing limit"}, ACCOUNT, KEY),
    Body("Cohere", 429, {"message": "You are using a Trial key, which is limited to 20 API calls / minute."},
         UPSTREAM, MODEL),
    # other relays
    Body("LiteLLM", 429, openai("Budget has been exceeded! Key=SECRET Current cost: 0.0, Max budget: 2.5",
                                "budget_exceeded", "429"), ACCOUNT, KEY),
    Body("LiteLLM", 400, openai('litellm.BadRequestError: DeepseekException - {"error":{"message":"Insufficient '
                                'Balance","type":"unknown_error"}}', None, "400"), ACCOUNT, KEY),
    Body("LiteLLM", 429, openai(f"litellm.RateLimitError: RateLimitError: OpenAIException - {_QUOTA}", "throttling",
                                "429"), ACCOUNT, KEY),
    Body("LiteLLM", 401, openai("Authentication Error, Invalid proxy server token passed.", "auth_error", "401"),
         ACCOUNT, DOUBT),
    Body("new-api", 403, openai("user quota is not enough (request id: SECRET)", "new_api_error",
                                "insufficient_user_quota"), ACCOUNT, KEY),
    Body("new-api", 403, openai("预扣费额度失败, 用户剩余额度: ＄0.01", "new_api_error", "insufficient_user_quota"),
         ACCOUNT, KEY),
    Body("new-api", 429, openai("该令牌额度已用尽 (request id: SECRET)", "new_api_error", ""), ACCOUNT, KEY),
    Body("new-api", 401, openai("无效的令牌 (request id: SECRET)", "new_api_error", ""), ACCOUNT, DOUBT),
    Body("new-api", 503, openai("No available channel for model gone under group default (distributor)",
                                "new_api_error", "model_not_found"), MISSING),
    Body("one-api", 403, openai("user quota is not enough", "one_api_error", "insufficient_user_quota"), ACCOUNT, KEY),
    # no JSON
    Body("text", 400, "Your account SECRET has been suspended.", ACCOUNT, KEY),
    Body("text", 402, "Payment Required", ACCOUNT, KEY),
    Body("text", 404, "404 page not found", MISSING),
    Body("html", 500, "<html><body><h1>Error</h1><p>Your subscription has expired.</p></body></html>", ACCOUNT, KEY),
    Body("html", 502, "<html><head><title>502 Bad Gateway</title></head><body>nginx</body></html>", UPSTREAM),
)  # fmt: skip

# What the caller has to put right: it passes byte for byte.
CALLERS = (
    Body("OpenAI", 400, openai("Invalid value: 'insufficient_quota'. Supported values are: 'a'.", param="x"), REQUEST),
    Body("OpenAI", 400, openai("This model's maximum context length is 8192 tokens.", code="context_length_exceeded"),
         REQUEST),
    Body("OpenAI", 400, openai("Unknown parameter: 'Your credit balance is too low'."), REQUEST),
    Body("OpenAI", 400, openai("Your request was rejected by the safety system.", code="content_policy_violation"),
         REQUEST),
    Body("OpenAI", 404, openai("Previous response with id 'resp_1' not found.", code="previous_response_not_found"),
         REQUEST),
    Body("OpenAI", 422, openai("Unprocessable"), REQUEST),
    Body("Azure", 400, {"error": {"message": "The response was filtered", "code": "content_filter",
                                  "innererror": {"code": "ResponsibleAIPolicyViolation"}}}, REQUEST),
    Body("Anthropic", 400, anthropic("invalid_request_error", "messages: at least one message is required"), REQUEST),
    Body("Anthropic", 400, anthropic("invalid_request_error", "prompt is too long: 210000 tokens > 200000 maximum"),
         REQUEST),
    Body("Gemini", 400, google(400, "INVALID_ARGUMENT", "The input token count exceeds the maximum"), REQUEST),
    Body("DashScope", 400, {"code": "DataInspectionFailed", "message": "Input data may contain inappropriate content."},
         REQUEST),
    Body("Zhipu", 400, {"error": {"code": "1301", "message": "unsafe or sensitive content in input"}}, REQUEST),
    Body("xAI", 403, {"code": "The caller does not have permission to execute the specified operation",
                      "error": "Content violates usage guidelines. Failed check: SAFETY_CHECK_TYPE_BIO"}, REQUEST),
    Body("OpenRouter", 403, {"error": {"code": 403, "message": "x requires moderation on y. Your input was flagged for "
                                       "\"z\".", "metadata": {"reasons": ["z"], "flagged_input": "account suspended"}}},
         REQUEST),
    Body("Together", 403, openai("Input validation error: `inputs` tokens + `max_new_tokens` must be <= 8"), REQUEST),
    Body("FastAPI", 422, {"detail": [{"loc": ["body"], "msg": "Field required", "input": "Your account is suspended",
                                      "type": "missing"}]}, REQUEST),
    Body("text", 400, "bad request", REQUEST),
)  # fmt: skip
