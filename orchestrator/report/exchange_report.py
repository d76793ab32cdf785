"""Exchange rates of a curve: a demonstration is worth how many videos of each kind, or no evidence. Pure."""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from orchestrator.report.curve_types import Series, estimate_json, factor_in_words, factors_in_words
from orchestrator.report.training_in_words import in_common
from orchestrator.stats.claims import Claim
from orchestrator.stats.exchange_rate import ExchangeRate
from orchestrator.stats.sample_efficiency import Estimate

if TYPE_CHECKING:
    from orchestrator.report.arms_curve import ArmsCurve

UNNAMED = "action-free video"
"""Kind of the videos of a curve whose lines have no names of their own."""


@dataclass(frozen=True)
class ExchangeRow:
    """A line with videos against the line of the same recipe on demonstrations alone."""

    series: Series
    base: Series
    """The line on demonstrations alone."""
    videos: str
    """Kind of videos: the name that the line learns from (`policy.lines[].data.videos`), else of the line."""
    claim: Claim
    """What the seeds of both lines allow to say."""
    rate: ExchangeRate | None
    """None if the seeds are too few for statements about recipes."""

    @property
    def verdict(self) -> str:
        """Whether the videos replace demonstrations, hurt, or neither is shown."""
        return self.rate.verdict if self.rate else "too few seeds"

    @property
    def factor_in_words(self) -> str:
        """How many times as many demonstrations the base needs; a dash if it is not known."""
        return factor_in_words(self.rate.factor.value) if self.rate else "–"  # noqa: RUF001

    @property
    def factor_interval(self) -> str:
        """Its 95 % interval."""
        return _interval(self.rate.factor) if self.rate else "–"  # noqa: RUF001

    @property
    def worth_in_words(self) -> str:
        """Videos that one demonstration is worth; a dash if that is not shown."""
        if not self.rate or self.rate.verdict != "replace demonstrations":
            return "–"  # noqa: RUF001
        worth = self.rate.worth
        return (
            factor_in_words(worth.value) if worth.value else f"below {factor_in_words(worth.interval.high)}"
        )

    @property
    def worth_interval(self) -> str:
        """Its 95 % interval, which excludes small numbers of videos also where there is no evidence."""
        return _interval(self.rate.worth) if self.rate else "–"  # noqa: RUF001

    @property
    def text(self) -> str:
        """The row as a sentence."""
        many = f"{self.series.action_free_ratio:g} video{'' if self.series.action_free_ratio == 1 else 's'}"
        at = f"{many} per demonstration"
        if not self.rate:
            return f"{self.videos}: {self.claim.needs}"
        of_kind = "" if self.videos == UNNAMED else f" of {self.videos}"
        times = f"{self.factor_in_words} times the demonstrations (95 % interval {self.factor_interval})"
        if math.isnan(self.rate.factor.value):
            return f"No evidence that videos{of_kind} replace demonstrations: both lines are flat."
        if self.rate.verdict == "replace demonstrations":
            return (
                f"One demonstration is worth {self.worth_in_words} videos{of_kind} (95 % interval"
                f" {self.worth_interval}), at {at}."
            )
        if self.rate.verdict == "hurt":
            return f"Videos{of_kind} hurt: {at} are worth {times}."
        return f"No evidence that videos{of_kind} replace demonstrations: {at} are worth {times}."

    def to_json(self) -> dict[str, Any]:
        """Return the row as a JSON-safe object; numbers that are not bounded are null."""
        rate = self.rate
        return {
            "videos": self.videos,
            "policy": self.series.policy,
            "action_free_ratio": self.series.action_free_ratio,
            "base_policy": self.base.policy,
            "factor": rate and estimate_json(rate.factor),
            "videos_per_demo": rate and estimate_json(rate.worth),
            "verdict": self.verdict,
            "seeds": self.claim.seeds,
            "text": self.text,
        }


