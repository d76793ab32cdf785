"""Untrusted checkpoint cards, sweep files and episodes: bounded and checked before memory is allocated,
refused with a sentence.
"""

import json
import random
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import yaml
from safetensors.torch import load_file, save_file

from fuzzing import mutated, peak, peak_reset
from orchestrator.config.sweep_config import SweepConfig, SweepError
from orchestrator.config.yaml_text import read_yaml
from orchestrator.data import episode_format as episodes
from orchestrator.data.clips import ClipBatch, cut_clip
from orchestrator.data.episode_format import Episode, EpisodeError, decode, encode, read_parquet
from orchestrator.testing.episodes import CAMERA, make_episode
from orchestrator.testing.episodes import CONTRACT as STORED
from policy.checkpoint import CARD_BYTES, Card, CheckpointError, load, load_card, new_model, save
from policy.config import ClipShape
from policy.feature_stats import Stats
from policy.interface import Contract
from policy.presets import PRESETS, policy_config

CONTRACT = Contract(
    ("cam",),
    (64, 64),
    "fast",
    tuple(f"p{i}" for i in range(9)),
    tuple(f"a{i}" for i in range(7)),
    20.0,
    "none",
)


def stats(width: int) -> Stats:
    return Stats.of(np.random.default_rng(0).standard_normal((20, width)))


CARD = Card(policy_config("tiny", "diffusion_policy"), CONTRACT, stats(7), stats(9), {"step": 3})
TEXT: dict[str, Any] = {
    "format": 2,
    "config": json.loads(json.dumps(CARD.config.model_dump())),
    "contract": json.loads(json.dumps(CONTRACT.to_json())),
    "action_stats": json.loads(json.dumps(stats(7).to_json())),
    "proprio_stats": json.loads(json.dumps(stats(9).to_json())),
    "provenance": {"step": 3},
}


def changed(path: str, value: Any) -> dict[str, Any]:
    """Return the card's text with one field replaced."""
    text = json.loads(json.dumps(TEXT))
    *parents, last = path.split(".")
    place = text
    for parent in parents:
        place = place[parent]
    place[last] = value
    return text  # type: ignore[no-any-return]


def read(folder: Path, text: str | bytes) -> Card:
    (folder / "checkpoint.json").write_bytes(text if isinstance(text, bytes) else text.encode())
    return load_card(folder)


def test_load_card_reads_a_valid_card(tmp_path: Path) -> None:
    assert read(tmp_path, json.dumps(TEXT)) == CARD


@pytest.mark.parametrize(
    ("path", "value", "says"),
    [
        ("provenance", None, "provenance must be an object"),
        ("provenance", [1], "provenance must be an object"),
        ("action_stats", stats(3).to_json(), "action_stats has 3 dimensions, contract.action 7"),
        ("action_stats", None, "action_stats is missing"),
        ("action_stats.low", ["x"] * 7, "low of the statistics holds a value that is not a number"),
        ("action_stats.low", [True] * 7, "low of the statistics holds a value that is not a number"),
        ("action_stats.high", [1e38] * 7, "larger than 1e\\+37"),
        ("action_stats.high", [-1e9] * 7, "low of the statistics exceeds high"),
        ("action_stats.m2", [-1.0] * 7, "a sum of squares, is negative"),
        ("action_stats.q01", [0.0] * 6, "differ in width"),
        ("action_stats.mean", [0.0] * 5000, "at most 4096 numbers"),
        ("action_stats.count", 0, "count of the statistics"),
        ("action_stats.count", 1.5, "count of the statistics"),
        ("proprio_stats", {}, "the statistics lack count"),
        ("contract.image_size", [10**9, 10**9], "image_size holds"),
        ("contract.cameras", [1, None], r"cameras\[0\] must be text"),
        ("contract.cameras", [], "contract.cameras is empty"),
        ("contract.action", [], "contract.action is empty"),
        ("config.ladder.one_pass.action_steps", 10**6, "config.ladder.one_pass.action_steps"),
        ("config.ladder.one_pass.video_passes", 10**6, "config.ladder.one_pass.video_passes"),
        ("config.ladder.one_pass.execute", 10**9, "config.ladder.one_pass.execute"),
        ("config.ladder.one_pass.execute", 9, "executes 9 actions of a chunk that has 8"),
        ("config.ladder.one_pass.execute", 0, "config.ladder.one_pass.execute"),
        ("config.ladder.one_pass.action_sigmas", [10.0, 0.1], "the lowest noise, 10, exceeds the highest"),
        ("config.clip.horizon", 10**6, "config.clip.horizon"),
        ("config.images.channels", [10**9], "config.images.channels"),
        ("config.images.channels", [], "config.images.channels"),
        ("config.action.down_dims", [64] * 1000, "config.action.down_dims"),
        ("config.\x1b[2J", 1, r"\\x1b\[2J"),
        ("format", "\x1b[2J", r"checkpoint format \\x1b\[2J"),
    ],
)
def test_load_card_with_an_invalid_field_names_it(tmp_path: Path, path: str, value: Any, says: str) -> None:
    with pytest.raises(CheckpointError, match=says) as raised:
        read(tmp_path, json.dumps(changed(path, value)))
    assert "\x1b" not in str(raised.value)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (b"[" * 100_000, "nests deeper than 64 levels"),
        (json.dumps(changed("provenance.x", float("inf"))).encode(), "Infinity"),
        (b'{"format": 2, "x": 1e999}', "1e999"),
        (b"[" + b"[]," * (CARD_BYTES // 4) + b"[]]", "more than 1000000 values"),
        (b" " * (CARD_BYTES + 1), "more than 33554432 bytes"),
        (b"\xff", "not UTF-8"),
        (b"1" * 10_000, "damaged"),
    ],
    ids=["deep", "infinite", "overflow", "values", "bytes", "encoding", "digits"],
)
def test_load_card_of_oversized_text_raises_in_bounded_memory(tmp_path: Path, text: bytes, says: str) -> None:
    before, began = peak_reset(), time.monotonic()
    with pytest.raises(CheckpointError, match=says):
        read(tmp_path, text)
    assert time.monotonic() - began < 30
    assert peak() - before < 200 * 2**20


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("whole")
    model = new_model(CARD.config, CONTRACT)
    save(folder, CARD, model, dict(model.state_dict()), {})
    return folder


