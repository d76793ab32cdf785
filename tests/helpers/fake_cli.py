"""The command `demoscale` with a fake trainer and fake simulators, on this machine and in submitted jobs.

python tests/helpers/fake_cli.py submit sweep.yaml --address http://head:8265
python tests/helpers/fake_cli.py -c "..."    runs a Python program that does the same
"""

import os
import sys

sys.path.insert(0, os.getcwd())
STEP_S = 0.05

if __name__ == "__main__":
    from orchestrator.cli import main as cli
    from orchestrator.cluster import code_bundle as staging
    from orchestrator.cluster import submission as submitted

    if sys.argv[1] == "sweep":  # what runs on the cluster, in place of jobs/sweep.py
        import orchestrator.sweep.run as engine
        from orchestrator.testing.fake_trainer import FakeTrainer
        from orchestrator.testing.players import FakeEvalBackend

        class FakeRun(engine.SweepRun):
            def __init__(self, *args: object, **kwargs: object) -> None:
                super().__init__(*args, fit=FakeTrainer(STEP_S), players=FakeEvalBackend(), **kwargs)

        engine.SweepRun = FakeRun
        cli.run(sys.argv[2:])
    else:
        staging.SHIPPED = (*staging.SHIPPED, "tests/helpers/fake_cli.py")
        submitted.COMMAND = "python tests/helpers/fake_cli.py "
        exec(sys.argv[2]) if sys.argv[1] == "-c" else cli.main()
