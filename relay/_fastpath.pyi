"""Specification of the compiled hot path. What is not listed here is not to be used from Python."""

ERROR_CODES: tuple[str, ...]

# estimator

TOKEN_UNIT: int

class TokenTable:
    """The automaton of one tokenizer family; `packed` as docs/tokens.md describes. ValueError if it is not one."""

    class_count: int
    state_count: int
    def __init__(self, packed: bytes) -> None: ...

def count_text(table: TokenTable, data: bytes) -> int:
    """Estimated tokens of decoded UTF-8 text, in 1/TOKEN_UNIT token."""

def count_pieces(table: TokenTable, pieces: list[bytes], bytewise: bool = False) -> int:
    """The same for text in pieces, cut anywhere; the result does not depend on the cuts."""

class Calibration:
    """Running ratio actual / estimate, clamped to [0.5, 3]; starts at `permille` / 1000."""

    def __init__(self, permille: int = 1000) -> None: ...
    def observe(self, estimated: int, actual: int) -> None:
        """Tokens; what is not positive teaches nothing."""
    def apply(self, estimated: int) -> int:
        """Corrected tokens, rounded up."""
    def export(self) -> tuple[int, int]: ...
    def load(self, estimated: int, actual: int) -> None:
        """What `export` gave; ValueError if it cannot be."""

# request scanner and usage tap

class RequestScanner:
    """Reads one request body in any pieces."""

    def __init__(self, format: int, table: TokenTable) -> None: ...

class UsageTap:
    """Reads one answer body in any pieces."""

    def __init__(self, format: int, body_kind: int, table: TokenTable) -> None: ...
