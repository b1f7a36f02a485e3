"""How hard the property tests try: TROGDOR_EFFORT=20 makes 20 times the examples, TROGDOR_FRESH=yes draws new ones."""

from __future__ import annotations

import os

from hypothesis import HealthCheck, Phase, settings

EFFORT = int(os.environ.get("TROGDOR_EFFORT", "1"))
FRESH = bool(os.environ.get("TROGDOR_FRESH"))


def examples(number: int, *, steps: int = 30, shrink: bool = True) -> settings:
    """Return settings for `number` examples; without TROGDOR_FRESH they are the same at each run."""
    phases = (Phase.explicit, Phase.generate, *([Phase.shrink] if shrink else []))
    return settings(
        max_examples=number * EFFORT,
        stateful_step_count=steps,
        derandomize=not FRESH,
        database=None,
        deadline=None,
        print_blob=True,
        phases=phases,
        report_multiple_bugs=False,
        suppress_health_check=list(HealthCheck),
    )
