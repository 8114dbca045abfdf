"""`relay demo`: a relay, a simulated upstream, an account and a key, all on one machine."""

import asyncio
import logging
import signal
import tempfile
from argparse import Namespace
from pathlib import Path

from relay import config as configuration
from relay import quiet
from relay.app import Relay
from relay.control import commands
from relay.control.failures import CommandError
from relay.control.pepper import load_pepper
from relay.simulator import server as simulator
from relay.storage import Store

log = logging.getLogger("relay.demo")

MODELS = {
    "openai": ("gpt-4o", "gpt-4o-mini", "text-embedding-3-small", "gpt-realtime"),
    "anthropic": ("claude-sonnet-5",),
    "gemini": ("gemini-2.5-flash",),
}
# Credits per million tokens: made up, in the proportions of real price lists.
PRICES = {
    "gpt-4o": ("2.5", "10", "1.25", "2.5"),
    "gpt-4o-mini": ("0.15", "0.6", "0.075", "0.15"),
    "text-embedding-3-small": ("0.02", "0", "0.02", "0.02"),
    "gpt-realtime": ("4", "16", "0.4", "4"),
    "claude-sonnet-5": ("3", "15", "0.3", "3.75"),
    "gemini-2.5-flash": ("0.3", "2.5", "0.075", "0.3"),
}


def config_text(upstream: str, data_dir: str, listen: str) -> str:
    """The demo's configuration: what an operator would write in config.toml for these channels."""
    lines = ["[server]", f'listen = "{listen}"', f'data_dir = "{data_dir}"', "drain_seconds = 5"]
    for api, names in MODELS.items():
        lines += [
            "[[channels]]",
            f'name = "simulated-{api}"',
            f'api = "{api}"',
            f'base_url = "{upstream}{"/v1" if api == "openai" else ""}"',
            'api_keys = ["sim-demo"]',
            f"models = [{', '.join(repr(name) for name in names)}]",
        ]
    for model, (prompt, output, read, write) in PRICES.items():
        lines += [
            "[[rates]]",
            f'model = "{model}"',
            f'input = "{prompt}"',
            f'output = "{output}"',
            f'cache_read = "{read}"',
            f'cache_write = "{write}"',
        ]
    return "\n".join(lines) + "\n"


def banner(base: str, secret: str) -> str:
    """What the demo prints; every snippet works when pasted."""
    return f"""
relay demo: a relay with a simulated upstream. Nothing leaves this machine; Ctrl-C ends it.

  OpenAI SDKs      base_url  {base}/v1
  Anthropic SDKs   base_url  {base}
  Gemini SDKs      base_url  {base}
  API key          {secret}   (100 credits)

Try it:

curl {base}/v1/chat/completions \\
  -H "Authorization: Bearer {secret}" \\
  -H "Content-Type: application/json" \\
  -d '{{"model": "gpt-4o", "messages": [{{"role": "user", "content": "Hello"}}]}}'

Python (pip install openai):

from openai import OpenAI
client = OpenAI(base_url="{base}/v1", api_key="{secret}")
messages = [{{"role": "user", "content": "Hello"}}]
for chunk in client.chat.completions.create(model="gpt-4o", messages=messages, stream=True):
    print(chunk.choices[0].delta.content or "", end="", flush=True)

Python (pip install anthropic):

from anthropic import Anthropic
client = Anthropic(base_url="{base}", api_key="{secret}")
messages = [{{"role": "user", "content": "Hello"}}]
message = client.messages.create(model="claude-sonnet-5", max_tokens=200, messages=messages)
print(message.content[0].text)

What is left:    curl {base}/relay/v1/balance -H "Authorization: Bearer {secret}"
"""


def reachable(address: str) -> str:
    """An address that programs on this machine can call: "all addresses" is none."""
    return address.replace("0.0.0.0:", "127.0.0.1:").replace("[::]:", "[::1]:")


async def run(arguments: Namespace) -> int:
    """Until SIGINT or SIGTERM; 0. The data directory is a temporary one and goes with it."""
    quiet.watch_loop(asyncio.get_running_loop())
    listen = getattr(arguments, "listen", None) or "127.0.0.1:8787"
    upstream = await simulator.start()
    with tempfile.TemporaryDirectory(prefix="relay-demo-") as folder:
        config = configuration.parse(config_text(upstream.base_url, folder, listen), file="(demo)")
        if config.server.listen.unix_path:
            raise CommandError("invalid", "--listen: the demo listens on HOST:PORT, so that SDKs can be pointed at it")
        store = await Store.open(Path(folder))
        try:
            relay = Relay(config, store, load_pepper(folder, create=True))
            loop = asyncio.get_running_loop()

            def ask_to_stop() -> None:
                (relay.stop_now if relay.stopping.is_set() else relay.stopping).set()

            for number in (signal.SIGTERM, signal.SIGINT):
                loop.add_signal_handler(number, ask_to_stop)
            await relay.start()
            account = await relay.operations.account_create(
                commands.AccountCreate(email="demo@example.com", plan="paid")
            )
            await relay.operations.credit_add(commands.CreditAdd(id=account["id"], amount="100", kind="trial"))
            key = await relay.operations.key_create(commands.KeyCreate(id=account["id"], name="demo"))
            print(banner(f"http://{reachable(relay.address)}", key["secret"]), flush=True)
            await relay.stopping.wait()
            await relay.stop()
        finally:
            await store.close()
            await upstream.stop()
    return 0
