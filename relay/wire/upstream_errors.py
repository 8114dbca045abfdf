"""What an upstream's error answer is about: the caller's request, the operator's account, the provider's own trouble.

A customer must never read about the operator's account, so those answers are told apart here. FORMS says how each
provider puts it. Names of kinds (`code`, `type`, `status`, `reason`) are compared wherever they stand. Sentences are
compared from their beginning only: an error may quote the request, and a caller who writes "your credit balance is too
low" into a prompt must not put the operator's key to rest. Nothing here raises, whatever the body is.
"""

import re
from collections.abc import Iterator
from typing import Any, Final

import msgspec
import orjson

from relay.wire import documents

REQUEST: Final = 0  # the caller's own request: the answer passes as it is
ACCOUNT: Final = 1  # the operator's key, quota or balance: the caller sees 503 upstream_account
UPSTREAM: Final = 2  # the provider's trouble or its rate limit: another channel may do better
MISSING: Final = 3  # this channel has no such model, or takes no such size: another channel may

CALL: Final = 0  # what a refused key cannot be used for: this call alone
PLACE: Final = 1  # the endpoint with this model
DOUBT: Final = 2  # the same, and anything once it is refused elsewhere too
MODEL: Final = 3  # the model, at every endpoint: its limits
KEY: Final = 4  # anything


class Judgement(msgspec.Struct, frozen=True):
    """`scope`: for what the key is of no use. `hidden`: the text names the operator's account, or cannot be read."""

    verdict: int
    scope: int = CALL
    hidden: bool = False


_WHOLE: Final = Judgement(ACCOUNT, KEY, True)
_HERE: Final = Judgement(ACCOUNT, PLACE, True)
_WRONG: Final = Judgement(ACCOUNT, DOUBT, True)
_ONCE: Final = Judgement(ACCOUNT, CALL, True)
_LIMIT: Final = Judgement(UPSTREAM, MODEL)
_CALLER: Final = Judgement(REQUEST)
_ELSEWHERE: Final = Judgement(MISSING)


class Form(msgspec.Struct, frozen=True):
    """One way in which a provider says something.

    kinds   names that stand in `code`, `type`, `status` or `reason`, in lower case; numbers only where no name stands
            beside them
    begins  how the message begins, a regular expression without case
    """

    provider: str
    status: str
    says: Judgement
    source: str
    date: str
    kinds: tuple[str, ...] = ()
    begins: str = ""


