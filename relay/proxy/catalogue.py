"""From the configuration to what calls are decided with: endpoints, channels, models and the routes between them."""

import datetime
import ssl
from collections.abc import Mapping
from decimal import Decimal
from typing import Any
from urllib.parse import quote, urlsplit

import orjson

from relay import config as configuration
from relay import shipped_rates
from relay._fastpath import Breaker, Channel, Engine, Model, Rate, Route
from relay._fastpath import Endpoint as CompiledEndpoint
from relay.config_values import MODEL_PLACE, parse_proxy
from relay.policy import pricing, tokenizers
from relay.policy.calibration import Calibrations
from relay.proxy.connect import Target
from relay.wire import endpoints, headers, tools, usage
from relay.wire import models as wire_models

FREE_FORMATS = frozenset({endpoints.F_COUNT_TOKENS, endpoints.F_GEMINI_COUNT})


def install_endpoints(engine: Engine) -> None:
    """The route table and the field rules, from wire/ into the engine."""
    for endpoint in endpoints.ENDPOINTS:
        if not endpoint.served or not endpoint.needs_model:
            continue
        in_path = "{model}" in endpoint.path
        engine.add_endpoint(
            CompiledEndpoint(
                endpoint.path,
                endpoint.dialect,
                endpoint.format,
                endpoints.scope_bit(endpoint),
                (":" + endpoint.path.rpartition(":")[2] if in_path else endpoint.upstream_path).encode(),
                needs_model=endpoint.needs_model,
                model_in_path=in_path,
                stream_by_path=endpoint.streams_by_path,
                free=not endpoint.priced,
                inference=endpoint.inference,
                answer=endpoint.answer,
            ),
            # Forms are read by aiohttp's side: the front door knows JSON bodies only.
            [] if in_path or endpoint.form else [path.encode() for path in (endpoint.path, *endpoint.aliases)],
        )
    engine.channel_scope = endpoints.CHANNEL_SCOPE
    table = engine.field_table
    for dialect, allowed in enumerate(headers.REQUEST_ALLOWED):
        for name in sorted(allowed):
            table.allow(name, dialect)
    for name in sorted(headers.RESPONSE_DROPPED):
        table.drop(name)
    for prefix in headers.RESPONSE_DROPPED_PREFIXES:
        table.drop_prefix(prefix)


def build_channel(config: configuration.Config, channel: configuration.Channel, tls: ssl.SSLContext) -> Channel:
    """A channel with an empty pool."""
    url = urlsplit(channel.base_url)
    secure = url.scheme == "https"
    host = url.hostname or ""
    port = url.port or (443 if secure else 80)
    dialect = endpoints.DIALECT_NAMES.index(channel.api)
    header, prefix = headers.upstream_key(dialect, channel.key_header)
    own, default = channel.timeouts, config.timeouts

    def nanoseconds(value: float | None, otherwise: float) -> int:
        return round((otherwise if value is None else value) * 1e9)

    return Channel(
        channel.name,
        dialect,
        url.netloc.rpartition("@")[2].encode("ascii"),
        url.path.rstrip("/").encode("ascii"),
        [header + b": " + prefix + key.reveal().encode("ascii") + b"\r\n" for key in channel.api_keys] or [b""],
        Target(host, port, tls if secure else None, parse_proxy(channel.proxy.reveal())),
        query=channel.query.encode("ascii") or None,
        set_lines="".join(f"{name}: {value.reveal()}\r\n" for name, value in channel.set_headers.items()).encode(
            "ascii"
        ),
        dropped=frozenset(name.encode("ascii") for name in (*channel.drop_headers, *channel.set_headers)),
        priority=channel.priority,
        weight=channel.weight,
        tags=channel.tags,
        breaker=Breaker(**breaker_settings(config.routing)),
        ask_usage=usage.asks_usage(channel.ask_usage, channel.api, channel.base_url),
        connect_timeout_ns=nanoseconds(own.connect_seconds, default.connect_seconds),
        first_byte_timeout_ns=nanoseconds(own.first_byte_seconds, default.first_byte_seconds),
        answer_timeout_ns=nanoseconds(own.answer_seconds, default.answer_seconds),
        stream_idle_timeout_ns=nanoseconds(own.stream_idle_seconds, default.stream_idle_seconds),
    )


