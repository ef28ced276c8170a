"""Where the registry lies."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Final

from lcm_arith.errors import UsageError

HOME: Final = "LCM_ARITH_HOME"
"""Environment variable: the registry's folder."""

DATABASE: Final = "LCM_ARITH_DB"
"""Environment variable: SQLAlchemy's URL of the index."""


def home() -> Path:
    """The registry's folder: ``$LCM_ARITH_HOME``, else where the system keeps users' data.

    Raises:
        UsageError: If the system knows no home of this user.
    """
    named = os.environ.get(HOME)
    if named:
        return Path(named).absolute()
    from platformdirs import user_data_path

    found = user_data_path("lcm-arith", appauthor=False)
    if not found.is_absolute():
        raise UsageError(
            "the system knows no home folder of this user", hint=f"set {HOME} to a folder"
        )
    return found


def database_url(root: Path) -> str:
    """The index: ``$LCM_ARITH_DB``, else a SQLite file in the registry's folder."""
    return os.environ.get(DATABASE) or f"sqlite:///{root / 'index.db'}"