_ID: Final = r"[^\s]{1,100}"
# Documentation and reports of the providers' users, read in stored copies; the date is that of the copy or report.
FORMS: Final = (
    Form("OpenAI", "429", _WHOLE, "developers.openai.com error-codes", "2026-09",
         ("insufficient_quota", "credit_balance_exhausted", "organization_spend_limit_exceeded",
          "project_spend_limit_exceeded", "organization_usage_limit_exceeded", "insufficient_credits"),
         r"you exceeded your (current )?quota, please check your plan(?![\s\S]*(google|ai\.dev|quota exceeded for))"),
    Form("OpenAI", "400 403 500", _WHOLE, "developers.openai.com error-codes", "2026-09",
         ("billing_hard_limit_reached", "billing_not_active", "account_deactivated", "access_terminated",
          "organization_deactivated", "deactivated_workspace", "project_archived"),
         r"(billing hard limit|your account is not active|the openai account associated with this api key)"),
    Form("OpenAI", "401", _WRONG, "developers.openai.com error-codes", "2026-09",
         ("invalid_api_key", "invalid_organization", "invalid_project", "ip_not_authorized", "mismatched_organization"),
         r"(incorrect api key provided|you must be a member of an organization|your (request )?ip )"),
    Form("OpenAI", "401 403", _HERE, "microsoft/PowerToys#32989, bytedance/trae-agent#162", "2026-03",
         ("insufficient_permissions", "missing_scope", "unsupported_country_region_territory"),
         r"(you have insufficient permissions for this operation|project `[^`]{1,100}` does not have access to model"
         r"|country, region, or territory not supported|you are not allowed to (sample from|request) this model)"),
    Form("OpenAI", "400", _ONCE, "openai/openai-go#565, continuedev/continue#9067", "2025-12", (),
         r"your organization must be verified to "),
    Form("OpenAI", "400", _ONCE, "developers.openai.com error-codes", "2026-09", (),
         r"invalid service_tier argument: the requested service tier is not allowed for this project"),
    Form("OpenAI", "404", _ELSEWHERE, "developers.openai.com error-codes", "2026-09", ("model_not_found",),
         r"the (requested )?model `?[^`\s]{1,100}`? (does not exist|has been deprecated|is not supported)"),
    Form("Azure OpenAI", "401 403", _WRONG, "openai/codex#1354", "2025-06", ("invalidauthenticationtoken",),
         r"access denied due to (invalid subscription key|virtual network)"),
    Form("Azure OpenAI", "401 403", _HERE, "from memory", "2026-10",
         ("accessdenied", "permissiondenied", "authorizationfailed"), r"the principal .{0,100}lacks"),
    Form("Azure OpenAI", "429", _LIMIT, "langchain-ai/langchain#12986, jasonacox/TinyLLM#17", "2025-02",
         ("throttling_error", "ratelimitreached"),
         r"requests to the .{1,200} have exceeded (the )?(call|token) rate limit of your current"),
    Form("Azure OpenAI", "404", _ELSEWHERE, "from memory", "2026-10",
         ("deploymentnotfound", "operationnotsupported"), r"the api deployment for this resource does not exist"),
    Form("Anthropic", "400", _WHOLE, "anthropics/claude-code#4207, #54839", "2026-04",
         ("credit_balance_too_low",), r"your credit balance is too low"),
    Form("Anthropic", "400 429", _WHOLE, "anthropics/claude-code#38035; platform.claude.com errors", "2026-07",
         ("enforced_spend_limit_reached",), r"you have reached your specified (workspace )?api usage limits"),
    Form("Anthropic", "400 403", _WHOLE, "anthropics/claude-code#72457", "2026-06", (),
         r"(this|your) organi[sz]ation has been disabled"),
    Form("Anthropic", "402", _WHOLE, "platform.claude.com errors", "2026-07", ("billing_error",)),
    Form("Anthropic", "401", _WRONG, "platform.claude.com errors", "2026-07", ("authentication_error",),
         r"invalid x-api-key"),
    Form("Anthropic", "403", _HERE, "platform.claude.com errors", "2026-07", ("permission_error",),
         r"this api key is not scoped to a workspace"),
    Form("Anthropic", "429", _ONCE, "anthropics/claude-code#44863", "2026-04", (),
         r"extra usage is required for long context"),
    Form("Anthropic", "429", _LIMIT, "stackblitz/bolt.new#8589", "2026-05", ("rate_limit_error",),
         r"this request would exceed (your|the rate limit for your) organization"),
    Form("Anthropic", "404", _ELSEWHERE, "platform.claude.com errors", "2026-07", (), r"model: \S{1,100}$"),
    Form("Gemini, Vertex AI", "400 401 403", _WRONG, "ai.google.dev generate-content/api-errors", "2026-10",
         ("api_key_invalid", "unauthenticated", "consumer_invalid", "api_key_http_referrer_blocked",
          "api_key_ip_address_blocked", "access_token_expired", "access_token_type_unsupported",
          "account_state_invalid"),
         r"(api key (not valid|expired|not found)|user location is not supported|request had invalid authentication"
         r"|method doesn't allow unregistered callers|your api key was reported as leaked"
         r"|(the )?gemini api free tier is not available)"),
    Form("Gemini, Vertex AI", "403", _HERE, "google-gemini/gemini-cli#19501, #4065", "2026-02",
         ("permission_denied", "service_disabled", "api_key_service_blocked", "iam_permission_denied")),
    Form("Gemini, Vertex AI", "403", _WHOLE, "continuedev/continue#10902, poenl/gemini-api#8", "2026-04",
         ("consumer_suspended", "billing_disabled", "ureq_project_billing_not_found", "service_suspended"),
         r"(your project has been denied access|permission denied: consumer|this api method requires billing"
         r"|project .{1,100} has billing disabled|this service has been disabled in this account)"),
    Form("Gemini, Vertex AI", "429", _LIMIT, "google-gemini/gemini-cli#8883, #15186", "2026-07",
         ("resource_exhausted", "ratelimitexceeded", "rate_limit_exceeded"),
         r"(you exceeded your current quota|quota exceeded for |resource (has been )?exhausted)"),
    Form("Gemini, Vertex AI", "402 429", _WHOLE, "ai.google.dev generate-content/api-errors", "2026-10", (),
         r"your (prepayment|prepaid) credits (are|have been) depleted"),
    Form("Gemini, Vertex AI", "404", _ELSEWHERE, "ai.google.dev generate-content/api-errors", "2026-10", (),
         r"(models/\S{1,100} is not found|publisher model \S{1,200} (was not found|not found)"
         r"|this model models/\S{1,100} is no longer available)"),
    Form("DashScope (Qwen)", "400", _WHOLE, "alibabacloud.com model-studio/error-code", "2026-06",
         ("arrearage", "accessdenied.unpurchased", "accountoverdue", "commoditynotpurchased", "prepaidbilloverdue",
          "postpaidbilloverdue"), r"access denied, ple[a-z]{2,5} make sure your account is in good standing"),
    Form("DashScope (Qwen)", "401", _WRONG, "alibabacloud.com model-studio/error-code", "2026-06", ("invalidapikey",),
         r"invalid api-key provided"),
    Form("DashScope (Qwen)", "403", _HERE, "alibabacloud.com model-studio/error-code", "2026-06",
         ("model.accessdenied", "model_access_denied", "workspace.accessdenied", "allocationquota.freetieronly"),
         r"(model access denied|workspace access denied|the free tier of the model has been)"),
    Form("DashScope (Qwen)", "429", _LIMIT, "alibabacloud.com model-studio/error-code", "2026-06",
         ("throttling", "throttling.ratequota", "throttling.burstrate", "throttling.allocationquota",
          "limit_requests"), r"(allocated quota exceeded|you exceeded your current requests list)"),
    Form("DashScope (Qwen)", "400", _CALLER, "alibabacloud.com model-studio/error-code", "2026-06",
         ("datainspectionfailed", "data_inspection_failed")),
    Form("Moonshot (Kimi)", "403 429", _WHOLE, "MoonshotAI/Kimi-K2#5, anomalyco/opencode#24462", "2026-04",
         ("exceeded_current_quota_error",),
         rf"your account {_ID}( / {_ID})?( ?<{_ID}>)? ?is (suspended|not active|inactive)"),
    Form("Moonshot (Kimi)", "401", _WRONG, "kimi.com/code error-reference", "2026-09",
         ("invalid_authentication_error", "incorrect_api_key_error"), r"invalid authentication"),
    Form("Moonshot (Kimi)", "403", _HERE, "kimi.com/code error-reference", "2026-09", ("permission_denied_error",)),
    Form("Moonshot (Kimi)", "402 403", _WHOLE, "kimi.com/code error-reference", "2026-09", (),
         r"(you've reached your usage limit for this|access terminated|.{0,20}unable to verify your membership)"),
    Form("Moonshot (Kimi)", "429", _LIMIT, "MoonshotAI/kimi-cli#1599", "2026-03", ("rate_limit_reached_error",),
         rf"your account {_ID}.{{0,200}} (request )?reached "),
    Form("Moonshot (Kimi)", "404", _ELSEWHERE, "from memory", "2026-10", (),
         r"not found the model \S{1,100} or permission denied"),
    Form("Zhipu (GLM), Z.ai", "401 429", _WHOLE, "docs.z.ai api-code", "2026-07",
         ("1110", "1111", "1112", "1113", "1121", "1309"),
         r"(your account (is in arrears|has been locked|is currently inactive)|余额不足)"),
    Form("Zhipu (GLM), Z.ai", "401", _WRONG, "docs.z.ai api-code", "2026-07",
         ("1000", "1001", "1002", "1003", "1004", "1100", "1120")),
    Form("Zhipu (GLM), Z.ai", "403 434", _HERE, "docs.z.ai api-code", "2026-07", ("1220", "1311", "1313")),
    Form("Zhipu (GLM), Z.ai", "429", Judgement(UPSTREAM, MODEL, True), "docs.z.ai api-code", "2026-07",
         ("1302", "1303", "1304", "1305", "1308", "1310")),
    Form("Zhipu (GLM), Z.ai", "400", _ELSEWHERE, "docs.z.ai api-code", "2026-07", ("1211", "1221", "1222")),
    Form("Zhipu (GLM), Z.ai", "400", _CALLER, "docs.z.ai api-code", "2026-07", ("1301",)),
    Form("xAI", "403 429", _WHOLE, "continuedev/continue#10373, warpdotdev/warp#14863, sub2api#4069", "2026-08", (),
         rf"(your team {_ID} has either used all|you have run out of credits"
         rf"|your newly created team|team {_ID} (has|does not have))"),
    Form("xAI", "400 401 403", _WRONG, "docs.x.ai developers/debugging", "2026-09", (),
         r"(incorrect api key provided|no api key provided|api key is (currently )?(blocked|disabled))"),
    Form("xAI", "429", _LIMIT, "cline/cline#4826", "2025-07", (), r"too many (tokens|requests) for team"),
    Form("xAI", "400 404", _ELSEWHERE, "docs.x.ai developers/debugging", "2026-09", (),
         r"the model \S{1,100} does not exist or your team"),
    Form("xAI", "403", _CALLER, "docs.x.ai developers/debugging", "2026-09", (), r"content violates usage guidelines"),
    Form("Groq", "400 403", _WHOLE, "NVIDIA-NeMo/Guardrails#563; console.groq.com spend-limits", "2026-09",
         ("organization_restricted", "blocked_api_access"), r"organization has been restricted"),
    Form("Groq", "403", _HERE, "console.groq.com model-permissions", "2026-09",
         ("model_permission_blocked_org", "model_permission_blocked_project")),
    Form("Groq", "413 429", Judgement(UPSTREAM, MODEL), "continuedev/continue#10920, ha-groq-cloud-api#27", "2026-06",
         ("rate_limit_exceeded",), r"(rate limit reached for model|request too large for model)"),
    Form("Mistral", "401 403", _WRONG, "diegosouzapw/OmniRoute#7638, agent0ai/agent-zero#539", "2026-07", (),
         r"unauthorized$"),
    Form("Mistral", "429", _LIMIT, "continuedev/continue#6185, raycast/extensions#31107", "2026-09",
         ("rate_limited", "service_tier_capacity_exceeded"), r"service tier capacity exceeded"),
    Form("Mistral", "400", _ELSEWHERE, "from memory", "2026-10", ("invalid_model", "1500"),
         r"invalid model: "),
    Form("DeepSeek", "402", _WHOLE, "MaxKB#3797, Aider-AI/aider#4851", "2026-02", (),
         r"insufficient (account )?balance"),
    Form("DeepSeek", "401", _WRONG, "from memory", "2026-10", (), r"authentication fails"),
    Form("DeepSeek", "400", _ELSEWHERE, "from memory", "2026-10", (), r"model not exist"),
    Form("OpenRouter", "402", _ONCE, "QwenLM/qwen-code#73, can1357/oh-my-pi#9569", "2026-08",
         ("in_flight_budget_exhausted", "weight_exceeds_budget"),
         r"(this request requires more credits, or fewer max_tokens|more credits are required to run this request"
         r"|prompt tokens limit exceeded)"),
    Form("OpenRouter", "402 403", _WHOLE, "open-assistant#80; openrouter.ai errors-and-debugging", "2026-09",
         ("openrouter_credits",), r"(insufficient credits|key limit exceeded|user not found)"),
    Form("OpenRouter", "403", _CALLER, "openrouter.ai errors-and-debugging", "2026-09", (),
         r".{0,100}(requires moderation|your input was flagged)"),
    Form("OpenRouter", "400 404", _ELSEWHERE, "openrouter.ai errors-and-debugging", "2026-09", (),
         r"(\S{1,100} is not a valid model id|no endpoints found|no allowed providers)"),
    Form("Together", "402 429", _WHOLE, "togethercomputer/MoA#27; docs.together.ai error-codes", "2026-09",
         ("credit_limit",), r"credit limit exceeded"),
    Form("Together", "400 404", _ELSEWHERE, "docs.together.ai error-codes", "2026-09", ("model_not_available",),
         r"unable to access (non-serverless )?model"),
    Form("Together", "403", _CALLER, "docs.together.ai error-codes", "2026-09", (),
         r"(input token count|input validation error)"),
    Form("Fireworks", "412", _WHOLE, "pollinations/pollinations#12136, amd/gaia#3766", "2026-09", (),
         rf"account {_ID} is suspended"),
    Form("Fireworks", "404", _ELSEWHERE, "fireworks.ai inference-error-codes", "2026-07", (),
         r"model not found, inaccessible"),
    Form("Cohere", "401", _WRONG, "cohere-developer-experience#189", "2024-10", (), r"(invalid|no) api (token|key)"),
    Form("Cohere", "429", _LIMIT, "cohere-developer-experience#199", "2024-10", (),
         r"you are using a trial key, which is limited"),
    Form("Cohere", "498", _CALLER, "cohere-developer-experience#189", "2024-10", ("unsafe_request",)),
    Form("Cohere", "404", _ELSEWHERE, "from memory", "2026-10", (), r"model '[^']{1,100}' (was )?not found"),
    Form("LiteLLM", "400 401 403 429", _WHOLE, "docs.litellm.ai proxy/error_reference; litellm#40002", "2026-10",
         ("budget_exceeded", "expired_key"),
         r"(budget has been exceeded|exceededbudget|no deployments available - crossed budget|authentication error, "
         r"?expired key)"),
    Form("LiteLLM", "401", _WRONG, "docs.litellm.ai proxy/error_reference", "2026-10",
         ("auth_error", "token_not_found_in_db"), r"authentication error"),
    Form("LiteLLM", "401 403", _HERE, "docs.litellm.ai proxy/error_reference", "2026-10",
         ("key_model_access_denied", "team_model_access_denied",
          "user_model_access_denied", "org_model_access_denied", "project_model_access_denied"),
         r"(key|team|user|org|project) not allowed to access model"),
    Form("LiteLLM", "400 404", _ELSEWHERE, "docs.litellm.ai proxy/error_reference", "2026-10", (),
         r"(/?\S{0,60}: )?invalid model name passed in"),
    Form("new-api, one-api", "401 403 429", _WHOLE, "songquanpeng/one-api#1270, QuantumNous/new-api#1737", "2025-09",
         ("insufficient_user_quota", "pre_consume_token_quota_failed", "quota_not_enough", "insufficient_token_quota"),
         r"(user quota is not enough|token quota is not enough|该令牌额度已用尽|用户额度不足|令牌额度不足"
         r"|预扣费额度失败|用户已被封禁|insufficient account balance)"),
    Form("new-api, one-api", "401", _WRONG, "from memory", "2026-10", ("access_denied",),
         r"(无效的令牌|该令牌(状态不可用|已过期)|invalid token|令牌分组)"),
    Form("new-api, one-api", "503", _ELSEWHERE, "reports of its users", "2026-06", (),
         r"(no available channel for model|当前分组 ?\S{0,60} ?下对于模型|分组 ?\S{0,60} ?下模型)"),
    # Upstreams that nobody has documented.
    Form("any", "4xx 5xx", _WHOLE, "what the above have in common", "2026-10",
         ("insufficient_balance", "insufficient_funds", "payment_required", "account_suspended", "account_disabled",
          "account_inactive", "quota_exceeded", "out_of_credits", "billing_hard_limit"),
         rf"((your|this|the) (account|organi[sz]ation|workspace|team|project|subscription|credit balance|balance|plan)"
         rf"( {_ID})?( / {_ID})?( <{_ID}>)? (is|has|was|does) ((been |in )?"
         r"(suspended|disabled|deactivated|restricted|arrears|overdue|unpaid|locked|banned|blocked|terminated|expired"
         r"|inactive|insufficient|exhausted|depleted|too low|exceeded|run out|closed)|not (active|enough|sufficient"
         r"|have (enough|sufficient)))"
         r"|(insufficient|not enough|no) (account |user |remaining )?(balance|credits?|funds)\b"
         r"|you (have |'ve )?(run out of|exhausted your|used (all|up) (of )?your) "
         r"|(您的)?(账户|账号|帐户|帐号|用户|令牌|余额|额度).{0,12}(不足|欠费|停用|禁用|冻结|封禁|用尽|已用完)|欠费)"),
    Form("any", "401 403", _WRONG, "what the above have in common", "2026-10",
         ("unauthorized", "invalid_token", "expired_token", "invalid_key", "token_expired", "forbidden")),
    Form("any", "400 403", _CALLER, "content policies", "2026-10",
         ("content_filter", "content_policy_violation", "contentfilter", "moderation_blocked", "prompt_blocked",
          "responsibleaipolicyviolation", "input_flagged")),
)  # fmt: skip