def breaker_settings(routing: configuration.Routing) -> dict[str, int]:
    return {
        "calls_min": routing.breaker_calls_min,
        "failure_percent": routing.breaker_failure_percent,
        "window_ns": round(routing.breaker_window_seconds * 1e9),
        "open_ns_min": round(routing.breaker_open_seconds * 1e9),
        "open_ns_max": round(routing.breaker_open_seconds_max * 1e9),
    }


def build_models(
    config: configuration.Config, channels: list[Channel], rates: dict[str, Rate], calibrations: Calibrations
) -> dict[bytes, Model]:
    """Every public name that a channel serves. A model without a rate is known, and refused as unpriced."""
    models: dict[bytes, Model] = {}
    for configured, channel in zip(config.channels, channels, strict=True):
        for public, upstream in configured.models.items():
            model = models.get(public.encode())
            if model is None:
                model = models[public.encode()] = Model(public, rates.get(public))
            model.searches |= tools.searches_always(upstream)
            model.add_route(_route(configured, channel, upstream, calibrations, renamed=upstream != public))
    for configured, channel in zip(config.channels, channels, strict=True):
        for public, other in configured.fallback_models.items():
            instead = Model(other, rates.get(other))
            for by, to in zip(config.channels, channels, strict=True):
                if to.dialect == channel.dialect and other in by.models:
                    instead.searches |= tools.searches_always(by.models[other])
                    instead.add_route(_route(by, to, by.models[other], calibrations, renamed=True))
            models[public.encode()].add_fallback(channel.dialect, instead)
    for model in models.values():
        if model.rate is not None:
            kind = (_about(model) or {}).get("kind", "")
            dialects = [dialect for dialect in range(len(endpoints.DIALECT_NAMES)) if model.routes_of(dialect)]
            model.served_at = " and ".join(wire_models.path_of(dialect, model.name, kind) for dialect in dialects)
    return models


def _route(
    configured: configuration.Channel, channel: Channel, upstream: str, calibrations: Calibrations, *, renamed: bool
) -> Route:
    """`renamed`: the name in the request is another than the upstream's."""
    learnt = calibrations.pair(upstream, configured.name)
    return Route(
        channel,
        upstream,
        tokenizers.table_for(upstream),
        orjson.dumps(upstream) if renamed else None,
        base_path=base_path(configured, upstream),
        models_path=models_path(configured),
        prompts=learnt.prompt,
        outputs=learnt.output,
    )


def listed(config: configuration.Config, models: dict[bytes, Model]) -> dict[str, wire_models.Listed]:
    """What lists show: models with a price, with what the shipped data knows of them."""
    found = {}
    for rate in config.rates:
        model = models.get(rate.model.encode())
        if model is None:
            continue
        known = _about(model) or {}
        discount = pricing.discount_of(config, rate.model)
        prices: dict[str, Decimal] = {
            name: getattr(rate, name) * discount for name in pricing.DIMENSIONS if getattr(rate, name) >= 0
        }
        found[rate.model] = wire_models.Listed(
            name=rate.model,
            kind=known.get("kind", ""),
            context_tokens=known.get("context", 0),
            output_tokens_max=rate.output_tokens_max,
            takes=tuple(known.get("takes", ())),
            makes=tuple(known.get("makes", ())),
            released=datetime.date.fromisoformat(known["released"]) if "released" in known else None,
            prices=prices,
        )
    return found


def _about(model: Model) -> Mapping[str, Any] | None:
    """What is known of a model by its public name; else by the upstream's, where all channels mean the same one."""
    found = shipped_rates.about(model.name)
    if found is None:
        dialects = range(len(endpoints.DIALECT_NAMES))
        upstream = {route.upstream_model for dialect in dialects for route in model.routes_of(dialect)}
        found = shipped_rates.about(upstream.pop()) if len(upstream) == 1 else None
    return found


def base_path(channel: configuration.Channel, model: str) -> bytes:
    """The path of the base URL, with this model where the URL has a place for it: Azure's deployments."""
    path = urlsplit(channel.base_url).path.rstrip("/")
    return path.replace(MODEL_PLACE, quote(model, safe="")).encode("ascii")


def models_path(channel: configuration.Channel) -> bytes:
    """What Gemini's dialect has in front of the model. Vertex AI names a publisher instead of a version."""
    return b"/models/" if channel.base_url.endswith("/publishers/google") else b"/v1beta/models/"


def default_tables() -> list[Any]:
    """By dialect: what a prompt is counted with before its model is known."""
    return [tokenizers.table_for(name) for name in ("gpt-4o", "claude-sonnet", "gemini-2.5-pro")]