def stranger(whole: Path, folder: Path, text: dict[str, Any]) -> Path:
    """Return the checkpoint with another card."""
    (folder / "heads.safetensors").write_bytes((whole / "heads.safetensors").read_bytes())
    (folder / "checkpoint.json").write_text(json.dumps(text))
    return folder


def test_load_reads_a_valid_checkpoint(whole: Path) -> None:
    model, card = load(whole)
    assert card == CARD
    assert all(bool(tensor.isfinite().all()) for tensor in model.state_dict().values())


@pytest.mark.parametrize(
    ("path", "value", "says"),
    [
        (
            "config.action.down_dims",
            [65_536, 65_536],
            "the weights do not fit .*: it has no head.unet.down.1.0.skip",
        ),
        (
            "config.action.down_dims",
            [65_536, 64],
            r"the weights do not fit .*: head.unet.* is \(64, 7, 5\), the model's is \(65536, 7, 5\)",
        ),
        ("config.images.out_dim", 65_536, "the weights do not fit .*: .* is .*, the model's is .*65"),
        (
            "config.images.channels",
            [4096, 4096, 4096],
            "the weights do not fit .*: images.0.levels.2.* is missing",
        ),
        (
            "contract.cameras",
            [f"c{i}" for i in range(60)],
            "it has .* layers or more, the weights .* tensors|is missing",
        ),
        ("config.images.groups", 7, "no model can be built as checkpoint.json describes it"),
    ],
)
def test_load_compares_shapes_before_it_allocates_the_model(
    whole: Path, tmp_path: Path, path: str, value: Any, says: str
) -> None:
    folder = stranger(whole, tmp_path, changed(path, value))
    load(whole)
    before, began = peak_reset(), time.monotonic()
    with pytest.raises(CheckpointError, match=says):
        load(folder)
    assert peak() - before < 200 * 2**20, "two layers of 65,536 channels are 80 GiB"
    assert time.monotonic() - began < 60


def test_load_of_a_model_with_too_many_layers_is_refused_before_building(whole: Path, tmp_path: Path) -> None:
    config = json.loads(json.dumps(PRESETS["tiny"].model_dump()))
    config["adaptor"]["trunk"] = [{"channels": 64, "groups": 8, "expansion": 2, "blocks": 64}] * 64
    folder = stranger(whole, tmp_path, changed("config", config))
    (folder / "unet").mkdir()
    (folder / "unet/diffusion_pytorch_model.safetensors").write_bytes(
        (whole / "heads.safetensors").read_bytes()
    )
    began = time.process_time()
    with pytest.raises(CheckpointError, match=r"it has 41\d\d layers or more, the weights \d+ tensors"):
        load(folder)
    assert time.process_time() - began < 5