_KINDS: Final = {kind: form.says for form in reversed(FORMS) for kind in form.kinds}
_SENTENCES: Final = tuple((re.compile(form.begins, re.I), form.says) for form in FORMS if form.begins)
# Kinds that many errors of every sort carry: they say something only where nothing else does.
_WEAK: Final = frozenset({"rate_limit_error", "rate_limit_exceeded", "unauthorized", "forbidden", "permission_error"})
_EMPTY: Final = frozenset({"error", "api_error", "unknown_error", "none", "null", "fail", "failed", "false"})
_CALLERS_KINDS: Final = frozenset(
    {"invalid_request_error", "invalid_argument", "failed_precondition", "invalid_prompt"}
)

# In an error that no caller is to blame for, these words are about the operator; the rest of its sentence would be too.
_OPERATOR: Final = re.compile(
    r"\b(org|proj|team|acct|ak|wrkspc)[-_][a-z0-9]{4,}|organi[sz]ation|\bprojects?\b|project_number|\bteams?\b|workspace"
    r"|subscription|billing|\baccounts?\b|\bplan\b|\btier\b|quota|\bcredits?\b|\bbalance\b|api[ _-]?key|consumer"
    r"|\bsk-|\baiza|upgrade|your (current )?limit|账户|账号|帐户|帐号|余额|额度|充值|令牌|分组",
    re.I,
)
_NOT_FOUND: Final = re.compile(
    r"(404:? )?(page |resource |route |endpoint |model |the requested resource |requested entity was )?"
    r"(could not be |was )?not found\.?|invalid url \(post .*",
    re.I | re.S,
)
_AUTHENTICATION: Final = (401, 402, 403, 407)
_TROUBLE: Final = (408, 409, 425, 429)

