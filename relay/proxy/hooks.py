"""What the compiled engine asks of Python, always off the common path.

Nothing here may raise into the engine with content in its text; the engine itself never logs.
"""

import asyncio
import json
import logging
import time
from collections.abc import Callable, Sequence
from typing import Any

from relay import quiet
from relay._fastpath import ERROR_CODES, ApiKey, Breaker, Call, Channel, Rate, TokenTable
from relay.policy import extras
from relay.policy.routing import KeyRests
from relay.proxy import decoders, forms
from relay.proxy.addresses import Addresses, Caller
from relay.proxy.connect import Connector
from relay.proxy.cutting import reset
from relay.wire import annotate, answers, modelnames, spans, tools, upstream_errors
from relay.wire import errors as wire_errors

log = logging.getLogger("relay.proxy")

AGENT_CHARS_MAX = 96
UNKNOWN_MAX = 100  # names of models between two times that they are told
TELL_SECONDS = 60.0  # between two events about the same tool
QUOTE = ord('"')
E_UNSUPPORTED = ERROR_CODES.index("unsupported_feature")
MISSING_MAX = 10_000  # models of channels of which it was said once that they are missing
_ERROR_CODES = {name: number for number, name in enumerate(ERROR_CODES)}


class Hooks:
    """See `_fastpath.pyi`, Engine.hooks."""

    def __init__(self, addresses: Addresses, connector: Connector) -> None:
        self._addresses = addresses
        self._connector = connector
        self.no_balance_status_openai = 402
        self.credit_name = "credits"
        self.key_rests = KeyRests(5.0, 300.0, 300.0)
        self._missing: set[tuple[str, str]] = set()
        self.load_key: Callable[[bytes], None] = lambda public_id: None
        self.handover: Callable[[asyncio.Transport, bytes], None] = lambda transport, data: transport.abort()
        self.aside: Callable[[Call], None] = lambda call: call.turn_down(E_UNSUPPORTED)
        self.on_event: Callable[..., None] = lambda kind, code, channel, detail=None: None

        self.tell_unknown_models = False
        self.unknown_models: dict[tuple[str, int, int], int] = {}  # name, account, key: how often since they were told

        self.allow_unpriced = False
        self._told: dict[tuple[str, str], float] = {}
        self.model_rates: dict[str, Rate] = {}  # of models that others may use as tools

        self.claim: Callable[[Call, bytes, int], None] = _unclaimed
        self.unclaim: Callable[[int, bytes, bool], None] = lambda call_id, digest, bound: None

    def use_addresses(self, addresses: Addresses) -> None:
        self._addresses = addresses

    def peer(self, peername: object) -> tuple[str | None, bytes | None, bool]:
        return self._addresses.peer(peername)

    def forwarded_address(self, header: bytes) -> Caller:
        return self._addresses.forwarded(header)

    def caller_address(self, peername: object, lines: Sequence[bytes]) -> Caller:
        return self._addresses.caller(peername, lines)

    def connect(self, channel: Channel, call: Call) -> None:
        self._connector.connect(channel, call)

    def reset(self, transport: asyncio.BaseTransport) -> None:
        reset(transport)

    def decoder(self, encoding: bytes) -> decoders.Decoder | None:
        return decoders.decoder(encoding)

    def read_coded(self, encoding: bytes, body: bytes) -> bytes | None:
        return decoders.read(encoding, body)

    def render_refusal(
        self,
        dialect: int,
        code: int,
        request_id: str,
        retry_after_ns: int,
        param: str | None,
        wanted: int,
        allowed: int,
    ) -> tuple[int, list[tuple[bytes, bytes]], bytes]:
        return wire_errors.render_refusal(
            dialect,
            code,
            request_id,
            retry_after_ns,
            param,
            (wanted, allowed) if wanted >= 0 else None,
            no_balance_status_openai=self.no_balance_status_openai,
            credit_name=self.credit_name,
        )

    def render_stream_error(self, format: int, body_kind: int, code: int, sequence_number: int) -> bytes:
        return wire_errors.render_stream_error(format, body_kind, code, sequence_number)

    def judge_error(
        self,
        status: int,
        encoding: bytes | None,
        body: bytes,
        fields: bytes,
        channel: Channel,
        upstream_model: str,
        renamed: bool,
    ) -> tuple[int, int, int, int, int]:
        """What an upstream's error is about: verdict and scope (see `wire.upstream_errors`), how long the key that
        got it rests for that scope (0: not at all), what is said in place of it where nobody else answers (0: its own
        words may pass), and the wait that it asks for. Times are nanoseconds.

        status   200 for an error inside an answer of that status: an object, or the first event of a stream
        renamed  whether the caller knows the model by another name
        """
        readable = decoders.read(encoding, body)
        found = upstream_errors.judge(status, readable, upstream_model if renamed else None)
        asked = upstream_errors.retry_after_seconds(fields, readable or b"")
        rest_ns = 0
        if found.verdict == upstream_errors.ACCOUNT:
            log.error(
                "channel %s: the upstream refused this relay's own key or account (HTTP %d)", channel.name, status
            )
            self.on_event("upstream_account", str(status), channel.name)
            if found.scope != upstream_errors.CALL:
                rest_ns = self.key_rests.rest_ns(True, asked)
        elif found.verdict == upstream_errors.UPSTREAM and found.scope == upstream_errors.MODEL:
            rest_ns = self.key_rests.rest_ns(False, asked)
        elif found.verdict == upstream_errors.MISSING and (channel.name, upstream_model) not in self._missing:
            if len(self._missing) < MISSING_MAX:
                self._missing.add((channel.name, upstream_model))
            log.error("channel %s: the upstream says that it does not serve %s", channel.name, upstream_model)
            self.on_event("upstream_model_missing", str(status), channel.name)
        instead = _ERROR_CODES[upstream_errors.instead(status, found)] if found.hidden else 0
        return found.verdict, found.scope, rest_ns, instead, round((asked or 0) * 1e9)

    def error_in_answer(self, dialect: int, body: bytes, whole: bool) -> tuple[int, bytes] | None:
        return answers.find_error(dialect, body, whole)

    def breaker_changed(self, channel: Channel, breaker: Breaker, place: str | None) -> None:
        """A breaker of a channel opened or closed: for everything there, or for a model at an endpoint (`place`)."""
        reason = ERROR_CODES[breaker.last_code]
        of = f" for {place}" if place else ""
        if breaker.state:
            log.error("channel %s: not used%s for %.1f s (%s)", channel.name, of, breaker.open_ns / 1e9, reason)
            self.on_event("channel_open", reason, channel.name)
        else:
            log.warning("channel %s: in use again%s", channel.name, of)
            self.on_event("channel_closed", None, channel.name)

    def annotate(self, data: bytes, is_event: bool, cost_nano: int, card: str, balance_nano: int) -> bytes | None:
        member = annotate.addition(cost_nano, card, balance_nano)
        return (annotate.event if is_event else annotate.document)(data, member)

    def read_form(self, path: str, format: int, content_type: bytes, body: bytes, table: TokenTable) -> forms.Form:
        return forms.read(path, format, content_type, body, table)

    def speech_characters(self, parts: list[bytes]) -> int:
        """How many characters of text a speech request has read aloud. The body was read once already: it is JSON."""
        data = b"".join(parts)
        found = spans.find(data, ("input",))
        text = json.loads(data[slice(*found[0])]) if found and data[found[0][0]] == QUOTE else ""
        return len(text)

    def judge_extras(
        self,
        format: int,
        fields: list[tuple[str, bytes]],
        web_search: bool,
        rate: Rate,
        model: str,
        key: ApiKey,
        prompt_tokens: int,
    ) -> tuple[int, str | None, tuple[extras.Charge, ...] | None, int]:
        """Whether a request may have what it asks for beside tokens of its model: an error code and its field, what it
        is charged for, and what is held for that in nano-credits."""
        asked = tools.asked(format, tools.parsed(fields), model)
        verdict = self.verdict(asked, web_search, rate, key, prompt_tokens=prompt_tokens)
        if verdict.code is not None:
            return ERROR_CODES.index(verdict.code), verdict.field, None, 0
        return 0, None, verdict.charges or None, verdict.hold_nano

    def charge_extras(
        self, charges: tuple[extras.Charge, ...] | None, counts: dict[str, Any], rate: Rate, seconds: int
    ) -> tuple[tuple[extras.Line, ...] | None, int]:
        """The lines of a call's bill for what it has used beside tokens of its model, and their sum."""
        lines, unpriced = extras.charge(charges or (), counts, rate, self.model_rates.get, tools.PICTURE_MODEL, seconds)
        for kind in unpriced:
            self.tell_unpriced("used", kind)
        return tuple(lines) or None, sum(line[-1] for line in lines)

    def verdict(
        self,
        asked: list[tools.Asked],
        web_search: bool,
        rate: Rate,
        key: ApiKey,
        *,
        counted: bool = True,
        prompt_tokens: int = 0,
    ) -> extras.Verdict:
        """The same, and the operator hears of it where something has no price. `counted`: see `extras.judge`."""
        if web_search and not rate.prices_search:
            asked = [tools.Asked("web_search", "tools.web_search"), *asked]
        verdict = extras.judge(
            asked,
            rate,
            key.models,
            self.model_rates.get,
            allow=self.allow_unpriced,
            counted=counted,
            prompt_tokens=prompt_tokens,
        )
        if verdict.code == "tool_unpriced" or verdict.unpriced:
            self.tell_unpriced("allowed" if verdict.unpriced else "refused", verdict.field or verdict.unpriced[0])
        return verdict

    def model_named(self, public: str, asked: str, named: bytes, channel: str) -> None:
        """An answer names a model that is written in another way than the one asked for."""
        said = named.decode("utf-8", "replace")
        if modelnames.is_same(asked, said) or modelnames.is_same(public, said):
            return
        shown = said if modelnames.NAME.fullmatch(said) else "what is not a name of a model"
        log.warning("channel %s: asked for %s, its answer names %s", channel, asked, shown)
        self.on_event("model_differs", None, channel, f"{asked}: answered by {shown}")

    def tell_unpriced(self, what: str, field: str) -> None:
        """Once a minute for each: a program that asks so asks with every call."""
        if field.endswith("].type"):
            field = "tools[].type"  # which of them says nothing
        now = time.monotonic()
        if now - self._told.get((what, field), -TELL_SECONDS) < TELL_SECONDS:
            return
        self._told[what, field] = now
        log.warning("a tool or field of a request has no price: %s, %s", field, what)
        self.on_event("tool_unpriced", what, None, field)

    def model_unknown(self, name: bytes, account_id: int, key_id: int) -> None:
        """A call asked for a model that is not of the catalogue."""
        if not self.tell_unknown_models:
            return
        text = name.decode("ascii", "replace")
        asked = (text, account_id, key_id)
        if modelnames.NAME.fullmatch(text) and (asked in self.unknown_models or len(self.unknown_models) < UNKNOWN_MAX):
            self.unknown_models[asked] = self.unknown_models.get(asked, 0) + 1

    def clean_agent(self, agent: bytes) -> str:
        """A User-Agent as a record may carry it: printable ASCII, capped."""
        text = agent[: 2 * AGENT_CHARS_MAX].decode("ascii", "replace")
        return "".join(c if " " <= c <= "~" else "?" for c in text)[:AGENT_CHARS_MAX]

    def fault(self, error: BaseException) -> None:
        """A fault of our own. Its text may quote content, so only its type and places in the code are told."""
        log.error("internal fault %s", quiet.describe(error))


def _unclaimed(call: Call, digest: bytes, body: int) -> None:
    call.claim_known(0, True)
