"""Benches and experiments end with exit code 0 and the keys that their page shows, and leave no process
behind.
"""

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path

import psutil
import pytest

from bench import harness
from bench.__main__ import BENCHES
from bench.harness import interleaved, median_ratio
from bench.results import Collection, Result, sections
from bench.suite import Phase, Round, markers, seconds_by_marker
from experiments.__main__ import EXPERIMENTS

CHECKOUT = Path(__file__).resolve().parents[2]
MARK = "DEMOSCALE_BENCH_TEST"
ENDS_WITHIN_S = 15.0  # bench.harness.GRACE_S, and what the kernel takes on a busy machine
QUICK_WITHIN_S = 540.0
COLLECTIONS = pytest.mark.parametrize("scripts", [BENCHES, EXPERIMENTS], ids=["bench", "experiments"])
SCRIPTS = [(scripts, name) for scripts in (BENCHES, EXPERIMENTS) for name in scripts.names()]
STRESS = (
    "ceiling",
    "control_step",
    "curve",
    "data",
    "drivers",
    "external",
    "imports",
    "nodes",
    "processors",
    "replan",
    "rollout",
    "search",
    "serving",
    "stall",
    "suite",
    "telling",
    "train_step",
    "gpu",
    "forecast",
    "next_arm",
    "grid_replay",
    "demo_worth",
    "bad_demos",
    "band_coverage",
    "imagined_features",
    "libero_versions",
    "peers",
    "start",
)
"""Scripts whose short run belongs to the stress round: it takes as long as many others together, or asserts what
faster tests assert too.
"""

pytestmark = pytest.mark.bench


@dataclass
class Bench:
    """A bench or experiment in processes of its own, which an environment variable marks. Its temporary files
    lie in a folder of its own.
    """

    module: str
    folder: str
    mark: str = field(default_factory=lambda: uuid.uuid4().hex)
    started: "list[subprocess.Popen[str]]" = field(default_factory=list)

    def start(self) -> "subprocess.Popen[str]":
        # No GPU: with one, some benches print more keys than the page shows.
        # set where bench.suite runs the tests
        environment = {name: value for name, value in os.environ.items() if name != harness.FOLDER}
        environment |= {MARK: self.mark, "TMPDIR": self.folder, "CUDA_VISIBLE_DEVICES": ""}
        command = [sys.executable, "-m", self.module, "--quick"]
        self.started.append(
            subprocess.Popen(
                command,
                cwd=CHECKOUT,
                env=environment,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
            )
        )
        return self.started[-1]

    def end(self) -> None:
        """End the processes that still run because the test failed."""
        for process in self.started:
            if process.poll() is None:
                process.terminate()
                process.communicate()

    def processes(self) -> list[psutil.Process]:
        """List the living processes that carry the mark."""
        found = []
        for process in psutil.process_iter():
            with suppress(psutil.Error, OSError):
                if self.mark in Path(f"/proc/{process.pid}/environ").read_text(errors="replace"):
                    found.append(process)
        return found


@pytest.fixture
def bench_of() -> Iterator[Callable[[str], Bench]]:
    """Yield a factory of Bench; at the end of the test no process and no file of it may be left."""
    # Directly below /tmp: Ray puts its sockets there, whose paths are limited to 107 characters.
    with tempfile.TemporaryDirectory(dir="/tmp", prefix="b") as folder:
        made: list[Bench] = []

        def make(module: str) -> Bench:
            made.append(Bench(module, folder))
            return made[-1]

        yield make
        for bench in made:
            bench.end()
        left = [process for bench in made for process in bench.processes()]
        for process in left:
            with suppress(psutil.Error):
                process.kill()
        assert not left, left
        # torch's cache, made by its import
        assert not [name for name in os.listdir(folder) if not name.startswith("torchinductor_")]


@pytest.mark.parametrize(
    ("scripts", "name"),
    [
        pytest.param(scripts, name, id=name, marks=[pytest.mark.stress] if name in STRESS else [])
        for scripts, name in SCRIPTS
    ],
)
def test_quick_run_prints_the_keys_of_its_page(
    scripts: Collection, name: str, bench_of: Callable[[str], Bench]
) -> None:
    process = bench_of(f"{scripts.folder.name}.{name}").start()
    printed, errors = process.communicate(timeout=QUICK_WITHIN_S)
    assert process.returncode == 0, errors[-4000:]
    answer = json.loads(printed.splitlines()[-1])
    assert answer.keys() == sections(scripts.page.read_text())[name].keys()
    assert answer["bench"] == name
    Result.of(printed, quick=True)  # can be stored