# What stands in front of an upstream's own words when another relay tells them.
_PREFIX: Final = re.compile(
    r"(?:\s|litellm\.\w{1,60}:|\w{1,60}(?:Error|Exception)(?::| -)|error(?: code)?:|error from provider:|\[?error\]?\s"
    r"|http \d{3}:|status code:?|\d{3}[ :-]+(?=\S)|upstream error:?|provider returned error:?"
    r"|bad response status code \d{3}[,:]?|message:|api error:?)+",
    re.I,
)
_PLACES: Final = ("error", "errors", "detail", "details", "metadata", "raw", "response", "innererror", "inner_error",
                  "cause", "err", "fault", "base_resp", "previous_errors", "data", "status_details",
                  "result")  # fmt: skip
_NAMES: Final = ("code", "type", "status", "reason", "error_code", "errorcode", "error_type", "status_code", "__type",
                 "limit_source")  # fmt: skip
_TEXTS: Final = ("message", "msg", "detail", "error", "error_message", "errormessage", "error_msg", "description",
                 "error_description", "status_msg", "title", "raw", "reason")  # fmt: skip
_NODES_MAX: Final = 256
_DEPTH_MAX: Final = 32
_TEXT_MAX: Final = 2048
_MARKUP: Final = re.compile(r"<(script|style)\b.*?</\1\s*>|<[^>]{0,2048}>", re.I | re.S)
_BROKEN_NAME: Final = re.compile(rf'"({"|".join(_NAMES)})"\s*:\s*(?:"([^"\\]{{1,200}})"|([0-9]{{1,9}}))', re.I)
_BROKEN_TEXT: Final = re.compile(rf'"({"|".join(_TEXTS)})"\s*:\s*"((?:[^"\\]|\\.){{1,{_TEXT_MAX}}})', re.I)


