"""Run benches, store their results in bench/results/ and render bench/README.md from all that is stored.

python -m bench                      every bench
python -m bench data rollout         those named
python -m bench --quick              a short run of each; stores nothing unless --save is given
python -m bench --page               render the page only, e.g. after a change of bench/notes/
"""

from pathlib import Path

from bench import harness
from bench.results import Collection

HEAD = """# Benches

One script per claim about speed. Each prints a table and, last, one line of JSON; `--quick` makes a short
run. `python -m bench` runs all of them, `python -m bench NAME ...` those named; results are stored in
`bench/results/`, notes in `bench/notes/`, and this page is rendered from both.
Read the ratios: both sides of a ratio are measured within one run.
"""

BENCHES = Collection(Path(__file__).parent, HEAD)

if __name__ == "__main__":
    harness.run(BENCHES.command())