@pytest.mark.parametrize(
    ("module", "signum"),
    [
        ("bench.data", signal.SIGKILL),
        ("experiments.search", signal.SIGTERM),
        ("experiments.search", signal.SIGINT),
    ],
)
def test_bench_ended_by_a_signal_leaves_no_process(
    module: str, signum: signal.Signals, bench_of: Callable[[str], Bench]
) -> None:
    """Signal the bench once Ray and one of its workers run; its processes are known by their mark and, where
    Ray renamed them, by their parent.
    """
    bench = bench_of(module)
    process = bench.start()
    tree = _tree_with_ray(process)
    os.kill(process.pid, signum)
    assert process.wait(ENDS_WITHIN_S) != 0
    _, alive = psutil.wait_procs(tree, ENDS_WITHIN_S)
    assert alive == []
    process.communicate()  # nothing holds the other ends of the pipes


def _tree_with_ray(process: "subprocess.Popen[str]") -> list[psutil.Process]:
    """Return all processes of a bench as soon as one of Ray's workers is among them."""
    root, deadline = psutil.Process(process.pid), time.monotonic() + 180
    while time.monotonic() < deadline:
        assert process.poll() is None, process.communicate()
        tree = root.children(recursive=True)
        if any(_title(child).startswith("ray::") for child in tree):
            assert any("raylet" in _title(child) for child in tree)
            assert any("gcs_server" in _title(child) for child in tree)
            return tree
        time.sleep(0.2)
    raise AssertionError("the bench started no Ray worker")


def _title(process: psutil.Process) -> str:
    try:
        return " ".join(process.cmdline())
    except psutil.Error:
        return ""


@pytest.mark.parametrize("which", [0, 1, 2], ids=["first guard", "second guard", "worker"])
def test_contain_after_sigkill_of_one_process_leaves_no_process(which: int, tmp_path: Path) -> None:
    """The script starts a process in a session of its own, whose parent has ended, so that only its mark
    identifies it.
    """
    script = tmp_path / "script.py"
    script.write_text(
        "import os, subprocess, sys, time\nfrom bench import harness\nharness.contain()\nsleep = 'import"
        " time; time.sleep(300)'\norphan = f'import subprocess, sys; subprocess.Popen([sys.executable,"
        " \"-c\", {sleep!r}], start_new_session=True)'\nsubprocess.run([sys.executable, '-c',"
        " orphan])\nprint(os.getpid(), flush=True)\ntime.sleep(300)\n"
    )
    mark = uuid.uuid4().hex
    environment = os.environ | {MARK: mark, "PYTHONPATH": str(CHECKOUT), "TMPDIR": str(tmp_path)}
    process = subprocess.Popen([sys.executable, script], env=environment, stdout=subprocess.PIPE, text=True)
    assert process.stdout
    worker = int(process.stdout.readline())
    bench = Bench("script", str(tmp_path), mark)
    left = bench.processes()
    assert len(left) == 4, left  # and the orphan
    os.kill([process.pid, psutil.Process(worker).ppid(), worker][which], signal.SIGKILL)
    assert process.wait(ENDS_WITHIN_S) != 0
    _, alive = psutil.wait_procs([one for one in left if one.pid != process.pid], ENDS_WITHIN_S)
    assert alive == []
    process.communicate()
    assert os.listdir(tmp_path) == ["script.py"]


