"""How a command ends in an error: what people and machines read, and the exit code."""

from __future__ import annotations

import json
import sys

from trogdor_bus.errors import (
    ConflictError,
    NoCoordinatorError,
    NotFoundError,
    RefusedError,
    SpecError,
    TrogdorBusError,
)
from trogdor_bus.printable import escape_lines
from trogdor_bus.remedies import Words, worded

_BAD_INPUT = (SpecError, ConflictError, NotFoundError, RefusedError)


def report(error: TrogdorBusError, words: Words, *, as_json: bool = False) -> int:
    """Print the error in these words on standard error, and return the exit code.

    2 bad input, 4 no coordinator, 1 anything else.
    """
    if as_json:
        spec_error = error if isinstance(error, SpecError) else None
        fields = {
            "error": type(error).__name__,
            "message": worded(spec_error.message if spec_error else str(error), words),
            "path": spec_error.path if spec_error else "$",
            "remedy": worded(spec_error.remedy, words) if spec_error else "",
        }
        print(json.dumps(fields), file=sys.stderr)
    else:
        print(f"error: {escape_lines(worded(str(error), words))}", file=sys.stderr)
    return 4 if isinstance(error, NoCoordinatorError) else 2 if isinstance(error, _BAD_INPUT) else 1
