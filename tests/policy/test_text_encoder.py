"""Sentence embeddings do not depend on the batch, and the tower is loaded only for unknown sentences."""

import shutil
import socket
from pathlib import Path

import pytest
import torch

from backbones import SENTENCE_DIM, svd_config, svd_folder, svd_policy, text_folder
from orchestrator.testing.checkpoints import make_checkpoint
from policy.checkpoint import known_sentences, load
from policy.model import VideoActionModel
from policy.presets import PRESETS
from policy.text_encoder import OpenClipText, OtherTowerError, WordVectors, sentence_encoder
from policy.weights import WeightsError


@pytest.fixture
def _offline(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fail the test at the first connection to anywhere."""

    def refuse(*_: object) -> None:
        pytest.fail("a connection was opened")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)


SENTENCES = ["lift the red cube", "open the door", ""]


@pytest.fixture(scope="module")
def tower(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return text_folder(tmp_path_factory.mktemp("text"))


def test_word_vectors_are_fixed() -> None:
    first = WordVectors(8).embed(["lift the cube"])
    assert first.shape == (1, 1, 8)
    assert torch.allclose(first[0, 0, :3], torch.tensor([0.464647, -0.719439, -0.044854]))
    assert torch.equal(first, WordVectors(8).embed(["open", "Lift the  cube"])[1:])


def test_open_clip_text_equals_the_projected_last_token_of_transformers(tower: Path) -> None:
    from transformers import CLIPTextModelWithProjection, CLIPTokenizer

    embedded = OpenClipText(SENTENCE_DIM, tower).embed(SENTENCES)
    assert embedded.shape == (3, 1, SENTENCE_DIM)
    model = CLIPTextModelWithProjection.from_pretrained(tower / "text_encoder")
    tokenizer = CLIPTokenizer.from_pretrained(tower / "tokenizer")
    padded = tokenizer(SENTENCES, padding="max_length", max_length=77, truncation=True, return_tensors="pt")
    with torch.no_grad():
        expected = model(input_ids=padded["input_ids"]).text_embeds
    assert torch.allclose(embedded[:, 0], expected, atol=1e-5)


def test_open_clip_text_does_not_depend_on_the_batch(tower: Path) -> None:
    together = OpenClipText(SENTENCE_DIM, tower).embed([*SENTENCES, SENTENCES[0]])
    assert torch.equal(together[0], together[3])
    assert not torch.equal(together[0], together[1])
    for sentence, token in zip(SENTENCES, together, strict=False):
        assert torch.equal(OpenClipText(SENTENCE_DIM, tower).embed([sentence])[0], token)


def test_open_clip_text_truncates_long_sentences(tower: Path) -> None:
    assert OpenClipText(SENTENCE_DIM, tower).embed(["lift the cube " * 40]).isfinite().all()


def test_sentence_encoder_with_known_sentences_needs_no_tower(tower: Path) -> None:
    known = OpenClipText(SENTENCE_DIM, tower)
    embedded = known.embed(SENTENCES)
    assert set(known.known) == set(SENTENCES)
    without = sentence_encoder(svd_config(), "/nowhere", known.known)
    assert torch.equal(without.embed(SENTENCES), embedded)
    with pytest.raises(WeightsError, match="/nowhere: there is no such folder"):
        without.embed(["pour the tea"])


def test_open_clip_text_reads_a_folder_of_the_tower_alone(tower: Path, tmp_path: Path) -> None:
    for part in ("text_encoder", "tokenizer"):
        for file in (tower / part).iterdir():
            (tmp_path / file.name).write_bytes(file.read_bytes())
    assert torch.equal(
        OpenClipText(SENTENCE_DIM, tmp_path).embed(SENTENCES),
        OpenClipText(SENTENCE_DIM, tower).embed(SENTENCES),
    )


def test_presets_select_their_sentence_encoder() -> None:
    tiny, full = PRESETS["tiny"].video, PRESETS["svd-256"].video
    assert tiny is not None
    assert full is not None
    assert isinstance(sentence_encoder(tiny), WordVectors)
    assert isinstance(sentence_encoder(full), OpenClipText)


@pytest.mark.parametrize(
    ("file", "damage", "said"),
    [
        ("text_encoder/model.safetensors", None, "text_encoder"),
        ("text_encoder/model.safetensors", 1000, "cut short or damaged"),
        ("text_encoder/config.json", None, "there is no text_encoder/config.json here"),
        ("text_encoder/config.json", 10, "cut short or damaged"),
        ("tokenizer/vocab.json", None, "there is no tokenizer.json and no vocab.json"),
        ("tokenizer/merges.txt", None, "no vocab.json with merges.txt"),
    ],
)
def test_open_clip_text_with_a_missing_or_truncated_file_raises_one_sentence(
    tmp_path: Path, file: str, damage: int | None, said: str
) -> None:
    path = text_folder(tmp_path) / file
    if damage is None:
        path.unlink()
    else:
        path.write_bytes(path.read_bytes()[:damage])
    with pytest.raises(WeightsError, match=said) as raised:
        OpenClipText(SENTENCE_DIM, tmp_path).embed(["lift"])
    assert "\n" not in str(raised.value)


def test_open_clip_text_of_another_width_raises(tower: Path) -> None:
    with pytest.raises(WeightsError, match="it embeds a sentence as 32 numbers, the video model expects 64"):
        OpenClipText(64, tower).embed(["lift"])
    with pytest.raises(WeightsError, match="has 3 numbers, the model expects 32"):
        OpenClipText(SENTENCE_DIM, tower, {"lift": torch.zeros(3)})


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a checkpoint that knows one sentence, whose pretrained weights are gone."""
    root = tmp_path_factory.mktemp("checkpoint")
    weights = svd_folder(root / "weights")
    known = OpenClipText(SENTENCE_DIM, weights).embed(["lift"])[0, 0]
    folder = make_checkpoint(root / "policy", svd_policy(), weights=weights, sentences={"lift": known})
    shutil.rmtree(weights)
    return folder


@pytest.mark.usefixtures("_offline")
def test_checkpoint_embeds_sentences_never_met_after_its_files_are_gone(
    checkpoint: Path, tower: Path, tmp_path: Path
) -> None:
    """With the tower of its weights, whose seed is that of `tower`; the loaded one needs no file and no hub."""
    copy = shutil.copytree(checkpoint, tmp_path / "copy")
    model, _ = load(copy)
    shutil.rmtree(copy)
    assert isinstance(model, VideoActionModel)
    expected = OpenClipText(SENTENCE_DIM, tower).embed(["pour the tea", "lift"])
    assert torch.equal(model.sentences.embed(["pour the tea", "lift"]), expected)


@pytest.mark.usefixtures("_offline")
def test_checkpoint_without_a_tower_asks_no_hub_and_names_the_sentence(
    checkpoint: Path, tmp_path: Path
) -> None:
    """As versions before 0.3 wrote them."""
    old = shutil.copytree(checkpoint, tmp_path / "old")
    for part in ("text_encoder", "tokenizer"):
        shutil.rmtree(old / part)
    # as `policy.checkpoint.load` makes it
    sentences = OpenClipText(SENTENCE_DIM, None, known_sentences(old), beside=(old,), download=False)
    assert sentences.embed(["lift"]).isfinite().all()
    with pytest.raises(WeightsError, match="holds no text tower, and 'pour the tea' is none of the 1"):
        sentences.embed(["pour the tea"])


@pytest.mark.usefixtures("_offline")
def test_tower_of_other_weights_comes_before_the_hub(tmp_path: Path, tower: Path) -> None:
    without, own = tmp_path / "without", text_folder(tmp_path / "own", seed=1)
    without.mkdir()
    other = OpenClipText(SENTENCE_DIM, tower).embed(["lift"])
    beside = OpenClipText(SENTENCE_DIM, beside=(without, own, tower))
    assert torch.equal(beside.embed(["lift"]), OpenClipText(SENTENCE_DIM, own).embed(["lift"]))
    assert not torch.equal(beside.embed(["lift"]), other)
    mixed = OpenClipText(SENTENCE_DIM, None, {"lift": other[0, 0]}, beside=(own,))
    with pytest.raises(OtherTowerError, match=f"{own}: its text tower is not the one"):
        mixed.load()


def test_tower_whose_config_describes_more_weights_than_its_file_raises(tmp_path: Path) -> None:
    """Before memory is allocated: a configuration may come with an untrusted checkpoint."""
    config = text_folder(tmp_path) / "text_encoder" / "config.json"
    config.write_text(config.read_text().replace('"num_hidden_layers": 2', '"num_hidden_layers": 2000000'))
    with pytest.raises(WeightsError, match=r"cut short or damaged .*describes .* weights"):
        OpenClipText(SENTENCE_DIM, tmp_path).embed(["lift"])
