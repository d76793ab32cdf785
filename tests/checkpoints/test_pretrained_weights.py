"""Pretrained weights are loaded into the right modules, or one sentence says why not."""

import json
import os
import shutil
from pathlib import Path

import pytest
import torch
from conftest import run
from safetensors.torch import load_file, save_file

from backbones import svd_config, svd_folder, svd_unet
from orchestrator.checkpoints.pretrained_weights import fetch_weights
from orchestrator.storage.base import Storage
from policy.config import VideoConfig
from policy.weights import WeightsError, load_unet, load_vae, local_folder, weights_fingerprint

FILE = "diffusion_pytorch_model.safetensors"


@pytest.fixture(scope="module")
def svd(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return svd_folder(tmp_path_factory.mktemp("svd"))


@pytest.fixture
def spoilt(svd: Path, tmp_path: Path) -> Path:
    """Return a copy of the weights that a test may damage."""
    return shutil.copytree(svd, tmp_path / "spoilt")


def test_load_unet_sets_every_weight(svd: Path) -> None:
    unet = svd_unet(svd_config())
    load_unet(svd, unet)
    saved = load_file(svd / "unet" / FILE)
    assert saved.keys() == unet.state_dict().keys()
    assert all(torch.equal(tensor, saved[name]) for name, tensor in unet.state_dict().items())
    assert all(parameter.requires_grad for parameter in unet.parameters())
    alone = svd_unet(svd_config())
    load_unet(svd / "unet", alone)
    assert all(
        torch.equal(ours, theirs) for ours, theirs in zip(alone.parameters(), unet.parameters(), strict=True)
    )


def test_load_vae_of_half_precision_files_gives_full_precision_weights(svd: Path, tmp_path: Path) -> None:
    halves = svd_folder(tmp_path, variant="fp16")
    assert not (halves / "unet" / FILE).exists()
    vae, full = load_vae(halves), load_vae(svd)
    for ours, theirs in zip(vae.parameters(), full.parameters(), strict=True):
        assert ours.dtype == torch.float32
        assert torch.equal(ours, theirs.half().float())


def test_load_vae_reads_shards_together_and_names_a_missing_one(spoilt: Path) -> None:
    whole = spoilt / "vae" / FILE
    before, tensors = load_vae(spoilt), load_file(whole)
    names = sorted(tensors)
    for i, part in enumerate((names[::2], names[1::2]), 1):
        save_file(
            {name: tensors[name] for name in part},
            whole.with_name(f"diffusion_pytorch_model-{i:05d}-of-00002.safetensors"),
        )
    whole.unlink()
    assert all(
        torch.equal(ours, theirs)
        for ours, theirs in zip(load_vae(spoilt).parameters(), before.parameters(), strict=True)
    )
    whole.with_name("diffusion_pytorch_model-00001-of-00002.safetensors").unlink()
    with pytest.raises(WeightsError, match=r"1 of the files .* are missing; copy the folder again"):
        load_vae(spoilt)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (
            {"block_out_channels": (32, 32, 64, 96)},
            r"block_out_channels is \(32, 32, 64, 64\), the model's is \(32, 32, 64, 96\)",
        ),
        ({"layers_per_block": 1}, r"layers_per_block is \(2, 2, 2, 2\), the model's is \(1, 1, 1, 1\)"),
        ({"num_attention_heads": (1, 2, 4, 4)}, "num_attention_heads"),
        ({"cross_attention_dim": 64}, "cross_attention_dim"),
        ({"attention_levels": 2}, "down_block_types"),
        ({"time_id_dim": 16}, "addition_time_embed_dim is 8, the model's is 16"),
    ],
)
def test_load_unet_of_another_architecture_names_the_field(
    svd: Path, change: dict[str, object], said: str
) -> None:
    config: VideoConfig = svd_config().model_copy(update=change)
    with pytest.raises(WeightsError, match=said):
        load_unet(svd, svd_unet(config))


@pytest.mark.parametrize(
    ("file", "damage", "said"),
    [
        (f"unet/{FILE}", None, f"there is no {FILE} here; copy the folder again"),
        (f"unet/{FILE}", 1000, "cut short or damaged .*; copy the folder again"),
        (f"unet/{FILE}", 500_000, "cut short or damaged .*; copy the folder again"),
        ("unet/config.json", None, "there is no unet/config.json here"),
        ("unet/config.json", 20, "cut short or damaged"),
    ],
)
def test_load_unet_of_a_missing_or_truncated_file_raises_one_sentence(
    spoilt: Path, file: str, damage: int | None, said: str
) -> None:
    path = spoilt / file
    if damage is None:
        path.unlink()
    else:
        path.write_bytes(path.read_bytes()[:damage])
    with pytest.raises(WeightsError, match=said) as raised:
        load_unet(spoilt, svd_unet(svd_config()))
    assert "\n" not in str(raised.value)


