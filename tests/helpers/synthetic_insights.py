"""Made-up sections "Where more demonstrations help" and "Which demonstrations" of a report."""

from orchestrator.report.curve_types import Series
from orchestrator.report.demo_worth_report import DemoWorthReport
from orchestrator.report.where_report import PlacedScene, PlaceMap, StageRow, StageTable, WhereReport
from orchestrator.stats.demo_worth import DemoWorth, EpisodeWorth
from orchestrator.stats.fixed_sample import Interval
from orchestrator.stats.scene_difficulty import SceneDifficulty


def where(series: Series, name: str = "Lift") -> WhereReport:
    """Return two stage rows, a scene of three classes and two maps. name: prefix of the scenes."""
    scenes = (
        SceneDifficulty(f"{name}-1000003-1000003", "hard", 0.97, 0.02, 0.21, 1, 36),
        SceneDifficulty(f"{name}-1000007-1000007", "more demos", 0.93, 0.18, 0.83, 17, 36),
        SceneDifficulty(f"{name}-1000001-1000001", "undecided", 0.61, 0.44, 0.71, 20, 36),
    )
    stages = StageTable(
        "Lift",
        ("none", "reached", "grasped"),
        (StageRow(series, 10, 40, (8, 20, 12)), StageRow(series, 300, 6, (0, 1, 5))),
    )
    places = [(0.001, -0.02, 0), (0.03, 0.028, 2), (-0.028, 0.01, 1), (-0.01, -0.029, 3)]
    maps = tuple(
        PlaceMap(
            "Lift",
            demos,
            tuple(
                PlacedScene(f"{name}-{number}", x, y, min(3, solved + more), 3)
                for number, (x, y, solved) in enumerate(places)
            ),
        )
        for more, demos in enumerate((10, 300))
    )
    text = (
        "Of 3 scenes: 1 hard for every arm, 1 solved with more demonstrations, 1 not decided (at a probability of"
        " 0.9).",
        "Lift with 300 demos, furthest stage of 6 failing episodes: reached 1, grasped 5.",
    )
    return WhereReport((stages,), scenes, maps, text)


def demonstrations(name: str = "lift-0017") -> DemoWorthReport:
    """Return one demonstration that hurts."""
    one = EpisodeWorth(name, -0.08, Interval(-0.12, -0.04), -0.06, 0.0001, 14)
    worth = DemoWorth((one,), 30, 36, 0.002, (one,), 0.09)
    return DemoWorthReport(
        worth, f"One demonstration hurts in place of another among 30: {name} (-8 points, -12 to -4)."
    )
