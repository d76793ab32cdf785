"""Run experiments, store their results in experiments/results/ and render experiments/README.md.

python -m experiments                every experiment
python -m experiments ceiling        those named
python -m experiments --quick        a short run of each; stores nothing unless --save is given
python -m experiments --page         render the page only, e.g. after a change of experiments/notes/
"""

from pathlib import Path

from bench import harness
from bench.results import Collection

HEAD = """# Experiments

Scripts whose results are findings, not speeds. Each prints a table and, last, one line of JSON.

| experiment | finding |
| --- | --- |
| `bad_demos` | of 6 demonstrations of Lift with shuffled actions among 30, 48 arms name 3 and no good one; without these, success rises from 0.57 to 0.89, of a nearest-neighbour policy |
| `band_coverage` | on ten real trainings of one arm the band of three seeds holds the mean of the others on other scenes in 92 % of draws, the exact interval of the pooled episodes in 73 % |
| `ceiling` | scripted experts solve 98 to 100 of 100 evaluation scenes; Door does not stay open |
| `decisions` | an anytime-valid verdict on 70 against 50 % takes a third of the episodes of a design that does not know the gap, and more than one that knows it |
| `demo_worth` | of 10 bad demonstrations among 50 that change success by 5 points each, 60 arms name 15 %, 120 arms 67 %, 240 arms 96 %; 98 % or more of the names are right |
| `drivers` | the same rasteriser renders the same bits through EGL and OSMesa; another one changes half of the pixels and the end of one episode in ten |
| `exchange_rates` | three seeds on 40 scenes find in 37 to 52 % of sweeps that a demonstration is worth four videos; the interval holds in 94 % or more |
| `forecast` | the 90 % interval of the demonstrations that 90 % takes holds the truth in 92 % of 500 worlds; in 11 % of them it is bounded from both sides |
| `grid_replay` | in two real grids all 8 left-out demo counts are inside the intervals of 90 % that the others forecast |
| `imagined_features` | with the imagined future of another scene success on Lift falls from 38/150 to 12/150, and actions move less than by other noise: no evidence, by the rule stated beforehand, that they follow the imagination |
| `libero_versions` | MuJoCo draws LIBERO's scenes darker from 3.3.3 on, and from 3.4.0 on a bowl slides off the ramekin it should rest on |
| `next_arm` | for 40 % of a grid's cost, arms chosen by worth end with an interval of 1.33 times the grid's, arms at random with 1.82; a second grid is within 20 % of the first in 43 % of worlds |
| `processors` | with the kernels of another processor none of 84 episodes ends otherwise; pinning them costs nothing |
| `search` | ASHA finds the grid's best arm with 16 % of its episodes; where every later arm is better it saves 6 % |

    python -m experiments.ceiling --quick      a short run of one
    python -m experiments ceiling              the whole run; its result is stored

Results are stored in `experiments/results/`, notes in `experiments/notes/`, and this page is rendered from both.
"""  # noqa: E501

EXPERIMENTS = Collection(Path(__file__).parent, HEAD)

if __name__ == "__main__":
    harness.run(EXPERIMENTS.command())
