"""How a command of the control plane fails."""

from __future__ import annotations

from typing import Any, ClassVar

from relay.errors import RelayError


class CommandError(RelayError):
    """A command that was refused or could not be done. The message is for people, and never holds a secret.

    code       HTTP status   when
    invalid    400           a value that cannot be right
    not_found  404           no such account, key, ...
    method_not_allowed 405   another method is
    conflict   409           the state of things does not allow it
    refused    403           this caller may not
    unavailable 503          it needs a running relay, or the relay is stopping
    """

    STATUS: ClassVar = {
        "invalid": 400,
        "unauthorized": 401,
        "refused": 403,
        "not_found": 404,
        "method_not_allowed": 405,
        "conflict": 409,
        "unavailable": 503,
    }

    def __init__(self, code: str, message: str, field: str | None = None, *, reason: str = "") -> None:
        super().__init__(message)
        self.code = code
        self.message = message
        self.reason = reason  # a name of relay.errors, where there is one
        self.field = field  # the parameter at fault, where it is one

    @property
    def status(self) -> int:
        """The HTTP status that goes with the code."""
        return self.STATUS[self.code]

    def document(self) -> dict[str, Any]:
        """The one error shape of the operator's and the customer's API."""
        error: dict[str, Any] = {"code": self.code, "message": self.message}
        if self.field is not None:
            error["field"] = self.field
        return {"error": error}


def invalid(message: str, field: str | None = None) -> CommandError:
    """A value that cannot be right."""
    return CommandError("invalid", message, field)


def not_found(what: str) -> CommandError:
    """`what` as in "account acct_7"."""
    return CommandError("not_found", f"no such {what}")


def conflict(message: str) -> CommandError:
    """The state of things does not allow it."""
    return CommandError("conflict", message)
