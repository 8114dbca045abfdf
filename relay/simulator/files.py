"""OpenAI's files: kept in memory, shown, listed, deleted."""

import re
import time
from dataclasses import dataclass, field

from relay.simulator.answer import Answer, Refused
from relay.simulator.plan import JSON, dumps

_PART = re.compile(
    rb'Content-Disposition: form-data; name="([a-z_\[\]]+)"(?:; filename="([^"]*)")?[^\r\n]*\r\n(?:[^\r\n]+\r\n)*\r\n',
    re.IGNORECASE,
)
_KEPT_MAX = 64 << 20  # bytes of one file


@dataclass(slots=True)
class Stored:
    document: JSON
    content: bytes


@dataclass(slots=True)
class Files:
    """All files of the provider's one account."""

    kept: dict[str, Stored] = field(default_factory=dict)

    def add(self, number: int, content: bytes, purpose: str, filename: str, prefix: str = "file-") -> JSON:
        name = f"{prefix}{number:08x}{len(self.kept):08x}"
        document: JSON = {
            "id": name,
            "object": "file",
            "bytes": len(content),
            "created_at": int(time.time()),
            "filename": filename,
            "purpose": purpose,
            "status": "processed",
            "expires_at": None,
        }
        self.kept[name] = Stored(document, content[:_KEPT_MAX])
        return document

    def serve(self, method: str, path: str, number: int, body: bytes) -> Answer:
        """`path`: behind /v1/files."""
        if path in ("", "/"):
            if method == "POST":
                return self._upload(number, body)
            listed = [stored.document for stored in self.kept.values()]
            return _json({"object": "list", "data": listed[::-1], "has_more": False})
        name, _, rest = path.strip("/").partition("/")
        stored = self.kept.get(name)
        if stored is None or (rest, method) not in (("", "GET"), ("", "DELETE"), ("content", "GET")):
            raise Refused(404, "not_found", f"No such File object: {name}", "id")
        if method == "DELETE":
            del self.kept[name]
            return _json({"id": name, "object": "file", "deleted": True})
        if rest:
            return Answer(200, "application/octet-stream", stored.content)
        return _json(stored.document)

    def _upload(self, number: int, body: bytes) -> Answer:
        form = parts(body)
        if "file" not in form or "purpose" not in form:
            raise Refused(400, "invalid", "'file' and 'purpose' are required properties", "file")
        content, filename = form["file"]
        return _json(self.add(number, content, form["purpose"][0].decode(), filename or "file"))


def parts(body: bytes) -> dict[str, tuple[bytes, str]]:
    """The parts of a form by name: bytes, and the file's name."""
    boundary = body[: body.find(b"\r\n")]
    found: dict[str, tuple[bytes, str]] = {}
    at = 0
    while match := _PART.search(body, at):
        end = body.find(b"\r\n" + boundary, match.end() - 2)
        found[match[1].decode()] = (body[match.end() : max(end, match.end())], (match[2] or b"").decode())
        at = max(end, match.end())
    return found


def _json(document: JSON) -> Answer:
    return Answer(200, "application/json", dumps(document, pretty=True))