class _Read:
    """The kinds and sentences of an error, wherever they stand in it."""

    def __init__(self, body: bytes) -> None:
        self.kinds: dict[str, None] = {}  # a set that keeps the order
        self.numbers: dict[str, None] = {}
        self.texts: list[str] = []
        self.details: list[Any] = []
        self._nodes = 0
        # What is ASCII in UTF-16 and UTF-32 is ASCII between zeros.
        self.text = body.replace(b"\0", b"").decode("utf-8", "replace").lstrip("\ufeff\ufffd \t\r\n")
        for part in self._parts():
            self._document(part, 0)

    def _parts(self) -> Iterator[str]:
        """A body, or what an event stream has as its data."""
        if not self.text.startswith(("data:", "event:", ":", "id:")):
            yield self.text
            return
        for block in re.split(r"\r?\n\r?\n", self.text)[:8]:
            lines = [line[5:].strip() for line in block.splitlines() if line.startswith("data:")]
            if lines:
                yield "\n".join(lines)

    def _document(self, text: str, depth: int) -> None:
        if text.startswith(("{", "[", '"')):
            try:
                self._node(orjson.loads(text), depth)
                return
            except orjson.JSONDecodeError:
                pass
            for _, name, number in _BROKEN_NAME.findall(text[:65_536]):
                self._kind(name or int(number), depth)
            self.texts += [found for _, found in _BROKEN_TEXT.findall(text[:65_536])]
        elif text.startswith("<"):
            for line in _MARKUP.sub("\n", text[:65_536]).split("\n")[:256]:
                if line.strip():
                    self._sentence(line.strip(), depth)
        elif text:
            self.texts.append(text[:_TEXT_MAX])
            if depth == 0 and (start := text.find("{", 0, 1024)) >= 0:
                self._document(text[start:], depth + 1)

    def _node(self, node: Any, depth: int) -> None:
        self._nodes += 1
        if self._nodes > _NODES_MAX or depth > _DEPTH_MAX:
            return
        if isinstance(node, list):
            for part in node:
                self._node(part, depth + 1)
        elif isinstance(node, str):
            self._sentence(node, depth)
        elif isinstance(node, dict):
            node = {name.lower(): value for name, value in node.items()}
            for name in _NAMES:
                if name in node:
                    self._kind(node[name], depth)
            for name in _TEXTS:
                if isinstance(node.get(name), str):
                    self._sentence(node[name], depth)
            if isinstance(node.get("details"), list):
                self.details += node["details"]
            for name in _PLACES:
                if isinstance(node.get(name), dict | list):
                    self._node(node[name], depth + 1)

    def _kind(self, value: Any, depth: int) -> None:
        self._nodes += 1
        if self._nodes > _NODES_MAX or depth > _DEPTH_MAX:
            return
        if isinstance(value, str):
            (self.numbers if value.isascii() and value.isdigit() else self.kinds)[value.lower()] = None
        elif isinstance(value, int) and not isinstance(value, bool):
            self.numbers[str(value)] = None
        elif isinstance(value, float) and value.is_integer():
            self.numbers[str(int(value))] = None
        elif isinstance(value, list | dict):
            for part in value if isinstance(value, list) else (*value, *value.values()):
                self._kind(part, depth + 1)

    def _sentence(self, text: str, depth: int) -> None:
        self._nodes += 1
        if self._nodes > _NODES_MAX or depth > _DEPTH_MAX:
            return
        bare = text[_PREFIX.match(text).end() :] if _PREFIX.match(text) else text  # type: ignore[union-attr]
        if bare.startswith(("{", "[", '"{', '"[', '"\\"')):  # also JSON in JSON in JSON
            self._document(bare, depth + 1)
        else:
            self.texts += dict.fromkeys((text[:_TEXT_MAX], bare[:_TEXT_MAX]))
            if " " not in text:
                self._kind(text, depth)

    def status(self) -> int:
        """The HTTP status that the error itself names, 0 where it names none."""
        return next((int(number) for number in self.numbers if len(number) == 3 and "400" <= number <= "599"), 0)

    def says(self) -> Judgement | None:
        """What the table knows of it: a sentence before a kind, a kind before one that many errors have."""
        for sentence, says in _SENTENCES:
            if any(sentence.match(text) for text in self.texts):
                return says
        found = [_KINDS[kind] for kind in self.kinds if kind in _KINDS and kind not in _WEAK]
        if all(kind in _KINDS or kind in _EMPTY for kind in self.kinds):
            found += [_KINDS[number] for number in self.numbers if number in _KINDS and len(number) == 4]
        found = found or [_KINDS[kind] for kind in self.kinds if kind in _WEAK]
        # What is said of the whole account stands above what is said of a place, and that above a limit.
        return max(found, key=lambda one: (one.verdict == ACCOUNT, one.scope, one.hidden)) if found else None