def test_load_with_non_finite_weights_names_the_tensor(whole: Path, tmp_path: Path) -> None:
    folder = stranger(whole, tmp_path, TEXT)
    weights = load_file(folder / "heads.safetensors")
    name = sorted(weights)[3]
    weights[name].view(-1)[0] = float("nan")
    save_file(weights, folder / "heads.safetensors")
    with pytest.raises(CheckpointError, match=f"the weights of {name} hold a value that is not finite"):
        load(folder)


def test_load_card_of_a_thousand_random_texts_is_bounded(tmp_path: Path) -> None:
    """Figures are printed: `pytest -rP -k thousand`."""
    rng, good = random.Random(19), json.dumps(TEXT, indent=1).encode()
    odd = [
        None,
        True,
        -1,
        0,
        10**12,
        10**400,
        1e308,
        "",
        "x" * 3000,
        [],
        {},
        [[]],
        ["a"] * 5000,
        [1, 2],
        {"a": {}},
        "\x1b[31m",
        float("nan"),
    ]
    leaves: list[str] = []

    def collect(value: Any, path: str) -> None:
        if path:
            leaves.append(path)
        for name, inner in value.items() if isinstance(value, dict) else ():
            collect(inner, f"{path}.{name}".lstrip("."))

    collect(TEXT, "")
    read(tmp_path, good)
    before, slowest, accepted, refused = peak_reset(), 0.0, 0, 0
    for case in range(1000):
        text = (
            mutated(good, rng)
            if case % 2
            else json.dumps(changed(rng.choice(leaves), rng.choice(odd))).encode()
        )
        began = time.monotonic()
        try:
            read(tmp_path, text)
            accepted, said = accepted + 1, ""
        except CheckpointError as error:
            refused, said = refused + 1, str(error)
        slowest = max(slowest, time.monotonic() - began)
        assert said.isprintable(), (case, said)
    grown = (peak() - before) / 2**20
    print(
        f"largest RSS above idle {grown:.1f} MiB, slowest answer {slowest:.3f} s, {accepted} accepted,"
        f" {refused} refused"
    )
    assert min(accepted, refused) > 5
    assert slowest < 5
    assert grown < 200


# -- YAML ----------------------------------------------------------------------------------------------------


def test_read_yaml_expands_aliases_and_merges() -> None:
    assert read_yaml("a: &a [1, 2]\nb: *a\n") == {"a": [1, 2], "b": [1, 2]}
    assert read_yaml("base: &base {x: 1, y: 2}\nother: {<<: *base, y: 3}\n")["other"] == {"x": 1, "y": 3}


LAUGHS = "a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]\n" for i in range(1, 10)
)
MERGES = "a0: &a0 {x: 1}\n" + "".join(
    f"a{i}: &a{i} {{<<: [{', '.join([f'*a{i - 1}'] * 10)}]}}\n" for i in range(1, 10)
)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (LAUGHS, "more than 20000 values, aliases written out"),
        (MERGES, "more than 20000 values, aliases written out"),
        ("a: &a [*a]\n", "an alias stands for a value that contains it"),
        ("name: one\nname: two\n", "a field appears twice in one mapping"),
        ("data: {episodes: a, episodes: b}\n", "a field appears twice in one mapping"),
        ("[" * 100_000, "nest deeper than 32 levels"),
        ("{a: " * 20_000, "nest deeper than 32 levels"),
        ("- " * 20_000 + "a", "nest deeper than 32 levels"),
        ("a: 2026-13-45\n", "a value cannot be read"),
        ("a: " + "9" * 10_000 + "\n", "a number has more than 60 digits"),
        ("a: !!python/object/apply:os.system [ls]\n", "could not determine a constructor"),
        ("a: " + "x" * (1 << 17) + "\n", "more than 131072 bytes"),
        ("train: {steps: 1" + ":59" * 30_000 + "}\n", "a number has more than 60 digits"),
        ("train: {steps: 0x" + "f" * 30_000 + "}\n", "a number has more than 60 digits"),
    ],
    ids=range(14),
)
def test_sweep_load_of_exponential_aliases_raises_in_bounded_memory(
    tmp_path: Path, text: str, says: str
) -> None:
    before, began = peak_reset(), time.monotonic()
    (tmp_path / "sweep.yaml").write_text(text)
    with pytest.raises(SweepError, match=says):
        SweepConfig.load(tmp_path / "sweep.yaml")
    assert time.monotonic() - began < 30
    assert peak() - before < 100 * 2**20


