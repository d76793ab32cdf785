"""Trains robomimic's BC-RNN on a robomimic HDF5 file, with robomimic's own configuration, data set, algorithm
and files of a checkpoint.

The loop is this project's, since robomimic's `train.py` trains in epochs, between which alone it can be
stopped. It does in every step what robomimic's `TrainUtils.run_epoch` does.
"""

import json
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import torch
from common.train_job import TrainJob, take_steps
from robomimic.algo import algo_factory
from robomimic.config import Config, config_factory
from robomimic.utils import file_utils, obs_utils, torch_utils, train_utils
from torch.utils.data import default_collate

OWN_OPTIONS = {"normalize_vectors": True}
"""Options that are no paths into robomimic's configuration, with their defaults.

normalize_vectors: give the network vectors with mean 0 and standard deviation 1 over the data.
"""
MODEL, STATE = "model.pth", "training_state.pth"
"""Files of a checkpoint: robomimic's own, and the state of the random generators."""


def config_of(job: TrainJob) -> Any:
    """Return robomimic's configuration of BC with an LSTM, of the data's pictures and vectors.

    Options are paths into it (`algo.rnn.hidden_dim`). Raises SystemExit with a sentence for one that it does
    not have.
    """
    with h5py.File(job.data, "r") as file:
        vectors = json.loads(file["data"].attrs["demoscale.proprio_keys"])
    config = config_factory("bc")
    config.algo.rnn.enabled = True
    config.observation.modalities.obs.rgb = [f"{camera}_image" for camera in job.contract["cameras"]]
    config.observation.modalities.obs.low_dim = vectors
    config.train.data = [{"path": str(job.data)}]
    config.train.cuda = job.device == "cuda"
    config.train.seed, config.train.batch_size = job.seed, job.batch_size
    with config.unlocked():
        for path, value in job.options.items():
            if path not in OWN_OPTIONS:
                _set(config, path, value)
    if config.train.hdf5_normalize_obs:
        raise SystemExit(
            "options: train.hdf5_normalize_obs is true, with which robomimic 0.5.0 cannot act from pictures;"
            " use normalize_vectors"
        )
    if config.train.seq_length != config.algo.rnn.horizon:
        raise SystemExit(
            f"options: train.seq_length is {config.train.seq_length} and algo.rnn.horizon"
            f" {config.algo.rnn.horizon}; BC-RNN wants the same number"
        )
    config.lock()
    return config


def _set(config: Any, path: str, value: Any) -> None:
    *folders, last = path.split(".")
    free = False  # arguments of networks are free; everything else must be there
    for name in folders:
        if name not in config:
            if not (free and name.endswith("kwargs")):
                raise SystemExit(f"options: robomimic's configuration of BC has no {path}")
            config[name] = Config()
        config, free = config[name], name.endswith("kwargs")
    if last not in config and not free:
        raise SystemExit(f"options: robomimic's configuration of BC has no {path}")
    config[last] = list(value) if isinstance(value, list) else value


