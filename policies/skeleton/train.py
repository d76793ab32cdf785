"""Trains the policy: least squares by gradient descent. Your own optimiser and network go into `step`."""

from pathlib import Path

import numpy as np
import pyarrow.dataset
from common.train_job import TrainJob, take_steps


def read_episodes(data: Path) -> list[tuple[np.ndarray, np.ndarray]]:
    """Return the proprioception (T, P) and the actions (T, A) of every episode of a LeRobot data set."""
    columns = ["episode_index", "frame_index", "observation.state", "action"]
    table = pyarrow.dataset.dataset(data / "data", format="parquet").to_table(columns)
    table = table.sort_by([("episode_index", "ascending"), ("frame_index", "ascending")])
    episodes = table["episode_index"].to_numpy()
    states, actions = (np.array(table[name].to_pylist(), np.float64) for name in columns[2:])
    return [(states[episodes == one], actions[episodes == one]) for one in np.unique(episodes)]


def main() -> None:
    """Train from the job's first step to its last."""
    job = TrainJob.read()
    chunk, inputs, targets = job.options["chunk"], [], []
    episodes = read_episodes(job.data)
    shares = None  # of each frame in the samples, where several stores have weights
    if job.weights:
        frames = [len(actions) for _, actions in episodes]
        shares = np.repeat(np.array(job.weights) / frames, frames)
    for states, actions in episodes:
        ends = np.minimum(np.arange(len(actions))[:, None] + np.arange(chunk), len(actions) - 1)
        inputs.append(states)
        targets.append(actions[ends].reshape(len(actions), -1))  # past the end: the last action
    x_NP, y_NC = np.concatenate(inputs), np.concatenate(targets)
    mean, std = x_NP.mean(0), x_NP.std(0) + 1e-6
    x_NI = np.hstack([(x_NP - mean) / std, np.ones((len(x_NP), 1))])
    weights = np.zeros((x_NI.shape[1], y_NC.shape[1]))
    if job.resume:
        weights = np.load(job.resume / "weights.npz")["weights"]
    done = job.first_step

    def step() -> float:
        nonlocal weights, done
        # drawn by seed and step, so that a training that resumes goes on as if it had not stopped
        rows = np.random.default_rng([job.seed, done]).choice(len(x_NI), size=job.batch_size, p=shares)
        error = x_NI[rows] @ weights - y_NC[rows]
        weights = weights - 0.05 * x_NI[rows].T @ error / len(rows)
        done += 1
        return float((error**2).mean())

    def save(folder: Path, number: int) -> None:
        np.savez(folder / "weights.npz", weights=weights, mean=mean, std=std)

    take_steps(job, step, save)


if __name__ == "__main__":
    main()