@dataclass(frozen=True)
class ExchangeReport:
    """How many videos of each kind one demonstration is worth."""

    rows: tuple[ExchangeRow, ...]
    note: str
    """How the table is read, and what it leaves out."""

    @property
    def named(self) -> tuple[ExchangeRow, ...]:
        """Rows of lines whose base is another line of the sweep file, of which no other sentence speaks."""
        return tuple(row for row in self.rows if row.rate and row.base.policy != row.series.policy)

    def table(self) -> list[tuple[str, list[str]]]:
        """Return title and cells of every column."""
        return [
            ("videos of", [row.videos for row in self.rows]),
            ("per demo", [f"{row.series.action_free_ratio:g}" for row in self.rows]),
            ("demos, times", [row.factor_in_words for row in self.rows]),
            ("95 % interval", [row.factor_interval for row in self.rows]),
            ("a demo is worth", [row.worth_in_words for row in self.rows]),
            ("95 % interval", [row.worth_interval for row in self.rows]),
            ("what videos do", [row.verdict for row in self.rows]),
        ]

    def to_json(self) -> dict[str, Any]:
        """Return the report as a JSON-safe object."""
        return {"rows": [row.to_json() for row in self.rows], "note": self.note}


def exchange_report(curve: "ArmsCurve[Any, Any, Any, Any]") -> ExchangeReport | None:
    """Return the exchange rates of a curve's lines with videos; None if no line has a base on demonstrations
    alone and enough seeds.
    """
    lines = {line["name"]: line for line in curve.policy_lines}
    rows = []
    for series in curve.lines:
        base = _base(curve, series, lines)
        if base is None:
            continue
        factor, ratio = curve.equivalence_to(series, base), series.action_free_ratio
        data = lines.get(series.policy, {}).get("data") or {}
        rows.append(
            ExchangeRow(
                series=series,
                base=base,
                videos=data.get("videos") or (series.policy if curve.named else UNNAMED),
                claim=curve.claim_of(series, base),
                rate=ExchangeRate(ratio, factor) if factor else None,
            )
        )
    known = any(row.rate for row in rows)
    return ExchangeReport(tuple(rows), _note(curve, len(rows))) if known else None


def _base(
    curve: "ArmsCurve[Any, Any, Any, Any]", series: Series, lines: Mapping[str, Mapping[str, Any]]
) -> Series | None:
    """Return the line on demonstrations alone that differs from a line in its videos only; None if there is
    none, or if it is that line. Its own ratio 0 comes first.
    """
    if not series.action_free_ratio:
        return None
    own = Series(series.policy, 0.0)
    alone = [line for line in curve.lines if not line.action_free_ratio]
    if own in alone or series.policy not in lines:
        return own if own in alone else None
    recipe = _recipe(lines[series.policy])
    return next((one for one in alone if one.policy in lines and _recipe(lines[one.policy]) == recipe), None)


def _recipe(line: Mapping[str, Any]) -> str:
    """Return what lines share that differ in their videos only."""
    kept = {name: value for name, value in line.items() if name not in ("name", "data", "action_free")}
    return json.dumps(kept, sort_keys=True)


def _note(curve: "ArmsCurve[Any, Any, Any, Any]", rows: int) -> str:
    each = "" if rows == 1 else ", each row's for itself, not corrected for the number of rows"
    return (
        "Demos, times: how many times as many demos the line without videos needs to do as well, on average"
        " over what both lines reach; at 1, videos are worth nothing. A demo is then worth (videos per demo)"
        f" / (times - 1) videos. Intervals are 95 %, with the spread of seeds{each}."
        f" Compute is not part of it: {in_common(curve.sweep, curve.costs)}, with videos or without."
    )


def _interval(estimate: Estimate) -> str:
    low = estimate.interval.low
    if math.isnan(low) or low == math.inf:  # nothing is known, or no number of videos is worth one
        return "–"  # noqa: RUF001
    return factors_in_words(estimate.interval)
