"""Sentence embeddings do not depend on the batch, and the tower is loaded only for unknown sentences."""

from pathlib import Path

import pytest
import torch

from backbones import SENTENCE_DIM, svd_config, text_folder
from policy.presets import PRESETS
from policy.text_encoder import OpenClipText, WordVectors, sentence_encoder
from policy.weights import WeightsError

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