def test_load_vae_names_extra_missing_and_misshapen_weights(spoilt: Path) -> None:
    path = spoilt / "vae" / FILE
    tensors = load_file(path)
    save_file({**tensors, "extra": torch.zeros(1)}, path)
    with pytest.raises(WeightsError, match="it holds extra, which the model does not have"):
        load_vae(spoilt)
    save_file({**tensors, "quant_conv.bias": torch.zeros(1)}, path)
    with pytest.raises(WeightsError, match=r"quant_conv.bias has shape \(1,\), the model's has \(8,\)"):
        load_vae(spoilt)
    save_file({name: tensor for name, tensor in tensors.items() if name != "quant_conv.bias"}, path)
    with pytest.raises(WeightsError, match=r"its weights lack quant_conv.bias"):
        load_vae(spoilt)


def test_load_vae_of_another_kind_of_model_raises(spoilt: Path) -> None:
    with pytest.raises(
        WeightsError,
        match=r"it holds a UNetSpatioTemporalConditionModel, .*AutoencoderKLTemporalDecoder is needed",
    ):
        load_vae(spoilt / "unet")
    config = spoilt / "vae" / "config.json"
    fields = json.loads(config.read_text())
    config.write_text(
        json.dumps(
            {**fields, "block_out_channels": [32, 32, 32], "down_block_types": ["DownEncoderBlock2D"] * 3}
        )
    )
    with pytest.raises(WeightsError, match="a latent of every 4 x 4 pixels, 8 x 8 is needed"):
        load_vae(spoilt)


@pytest.mark.full
def test_load_vae_without_network_says_what_to_do() -> None:
    code = """
from policy.weights import WeightsError, load_vae
from policy.text_encoder import OpenClipText
for load in (lambda: load_vae("stabilityai/stable-video-diffusion-img2vid-xt"), lambda: OpenClipText(1024).embed(["lift"])):
    try:
        load()
    except WeightsError as error:
        print(error)
"""
    done = run(
        "-W", "ignore", "-c", code, env={**os.environ, "HF_HUB_OFFLINE": "1", "HF_HOME": "/nonexistent"}
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == [
        f"{source}: it is neither a folder nor in this machine's Hugging Face cache, and the hub cannot be"
        " reached; name a folder that holds the weights"
        for source in (
            "stabilityai/stable-video-diffusion-img2vid-xt",
            "laion/CLIP-ViT-H-14-laion2B-s32B-b79K",
        )
    ]


def test_local_folder_of_a_missing_path_raises_without_asking_the_hub() -> None:
    with pytest.raises(WeightsError, match=r"\./weights/svd: there is no such folder; correct the path"):
        local_folder("./weights/svd")


def test_weights_fingerprint_depends_on_content_only(svd: Path, tmp_path: Path) -> None:
    copied, other = svd_folder(tmp_path / "copied"), svd_folder(tmp_path / "other", seed=1)
    assert weights_fingerprint(svd) == weights_fingerprint(copied) != weights_fingerprint(other)
    assert (
        weights_fingerprint(svd, ("vae",))
        == weights_fingerprint(svd / "vae", ("vae",))
        != weights_fingerprint(svd, ("unet",))
    )


def test_fetch_weights_from_a_bucket_downloads_once(svd: Path, storage: Storage, tmp_path: Path) -> None:
    files = [path for path in svd.rglob("*") if path.is_file() and "unet" not in path.parts]
    for path in files:
        storage.put(f"svd/{path.relative_to(svd)}", path.read_bytes())
    uri = f"{storage.uri}/svd"
    fetched = fetch_weights(uri, tmp_path / "weights")
    assert weights_fingerprint(fetched, ("vae",)) == weights_fingerprint(svd, ("vae",))
    assert fetch_weights(uri, tmp_path / "weights") == fetched
    assert fetch_weights("owner/name", tmp_path) == Path("owner/name")
    if uri.startswith("s3://"):
        with pytest.raises(WeightsError, match="there is nothing under"):
            fetch_weights(f"{storage.uri}/nothing", tmp_path / "weights")
