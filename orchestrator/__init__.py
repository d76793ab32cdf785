"""How sweeps run. `from orchestrator import Sweep` is the way in; nothing heavy is imported until it is needed."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from orchestrator.curve import Curve
    from orchestrator.spec import Sweep

__all__ = ["Curve", "Sweep"]


def __getattr__(name: str) -> Any:
    if name == "Sweep":
        from orchestrator.spec import Sweep

        return Sweep
    if name == "Curve":
        from orchestrator.curve import Curve

        return Curve
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