def judge(status: int, body: bytes | None, upstream_model: str | None = None) -> Judgement:
    """What an error answer is about.

    status          200 where the error stands in an answer of that status: an object, or the first event of a stream
    body            decoded; None where it cannot be read: then it never passes
    upstream_model  the model's name there where the caller knows it by another one
    """
    read = _Read(body or b"")
    stated = read.status() if status < 400 else status
    says = read.says()
    if says is None or (says.verdict == UPSTREAM and stated in _AUTHENTICATION):
        says = _by_status(stated, status, read)
    elif stated == 402 and says in (_HERE, _WRONG):
        says = _WHOLE
    if says.verdict == MISSING and stated in _AUTHENTICATION:
        says = _HERE
    if body is None:
        return says if says.verdict == ACCOUNT else Judgement(UPSTREAM, says.scope, True)
    if says.verdict in (UPSTREAM, MISSING) and not says.hidden:
        text = "\n".join((read.text, *read.texts))  # sentences again: with their escapes undone
        renamed = upstream_model is not None and (upstream_model in text or (says.verdict == MISSING and stated != 413))
        if renamed or _OPERATOR.search(text):
            return Judgement(says.verdict, says.scope, True)
    return says


def instead(status: int, found: Judgement) -> str:
    """What a caller is told in place of a hidden error: a name of relay.errors."""
    if found.verdict == ACCOUNT:
        return "upstream_account"
    if found.verdict == MISSING:
        return "body_too_large" if status == 413 else "model_not_found"
    return "upstream_unavailable" if found.scope == MODEL or status in (503, 529) else "upstream_error"


