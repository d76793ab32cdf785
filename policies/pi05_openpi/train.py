"""Fine-tunes pi0.5 with openpi's own training script.

The script writes checkpoints but reports nothing and knows no signal. It is therefore called once per
checkpoint, each time to continue from the last one; a run that dies resumes from the last one as well.
"""

import json
import os
import shutil
import sys
from pathlib import Path
from typing import Any

os.environ["HF_LEROBOT_HOME"] = str(Path.cwd() / "lerobot")

import h5py
import numpy as np
from common.train_job import TrainJob, report_line, write_checkpoint
from lerobot.common.datasets.lerobot_dataset import LeRobotDataset
from openpi.shared import normalize
from pi05_setup import REPO, train_config, views

WORK = Path.cwd()
STATE = "openpi"
"""Folder of a checkpoint: what openpi saved."""


def convert(job: TrainJob) -> None:
    """Write the demonstrations as the data set that openpi's pi0.5 for LIBERO reads, and its statistics."""
    scene, hand = views(job.contract["cameras"])
    picture = {
        "dtype": "image",
        "shape": (*job.contract["image_size"], 3),
        "names": ["height", "width", "channel"],
    }
    sizes = {"state": len(job.contract["proprio"]), "actions": len(job.contract["action"])}
    vectors = {name: {"dtype": "float32", "shape": (size,), "names": [name]} for name, size in sizes.items()}
    dataset = LeRobotDataset.create(
        repo_id=REPO,
        robot_type="panda",
        fps=round(job.contract["control_hz"]),
        features={"image": picture, "wrist_image": picture, **vectors},
    )
    statistics = {name: normalize.RunningStats() for name in sizes}
    with h5py.File(job.data, "r") as file:
        keys = json.loads(file["data"].attrs["demoscale.proprio_keys"])
        for number in range(len(file["data"])):
            demo = file[f"data/demo_{number}"]
            values = {
                "state": np.concatenate([demo[f"obs/{key}"][:] for key in keys], axis=1),
                "actions": demo["actions"][:],
            }
            for name, rows in values.items():
                statistics[name].update(rows)
            for step in range(len(values["actions"])):
                dataset.add_frame(
                    {
                        "image": demo[f"obs/{scene}_image"][step],
                        "wrist_image": demo[f"obs/{hand}_image"][step],
                        **{name: rows[step] for name, rows in values.items()},
                        "task": demo.attrs["demoscale.instruction"],
                    }
                )
            dataset.save_episode()
    assets = train_config(job.options, WORK).assets_dirs / REPO
    normalize.save(assets, {name: running.get_statistics() for name, running in statistics.items()})


def main() -> None:
    """Train as the job of this process says."""
    job = TrainJob.read()
    sys.path.insert(0, f"{job.options['openpi']}/scripts")
    import train as openpi_script  # openpi's: this program's own module is __main__

    convert(job)
    losses: dict[str, Any] = {}
    openpi_script.wandb.log = lambda said, step=0: losses.update(said)
    folder = train_config(job.options, WORK).checkpoint_dir
    if job.resume is not None:
        folder.mkdir(parents=True)
        shutil.copytree(job.resume / STATE, folder / str(job.first_step - 1))
    for end in [*range(job.first_step, job.steps, job.checkpoint_every), job.steps]:
        if end == job.first_step:
            continue
        config = train_config(
            job.options,
            WORK,
            batch_size=job.batch_size,
            seed=job.seed,
            num_train_steps=end,
            save_interval=end,
            keep_period=None,
            log_interval=10,
            resume=folder.exists(),
        )
        openpi_script.main(config)

        def save(target: Path, step: int) -> None:
            shutil.copytree(folder / str(step - 1), target / STATE)

        name = write_checkpoint(job.checkpoints, end, save)
        report_line(job.report, {"step": end, "loss": float(losses["loss"]), "checkpoint": name})


if __name__ == "__main__":
    main()
