"""`demoscale encode`: the pictures and sentences of an episode store, encoded once, so that training neither
decodes videos nor runs the encoders.

The same command again continues; several may run at once. Pictures are encoded by a Ray Data job, with a GPU
per worker where there are GPUs.
"""

import sys
import time
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import click

from orchestrator.cli.mistakes import report_user_errors
from orchestrator.cli.options import HELP
from orchestrator.cli.parameters import InputPath, OutputPath, StorePath

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from orchestrator.data.episode_format import EpisodeError
    from orchestrator.data.latent_cache import LatentEntry
    from orchestrator.data.manifest import Manifest
    from orchestrator.storage.base import Storage
    from policy.config import VideoConfig
    from policy.latent_codec import Latents

WEIGHTS = "~/.cache/demoscale/weights"


@click.command(context_settings=HELP)
@click.argument("store", type=StorePath())
@click.option(
    "--weights",
    type=InputPath(),
    required=True,
    help="The autoencoder: a folder in diffusers' layout, an s3:// URI of one, or a hub id.",
)
@click.option(
    "--text",
    type=InputPath(),
    help=(
        "OpenCLIP's text tower, likewise; by default --weights if it has a text_encoder/, else from the hub."
    ),
)
@click.option("--preset", default="svd-256", show_default=True, help="The policy that will learn from them.")
@click.option("--version", type=click.IntRange(1), help="Version of the store; the newest by default.")
@click.option(
    "--device",
    help="Encode in this process without Ray: cpu, cuda, cuda:1. By default on the GPUs of the machine, or of"
    " the cluster, one worker each, or on its cores.",
)
@click.option(
    "--downloads",
    default=WEIGHTS,
    show_default=True,
    type=OutputPath(file_okay=False),
    help="Where weights from s3:// are kept.",
)
@report_user_errors
def encode(
    store: str,
    weights: str,
    text: str | None,
    preset: str,
    version: int | None,
    device: str | None,
    downloads: str,
) -> None:
    """Keep latents of all pictures, and tokens of all sentences, of STORE beside it. STORE is a folder or
    s3:// URI. Training reads the latents where train.color_jitter is false.

    \b
    demoscale encode data/lift --weights weights/svd
    demoscale encode s3://robot-data/lift --weights stabilityai/stable-video-diffusion-img2vid-xt
    """
    from orchestrator.checkpoints.pretrained_weights import fetch_weights
    from orchestrator.cli.terminal import progress_bar
    from orchestrator.data.episode_format import EpisodeError
    from orchestrator.data.episode_store import load_manifest
    from orchestrator.data.latent_cache import LatentEntry, publish_index, write_sentences
    from orchestrator.storage.base import open_storage
    from policy.latent_codec import latent_codec
    from policy.presets import PRESETS, RECIPES
    from policy.text_encoder import OPENCLIP, sentence_encoder
    from policy.weights import TEXT, has_text_tower, local_folder, weights_fingerprint

    began, kept_here = time.monotonic(), Path(downloads).expanduser()
    if preset not in PRESETS:
        raise click.BadParameter(
            f"there is no preset {preset}; there are {', '.join(PRESETS)}", param_hint="--preset"
        )
    video = PRESETS[preset].video
    if video is None or video.latents == "pixels":
        raise click.BadParameter(
            f"{preset} folds pixels into latents, which costs nothing: there is nothing to keep",
            param_hint="--preset",
        )
    storage = open_storage(store)
    manifest = load_manifest(storage, version)
    folder = fetch_weights(weights, kept_here)
    codec = latent_codec(video, folder)
    fingerprint = codec.fingerprint(manifest.contract.image_size)
    if RECIPES[preset].color_jitter:
        click.echo(
            f"{preset} trains with colour jitter, which changes pictures before they are encoded: only sweeps"
            " with train.color_jitter: false read these latents",
            err=True,
        )
    if video.text == "openclip":
        own = OPENCLIP if text or not has_text_tower(folder) else folder
        tower = local_folder(fetch_weights(text, kept_here) if text else own, TEXT)
        num = write_sentences(
            storage, manifest, sentence_encoder(video, tower), weights_fingerprint(tower, TEXT)
        )
        click.echo(f"{num} sentences of {len(manifest)} episodes are kept")
    rows: list[LatentEntry] = []
    damaged: list[EpisodeError] = []
    with progress_bar("encoding") as progress:
        for answer in progress.track(
            _encoded(
                storage, manifest, codec, fingerprint, partial(_codec, video, weights, kept_here), device
            ),
            total=len(manifest),
        ):
            if isinstance(answer, LatentEntry):
                rows.append(answer)
            else:
                damaged.append(answer)
    for error in damaged:
        click.echo(str(error), err=True)
    if damaged:
        click.echo(
            f"{len(damaged)} of {len(manifest)} episodes cannot be read; the others are kept, and the same"
            " command goes on from here",
            err=True,
        )
        sys.exit(1)
    publish_index(storage, manifest, fingerprint, rows)
    size = sum(row.nbytes for row in rows) / 2**20
    click.echo(
        f"{len(rows)} episodes, {size:.1f} MiB of latents {fingerprint}, in {time.monotonic() - began:.0f} s,"
        f" beside {storage.uri}"
    )


def _codec(video: "VideoConfig", weights: str, downloads: Path) -> "Latents":
    """Load the autoencoder on the node that encodes; arguments as of the command."""
    from orchestrator.checkpoints.pretrained_weights import fetch_weights
    from policy.latent_codec import latent_codec

    return latent_codec(video, fetch_weights(weights, downloads))


def _encoded(
    storage: "Storage",
    manifest: "Manifest",
    codec: "Latents",
    fingerprint: str,
    open_codec: "Callable[[], Latents]",
    device: str | None,
) -> "Iterator[LatentEntry | EpisodeError]":
    """Yield the result of every episode. device: of this process; None: on Ray."""
    import torch

    from orchestrator.data.latent_cache import encoded_before, write_latents

    if device:
        yield from write_latents(storage, manifest, codec, fingerprint, torch.device(device))
        return
    known, missing = encoded_before(storage, manifest, fingerprint)
    yield from known
    if not missing:
        return
    from orchestrator.cluster.ray_runtime import connect, quiet, resources
    from orchestrator.data.ray_encode import Encoders, encode_on_cluster

    quiet()
    connect()
    encoders = Encoders.fit(resources(), len(missing))
    click.echo(f"encoding {len(missing)} episodes with {encoders}", err=True)
    contract = manifest.contract
    yield from encode_on_cluster(
        storage.uri, contract.cameras, contract.image_size, missing, open_codec, fingerprint, encoders
    )