def told_in_place(body: bytes, status: int = 200) -> str | None:
    """What a caller is told in place of an error that is hidden: a name of relay.errors; None: it passes."""
    found = judge(status, body)
    return instead(status, found) if found.hidden else None


def told_in_place_of(error: Any, status: int = 200) -> str | None:
    """The same of an error, an object or a text, that stands in a document or an event. `status`: the HTTP status that
    it had there, 200 where it had none of its own."""
    return told_in_place(documents.dumps({"error": error}), status)


def _by_status(stated: int, status: int, read: _Read) -> Judgement:
    if stated == 402:
        return _WHOLE
    if stated in _AUTHENTICATION:
        return _WRONG
    if stated == 413:
        return _ELSEWHERE
    if stated == 404 and all(_NOT_FOUND.fullmatch(text.strip()) for text in read.texts):
        return _ELSEWHERE
    if stated in _TROUBLE or stated >= 500:
        return _LIMIT if stated == 429 else Judgement(UPSTREAM)
    if status < 400 and not stated:
        # An error in a good answer: nobody else is known to be at fault.
        return Judgement(UPSTREAM) if _CALLERS_KINDS.isdisjoint(read.kinds) else _CALLER
    return _CALLER


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
    for detail in _Read(body).details if b"retryDelay" in body else ():
        delay = detail.get("retryDelay") if isinstance(detail, dict) else None
        if isinstance(delay, str) and (match_text := _DURATION.fullmatch(delay)):
            return float(match_text[1])
    return None


_RETRY_AFTER_MS: Final = re.compile(rb"^retry-after-ms:[ \t]*([0-9]{1,12}(?:\.[0-9]{1,9})?)[ \t]*\r$", re.I | re.M)
_RETRY_AFTER: Final = re.compile(rb"^retry-after:[ \t]*([0-9]{1,9}(?:\.[0-9]{1,9})?)[ \t]*\r$", re.I | re.M)
_DURATION: Final = re.compile(r"([0-9]{1,9}(?:\.[0-9]{1,9})?)s", re.ASCII)
