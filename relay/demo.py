"""`relay demo`: a relay, a simulated upstream, an account and a key, all on one machine.

Everything is kept in `.demo/` of the working directory: the configuration, the store and the key. So the relay's
commands can be tried on it, and the key still works after a restart. To begin anew, delete the folder.
"""

import asyncio
import logging
import os
import signal
import sys
from argparse import Namespace
from pathlib import Path

from relay import config as configuration
from relay import quiet
from relay.app import Relay
from relay.config_values import ConfigError
from relay.control import commands
from relay.control.failures import CommandError
from relay.control.place import open_store
from relay.simulator import server as simulator
from relay.storage import StoreLocked

log = logging.getLogger("relay.demo")

FOLDER = Path(".demo")
EMAIL = "demo@example.com"
CREDITS = "100"
DRAIN_SECONDS = 5

LISTEN_EXPECTED = (
    "--listen: expected HOST:PORT such as 127.0.0.1:8787, so that SDKs can be pointed at it; port 0: any free one"
)
OTHER_PORT = "On another port: `relay demo --listen 127.0.0.1:8790`, or `make run LISTEN=127.0.0.1:8790`"

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
    lines = [
        "# Written anew by each start of `relay demo`: the simulated upstream has another port each time.",
        "[server]",
        f'listen = "{listen}"',
        f'data_dir = "{data_dir}"',
        f"drain_seconds = {DRAIN_SECONDS}",
        "[observe]",
        'access_log = "stderr"  # a line per call',
    ]
    for api, names in MODELS.items():
        lines += [
            "[[channels]]",
            f'name = "simulated-{api}"',
            f'api = "{api}"',
            f'base_url = "{upstream}{"/v1" if api == "openai" else ""}"',
            'api_keys = ["sim-demo"]',
            f"models = [{', '.join(repr(name) for name in names)}]",
        ]
        if api == "openai":
            lines.append('ask_usage = "strip"  # streams report usage only when asked, as at OpenAI')
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


def banner(base: str, secret: str, available: str, config_file: Path) -> str:
    """What the demo prints; every snippet works when pasted."""
    command = f"{sys.executable} -m relay --config {config_file}"
    return f"""
relay demo: a relay with a simulated upstream. Nothing leaves this machine; Ctrl-C ends it.
Account, key and calls are kept in {config_file.parent}.

  OpenAI SDKs      base_url  {base}/v1
  Anthropic SDKs   base_url  {base}
  Gemini SDKs      base_url  {base}
  API key          {secret}   ({available} credits)

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

As its operator:

{command} calls
{command} account list
{command} --help

What is left, as the customer:    curl {base}/relay/v1/balance -H "Authorization: Bearer {secret}"
"""


def reachable(address: str) -> str:
    """An address that programs on this machine can call: "all addresses" is none."""
    return address.replace("0.0.0.0:", "127.0.0.1:").replace("[::]:", "[::1]:")


def write_private(path: Path, text: str) -> None:
    """Writes a file that only its owner may read."""
    with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as file:
        file.write(text)


def read_key(path: Path) -> str:
    """The secret that an earlier start kept; empty where there is none."""
    return path.read_text().strip() if path.exists() else ""


def folder_of_the_demo() -> Path:
    """`.demo` in the working directory, made if it is not there."""
    folder = FOLDER.absolute()
    folder.mkdir(mode=0o700, exist_ok=True)
    return folder


async def account_and_key(relay: Relay, key_file: Path) -> tuple[str, str]:
    """The demo's secret and its available credits; account and key are made at the first start."""
    operations = relay.operations
    accounts = (await operations.account_list(commands.AccountList()))["accounts"]
    kept = read_key(key_file)
    if accounts and kept:
        return kept, accounts[0]["available"]
    if not accounts:
        account = await operations.account_create(commands.AccountCreate(email=EMAIL, plan="paid"))
        await operations.credit_add(commands.CreditAdd(id=account["id"], amount=CREDITS, kind="trial"))
        accounts = (await operations.account_list(commands.AccountList()))["accounts"]
    key = await operations.key_create(commands.KeyCreate(id=accounts[0]["id"], name="demo"))
    write_private(key_file, key["secret"] + "\n")
    return key["secret"], accounts[0]["available"]


async def run(arguments: Namespace) -> int:
    """Until SIGINT or SIGTERM; 0."""
    quiet.watch_loop(asyncio.get_running_loop())
    listen = getattr(arguments, "listen", None) or "127.0.0.1:8787"
    folder = folder_of_the_demo()
    config_file, key_file, data_dir = folder / "config.toml", folder / "key", folder / "data"
    upstream = await simulator.start()
    try:
        config = configuration.parse(config_text(upstream.base_url, str(data_dir), listen), file=str(config_file))
        if config.server.listen.unix_path:
            raise CommandError("invalid", LISTEN_EXPECTED)
        store, pepper = await open_store(config, create=True)
    except ConfigError as failure:
        if any("server.listen" in line or "TOML" in line for line in failure.lines):
            raise CommandError("invalid", LISTEN_EXPECTED) from None
        raise
    except StoreLocked as failure:
        # The same folder means the same account and key: one demo at a time.
        raise CommandError("unavailable", f"{failure}: a demo of this folder runs already") from None
    try:
        relay = Relay(config, store, pepper)
        loop = asyncio.get_running_loop()

        def ask_to_stop() -> None:
            (relay.stop_now if relay.stopping.is_set() else relay.stopping).set()

        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, ask_to_stop)
        try:
            await relay.start()
        except OSError as failure:
            if not str(failure).startswith("server.listen: "):
                raise
            reason = str(failure).removeprefix("server.listen: ")
            raise CommandError("unavailable", f"{reason}. {OTHER_PORT}") from failure
        # Only now: another demo in this folder would have kept the store, and its configuration must stay as it is.
        write_private(config_file, config_text(upstream.base_url, str(data_dir), relay.address))
        secret, available = await account_and_key(relay, key_file)
        print(banner(f"http://{reachable(relay.address)}", secret, available, config_file), flush=True)
        await relay.stopping.wait()
        if relay.open_calls:
            print(
                f"stopping: {relay.open_calls} calls are in flight and have {DRAIN_SECONDS} s to finish; "
                "Ctrl-C again ends them now",
                flush=True,
            )
        await relay.stop()
        print(f"stopped; account, key and calls are kept in {folder}", flush=True)
    finally:
        await store.close()
        await upstream.stop()
    return 0
