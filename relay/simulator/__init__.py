"""An AI provider that is not one: a real HTTP server that speaks OpenAI, Anthropic and Gemini.

It serves `relay demo`, the tests and the benchmarks. Requests steer it with directives (see `directives.py`), so a test
can ask for a stream of 500 events cut at byte 1234, through any relay that passes the body on. It keeps a book of
what it was asked and what it sent (see `book.py`): the other half of every check of the relay's own accounts.

It imports nothing of the relay, so that it cannot share the relay's mistakes.
"""

from relay.simulator.book import Book, Entry
from relay.simulator.server import Running, create_app, start

__all__ = ["Book", "Entry", "Running", "create_app", "start"]
