"""Specification of the compiled hot path. What is not listed here is not to be used from Python."""

ERROR_CODES: tuple[str, ...]