def train() -> None:
    """Train as the job of this process says."""
    job = TrainJob.read()
    torch.set_num_threads(job.threads)
    random.seed(job.seed)
    np.random.seed(job.seed % 2**32)
    torch.manual_seed(job.seed)

    config = config_of(job)
    obs_utils.initialize_obs_utils_with_config(config)
    shapes = file_utils.get_shape_metadata_from_dataset(
        dataset_config=config.train.data[0],
        action_keys=config.train.action_keys,
        all_obs_keys=config.all_obs_keys,
    )
    dataset = train_utils.dataset_factory(config, list(shapes["all_obs_keys"]))
    normalization = None
    if job.options.get("normalize_vectors", OWN_OPTIONS["normalize_vectors"]):
        normalization = _normalization(config, shapes["all_shapes"])
        # after the data set is made, which would measure pictures too; a policy that acts asks for it
        with config.values_unlocked():
            config.train.hdf5_normalize_obs = True
    # what robomimic's train.py sets for schedules of the learning rate, whose epochs are passes over the data
    passes = -(-len(dataset) // job.batch_size)
    with config.values_unlocked():
        for optimized in config.algo.optim_params.values():
            kind = optimized["learning_rate"].get("scheduler_type", "multistep")
            if job.seconds and kind != "multistep":
                raise SystemExit(
                    f"options: a schedule {kind} ends at a step, and this training by time; write multistep,"
                    " or match steps"
                )
            optimized["num_train_batches"] = passes
            optimized["num_epochs"] = max(1, -(-job.steps // passes))
    device = torch_utils.get_torch_device(try_to_use_cuda=config.train.cuda)
    model = algo_factory(config.algo_name, config, shapes["all_shapes"], shapes["ac_dim"], device)
    if job.resume is not None:
        # written by this command in an earlier attempt at the same training
        saved = torch.load(job.resume / MODEL, map_location=device, weights_only=False)
        model.deserialize(saved["model"], load_optimizers=True)
    model.set_train()
    batches = _batches(dataset, job)
    if job.resume is not None:
        _set_random_state(torch.load(job.resume / STATE, weights_only=False))
    taken = job.first_step
    vectors = {
        key: tuple(torch.from_numpy(stats[name][0]).to(device) for name in ("offset", "scale"))
        for key, stats in (normalization or {}).items()
        if key in config.observation.modalities.obs.low_dim
    }

    def step() -> float:
        nonlocal taken
        batch = model.process_batch_for_training(next(batches))
        for key, (offset, scale) in vectors.items():
            batch["obs"][key] = (batch["obs"][key] - offset) / scale
        batch = model.postprocess_batch_for_training(batch, obs_normalization_stats=None)
        info = model.train_on_batch(batch, epoch=taken // passes + 1, validate=False)
        model.on_gradient_step()
        taken += 1
        if taken % passes == 0:
            model.on_epoch_end(taken // passes)
        return float(model.log_info(info)["Loss"])

    def save(folder: Path, number: int) -> None:
        train_utils.save_model(
            model=model,
            config=config,
            env_meta=None,
            shape_meta=shapes,
            ckpt_path=str(folder / MODEL),
            variable_state={"step": number},
            obs_normalization_stats=normalization,
            action_normalization_stats=dataset.get_action_normalization_stats(),
        )
        torch.save(_random_state(), folder / STATE)

    take_steps(job, step, save)


def _normalization(config: Any, shapes: dict[str, Any]) -> dict[str, dict[str, np.ndarray]]:
    """Return offset and scale of every observation, as robomimic's `RolloutPolicy` applies them: to vectors
    their mean and standard deviation over the data, to pictures nothing.

    robomimic's own statistics of pictures are those of float pictures (3, H, W), but its policy applies them
    to what the simulator gives, (H, W, 3) uint8, and fails.
    """
    found = {}
    with h5py.File(config.train.data[0]["path"], "r") as file:
        for key in config.observation.modalities.obs.low_dim:
            values = np.concatenate([demo["obs"][key][()] for demo in file["data"].values()])
            scale = values.std(0) + 1e-3  # robomimic's tolerance, for values that hardly vary
            found[key] = {"offset": values.mean(0)[None], "scale": scale[None]}
    for key in config.observation.modalities.obs.rgb:
        channels, height, width = shapes[key]
        place = (1, height, width, channels)
        found[key] = {"offset": np.zeros(place, np.float32), "scale": np.ones(place, np.float32)}
    return {
        key: {name: value.astype(np.float32) for name, value in stats.items()} for key, stats in found.items()
    }


def _batches(dataset: Any, job: TrainJob) -> Iterator[dict[str, Any]]:
    """Yield batches for ever, from the job's first step on: each pass in an order of its own, which is a
    function of the seed and of the number of the pass.
    """
    passes = -(-len(dataset) // job.batch_size)
    number, first = divmod(job.first_step, passes)
    while True:
        seed = int(np.random.SeedSequence([job.seed, number]).generate_state(1, np.uint64)[0])
        order = torch.randperm(len(dataset), generator=torch.Generator().manual_seed(seed)).tolist()
        for index in range(first, passes):
            chosen = order[index * job.batch_size : (index + 1) * job.batch_size]
            yield default_collate([dataset[sample] for sample in chosen])
        number, first = number + 1, 0


def _random_state() -> dict[str, Any]:
    cuda = torch.cuda.get_rng_state() if torch.cuda.is_available() else None
    return {
        "python": random.getstate(),
        "numpy": np.random.get_state(),
        "torch": torch.get_rng_state(),
        "cuda": cuda,
    }


def _set_random_state(state: dict[str, Any]) -> None:
    random.setstate(state["python"])
    np.random.set_state(state["numpy"])
    torch.set_rng_state(state["torch"])
    if state["cuda"] is not None and torch.cuda.is_available():
        torch.cuda.set_rng_state(state["cuda"])


if __name__ == "__main__":
    train()
