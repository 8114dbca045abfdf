"""Files that root makes in a data directory of somebody else belong to that somebody: the service has to use them.

SQLite does the same for the files beside a database.
"""

from __future__ import annotations

import os
from pathlib import Path


def adopt(file: int | Path, directory: Path) -> None:
    """Gives a file that was made in `directory` to its owner. Raises OSError."""
    if os.geteuid() == 0:
        owner = directory.stat()
        if owner.st_uid:
            os.chown(file, owner.st_uid, owner.st_gid)