def test_contain_exits_with_the_status_of_the_worker(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(
        "import sys\nfrom bench import harness\nharness.contain()\nprint('once')\nsys.exit(7)\n"
    )
    done = subprocess.run(
        [sys.executable, script],
        env=os.environ | {"PYTHONPATH": str(CHECKOUT)},
        capture_output=True,
        text=True,
    )
    assert (done.returncode, done.stdout) == (7, "once\n"), done.stderr


@COLLECTIONS
def test_page_has_a_section_for_every_script(scripts: Collection) -> None:
    assert set(sections(scripts.page.read_text())) == set(scripts.names())


@COLLECTIONS
def test_page_is_the_rendering_of_results_and_notes(scripts: Collection) -> None:
    assert scripts.page.read_text() == scripts.render()


@COLLECTIONS
def test_notes_belong_to_stored_results(scripts: Collection) -> None:
    assert {path.stem for path in (scripts.folder / "notes").glob("*.md")} <= set(scripts.stored())


@COLLECTIONS
def test_docstring_first_paragraph_is_a_question_or_a_sentence(scripts: Collection) -> None:
    """The page shows the first paragraph of each docstring."""
    for name in scripts.names():
        assert scripts.purpose(name).endswith(("?", ".")), name


def test_result_of_output_without_json_raises() -> None:
    with pytest.raises(json.JSONDecodeError):
        Result.of("a table\nand no answer", quick=False)
    with pytest.raises(ValueError, match="no JSON object"):
        Result.of("a table\n3", quick=False)


def test_result_is_stored_and_loaded_unchanged(tmp_path: Path) -> None:
    (tmp_path / "results").mkdir()
    (tmp_path / "x.py").write_text('"""A script."""')
    scripts = Collection(tmp_path, "# Scripts\n")
    result = Result(
        "2026-11-22",
        "a machine",
        "Python 3",
        True,
        ["a table", "", "of 1 µs"],
        {"bench": "x", "ratio": 0.5, "quick": True},
    )
    scripts.save("x", result)
    assert scripts.load("x") == result
    assert scripts.stored() == ["x"]
    assert sections(scripts.page.read_text()) == {"x": result.answer}


def test_interleaved_rounds_alternate_in_direction() -> None:
    called: list[str] = []

    def arm(name: str) -> Callable[[], int]:
        def call() -> int:
            called.append(name)
            return len(called)

        return call

    answers = interleaved({name: arm(name) for name in "abc"}, 3)
    assert "".join(called) == "abc" + "cba" + "abc"
    assert answers == {"a": [1, 6, 7], "b": [2, 5, 8], "c": [3, 4, 9]}


def test_median_ratio_on_a_slowing_machine_is_the_ratio_of_each_round() -> None:
    speeds = [1.0, 1.5, 4.0, 40.0]
    assert median_ratio([2 * speed for speed in speeds], speeds) == 2
    with pytest.raises(ValueError, match="longer"):
        median_ratio([1.0], [1.0, 2.0])


def test_suite_sums_the_phases_of_each_marker() -> None:
    phases = [
        Phase("a", "setup", 1.0, ["ray", "sim"]),
        Phase("a", "call", 2.0, ["ray", "sim"]),
        Phase("b", "call", 4.0, ["sim"]),
    ]
    rounds = [Round(5.0, 0, phases), Round(1.0, 0, [Phase("c", "call", 8.0, ["ray", "full"])])]
    assert seconds_by_marker(rounds, ["gpu", "ray", "sim"]) == {"gpu": 0.0, "ray": 11.0, "sim": 7.0}
    assert rounds[0].tests == 2


def test_suite_reads_the_last_round_of_a_file(tmp_path: Path) -> None:
    file, test = tmp_path / "fast", tmp_path / "test_second.py"
    earlier = Phase("test_first.py::test_first", "call", 1.0, [])
    file.write_text(f"{json.dumps(asdict(earlier))}\n{json.dumps({'seconds': 2.0, 'status': 1})}\n")
    test.write_text("def test_second(): pass\n")
    plugins = ["-p", "bench.suite", f"--test-times={file}", "-p", "no:cacheprovider"]
    command = [sys.executable, "-m", "pytest", "-q", *plugins, "-c", "/dev/null", str(test)]
    subprocess.run(command, cwd=CHECKOUT, check=True)
    read = Round.read(file)
    assert {phase.nodeid.rpartition("::")[2] for phase in read.phases} == {"test_second"}
    assert (read.status, read.tests, read.passed) == (0, 1, True)
    assert 0 < sum(phase.seconds for phase in read.phases) < read.seconds
    file.write_text("".join(file.read_text().splitlines(keepends=True)[:-1]))
    with pytest.raises(ValueError, match=r"fast: no round of tests ended with --test-times=.*; run it again"):
        Round.read(file)


def test_suite_markers_are_those_of_pyproject_that_select_no_round(pytestconfig: pytest.Config) -> None:
    declared = {line.partition(":")[0].partition("(")[0] for line in pytestconfig.getini("markers")}
    assert {"ray", "sim", "gpu"} <= set(markers()) <= declared
    assert not {"full", "stress"} & set(markers())
