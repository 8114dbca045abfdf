"""A store with a long past: many call records, written by the store's own code, as `ledger verify` wants them."""

import random
import time
from pathlib import Path

from relay import config as configuration
from relay.policy import pricing
from relay.records import CALL_RECORD_FIELDS, MS_PER_DAY, call_day, first_call_id
from relay.storage import Store

ACCOUNTS = 200
DAYS = 20  # within what `retention.calls_days` keeps
_STEP = 20_000
_MODELS = (("gpt-4o", "/v1/chat/completions"), ("claude-sonnet-5", "/v1/messages"), ("gpt-5", "/v1/responses"))


async def fill(config_file: Path, records: int, seed: int = 1) -> None:
    """Adds accounts with keys and credits, and so many calls of theirs over the last days. No relay may run."""
    config = configuration.load(config_file)
    rng = random.Random(seed)
    rates = pricing.build_rates(config)
    store = await Store.open(config.server.data_dir)
    try:
        for card, body in pricing.rate_cards(config).items():
            await store.put_rate_card(card, body)
        owners = []
        for number in range(ACCOUNTS):
            account = await store.create_account(f"past{number}@example.net", plan="open")
            key = await store.create_key(
                account.id, public_id=f"past{number:08}", digest=bytes(32), last4="past", pepper_version=1
            )
            await store.add_credit(account.id, 10**15)
            owners.append((account.id, key.id))
        step_ms = (DAYS * MS_PER_DAY - 60_000) / max(1, records)
        began_ms = time.time_ns() // 1_000_000 - DAYS * MS_PER_DAY
        queued = []
        for number in range(records):
            model, path = rng.choice(_MODELS)
            account_id, key_id = rng.choice(owners)
            call_id = first_call_id(began_ms + int(number * step_ms)) + number % 1024
            input_tokens, output_tokens = rng.randrange(10, 4000), rng.randrange(1, 2000)
            failed = rng.random() < 0.02
            values = {
                "id": call_id,
                "account_id": account_id,
                "organisation_id": None,
                "key_id": key_id,
                "path": path,
                "model": model,
                "upstream_model": model,
                "channel": "past",
                "attempts": 1,
                "stream": number & 1,
                "status": 429 if failed else 200,
                "error_code": "rate_limit_requests" if failed else None,
                "input_tokens": 0 if failed else input_tokens,
                "output_tokens": 0 if failed else output_tokens,
                "cache_read_tokens": 0,
                "cache_write_tokens": 0,
                "images": 0,
                "video_seconds": 0,
                "web_searches": 0,
                "usage_source": "none" if failed else "upstream",
                "cost_nano": 0 if failed else rates[model].cost(input_tokens, output_tokens),
                "rate_card": rates[model].card,
                "latency_us": 1_000_000,
                "first_byte_us": 300_000,
                "source_ip": "203.0.113.9",
                "user_agent": "OpenAI/Python 2.50",
                "write_off_nano": 0,
                "day": call_day(call_id),
            }
            queued.append(tuple(values[name] for name in CALL_RECORD_FIELDS))
            if len(queued) >= _STEP:
                store.append_calls(queued)
                await store.flush()
                queued = []
        store.append_calls(queued)
        await store.flush()
    finally:
        await store.close()
