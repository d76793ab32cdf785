"""How sweeps run. `from orchestrator import Sweep` is the way in; nothing heavy is imported until it is
needed.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from orchestrator.api import Sweep
    from orchestrator.report.sample_efficiency_curve import Curve

__all__ = ["Curve", "Sweep"]


def __getattr__(name: str) -> Any:
    if name == "Sweep":
        from orchestrator.api import Sweep

        return Sweep
    if name == "Curve":
        from orchestrator.report.sample_efficiency_curve import Curve

        return Curve
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
