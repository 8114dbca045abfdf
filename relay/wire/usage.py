"""Which upstreams report the usage of a chat stream only when asked (`stream_options.include_usage`).

Asking everyone would be simpler and wrong: some providers answer 422 to a field they do not know (Mistral), most report
unasked. So the table names those known to need it; an operator adds others per channel (`ask_usage = "strip"`).
"""

from typing import Final
from urllib.parse import urlsplit

# Host names of base URLs; a leading dot stands for any name below.
ASK_HOSTS: Final = (
    "api.openai.com",
    ".api.openai.com",  # regional: us.api.openai.com, eu.api.openai.com
    ".openai.azure.com",
    ".openai.azure.us",
    ".services.ai.azure.com",
    ".cognitiveservices.azure.com",
)


def asks_usage(ask_usage: str, api: str, base_url: str) -> bool:
    """Whether the relay adds `include_usage` for a client that did not ask, and takes the extra event out again.

    ask_usage  "auto", "strip" or "off", as configured for the channel
    api        "openai", "anthropic" or "gemini": only OpenAI's streams have the option
    """
    if api != "openai" or ask_usage == "off":
        return False
    if ask_usage == "strip":
        return True
    host = (urlsplit(base_url).hostname or "").rstrip(".")
    return any(host.endswith(name) if name.startswith(".") else host == name for name in ASK_HOSTS)