@pytest.mark.parametrize("value", ["[" * 5000, "2026-13-45", "{a: 1, a: 2}", "&a [*a]"])
def test_override_that_is_not_readable_raises_one_sentence(tmp_path: Path, value: str) -> None:
    (tmp_path / "sweep.yaml").write_text("name: one\n")
    with pytest.raises(SweepError, match="--set name="):
        SweepConfig.load(tmp_path / "sweep.yaml", [f"name={value}"])


def test_project_sweep_files_are_far_below_the_limits() -> None:
    for file in (Path(__file__).resolve().parents[2] / "jobs").rglob("*.yaml"):
        assert read_yaml(file.read_text()) == yaml.safe_load(file.read_text())
        assert file.stat().st_size < 20_000


# -- films ---------------------------------------------------------------------------------------------------


def with_column(data: bytes, changes: dict[str, Callable[[Any], Any]]) -> bytes:
    """Return the episode's file with some of its columns replaced."""
    import io

    import pyarrow as pa

    table = read_parquet(data)
    for name, change in changes.items():
        column = table.schema.get_field_index(name)
        table = table.set_column(
            column, name, pa.array([change(table[name][0].as_py())], table.schema.field(name).type)
        )
    buffer = io.BytesIO()
    pq.write_table(table, buffer, compression="none", store_schema=False)
    return buffer.getvalue()


def film(length: int, side: int = 0) -> bytes:
    frames = make_episode(length=length).frames[CAMERA]
    return episodes.encode_video(frames if not side else np.ascontiguousarray(frames[:, :side, :side]), 20.0)


WHOLE = encode(make_episode(length=12), 20.0)


@pytest.mark.parametrize(
    ("changes", "wanted", "says"),
    [
        ({f"cam.{CAMERA}": lambda _: film(7)}, None, "its film has 7 frames and not 12"),
        ({f"cam.{CAMERA}": lambda _: film(7)}, [0, 11], "its film has 7 frames and not 12"),
        ({f"cam.{CAMERA}": lambda _: film(7)}, [0], "its film has 7 frames and not 12"),
        ({f"cam.{CAMERA}": lambda _: film(13)}, None, "its film has 13 frames and not 12"),
        ({f"cam.{CAMERA}": lambda data: data[: len(data) // 2]}, None, "InvalidDataError"),
        ({f"cam.{CAMERA}": lambda _: b""}, None, "InvalidDataError"),
        ({"length": lambda _: 10**12}, None, "between 1 and 10000000 frames"),
        ({"length": lambda _: 0}, None, "between 1 and"),
        ({"length": lambda _: 6}, None, "its film has 12 frames and not 6"),
        ({"proprio": lambda rows: rows[:6]}, None, "6 vectors for 12 frames"),
        ({"action": lambda rows: [*rows, rows[0]]}, None, "13 vectors for 12 frames"),
        ({}, [12], "frames 12 to 12 of 12 are asked for"),
        ({}, [-1], "frames -1 to -1 of 12 are asked for"),
    ],
)
def test_decode_of_a_short_film_names_the_episode(changes: Any, wanted: list[int] | None, says: str) -> None:
    with pytest.raises(EpisodeError, match=rf"episode Lift-000000 cannot be decoded .*{says}"):
        decode(with_column(WHOLE, changes), (CAMERA,), True, wanted)


def test_decode_of_a_film_with_undecodable_frames_raises(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Simulate a decoder that drops a damaged frame and goes on."""
    needed = episodes._needed
    monkeypatch.setattr(episodes, "_needed", lambda packets, wanted: needed(packets, wanted)[:-2])
    with pytest.raises(EpisodeError, match="its film does not show frame 1"):
        decode(WHOLE, (CAMERA,), False)


def test_decode_returns_every_frame() -> None:
    assert decode(with_column(WHOLE, {}), (CAMERA,), True).frames[CAMERA].shape[0] == 12


def test_stack_of_clips_without_pictures_names_the_episode() -> None:
    shape = ClipShape(frames_per_view=2, frame_stride=4, horizon=8)
    good = [cut_clip(make_episode(), start, shape, STORED) for start in (0, 1)]
    assert ClipBatch.stack(good).frames.shape[:3] == (2, 1, 2)

    def injured(change: Callable[[Episode], Episode]) -> Any:
        return [good[0], replace(good[1], episode=change(good[1].episode))]

    for change in (
        lambda one: replace(one, frames={}),
        lambda one: replace(one, frames={CAMERA: one.frames[CAMERA][:2]}),
        lambda one: replace(one, frames={CAMERA: one.frames[CAMERA][:, :1]}),
    ):
        with pytest.raises(EpisodeError, match="episode Lift-000000: its file lacks frames"):
            ClipBatch.stack(injured(change))
