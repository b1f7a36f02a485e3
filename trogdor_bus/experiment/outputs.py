"""The files that tell of an experiment."""

from __future__ import annotations

from pathlib import Path

from trogdor_bus.errors import HostError
from trogdor_bus.experiment import chaosresult, junit, page, result
from trogdor_bus.experiment.files import write_whole

CHAOS_RESULT = "chaosresult.yaml"


def write(found: result.Result, directory: Path) -> list[Path]:
    """Write result.json, chaosresult.yaml, junit.xml and report.html, each whole or not at all; return their paths.

    The directory is made if needed. HostError says which file could not be written.
    """
    former = directory / CHAOS_RESULT
    try:
        before = former.read_bytes() if former.exists() else None
        directory.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise HostError(f"cannot write to {str(directory)!r}: {error.strerror or error}") from None
    documents = {
        "result.json": result.encode(found),
        CHAOS_RESULT: chaosresult.text(chaosresult.document(found, before)),
        "junit.xml": junit.document(found),
        "report.html": page.document(found),
    }
    return [_write(directory / name, data) for name, data in documents.items()]


def _write(path: Path, data: bytes) -> Path:
    try:
        write_whole(path, data, 0o644)
    except OSError as error:
        raise HostError(f"cannot write {str(path)!r}: {error.strerror or error}") from None
    return path
