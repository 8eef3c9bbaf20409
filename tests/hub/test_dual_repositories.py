"""Dual models: what config.json and the processor's JSON leave out is what transformers would take."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from hilbert.core import AudioProcessing, ImageProcessing, Modality, Task, tasks_of
from hilbert.errors import ModelError
from hilbert.hub import resolve
from hilbert.hub.files import MAX_JSON_BYTES
from hilbert.hub.towers import read_dual
from hilbert.testing.towers import tiny_dual


def write(folder: Path, **files: Any) -> Path:
    folder.mkdir(exist_ok=True)
    for name, value in files.items():
        (folder / f"{name}.json").write_text(json.dumps(value))
    return folder


@pytest.mark.parametrize("family", ["clip", "siglip", "clap"])
def test_defaults_are_those_of_transformers(family: str, tmp_path: Path) -> None:
    from transformers import AutoConfig

    tokens = {"pad_token": "</s>", "added_tokens_decoder": {"1": {"content": "</s>"}}}
    folder = write(tmp_path, config={"model_type": family}, tokenizer_config=tokens)
    if family == "clap":
        write(folder, preprocessor_config={"truncation": "rand_trunc"})
    dual, theirs = read_dual(folder, {"model_type": family}), AutoConfig.for_model(family)
    text = dual.config["text_config"]
    for key in set(text) - {"projection_size"}:
        assert text[key] == getattr(theirs.text_config, key), key
    if family == "clap":
        audio = theirs.audio_config
        assert isinstance(dual.tower.processing, AudioProcessing)
        assert dual.tower.shape == (1, 1001, audio.num_mel_bins)
        assert dual.modules[-1].out_features == theirs.projection_dim
        return
    vision = theirs.vision_config
    patches = (vision.image_size // vision.patch_size) ** 2
    assert dual.tower.num_tokens == patches + (family == "clip")
    assert dual.tower.shape == (3, vision.image_size, vision.image_size)
    width = theirs.projection_dim if family == "clip" else theirs.text_config.hidden_size
    assert dual.modules[-1].out_features == width


@pytest.mark.parametrize("family", ["clip", "siglip"])
def test_silent_image_processors(family: str, tmp_path: Path) -> None:
    from transformers import CLIPImageProcessor, SiglipImageProcessor

    theirs = (CLIPImageProcessor if family == "clip" else SiglipImageProcessor)()
    tokens = {"pad_token": "</s>", "added_tokens_decoder": {"1": {"content": "</s>"}}}
    folder = write(tmp_path, config={"model_type": family}, tokenizer_config=tokens)
    ours = read_dual(folder, {"model_type": family}).tower.processing
    assert isinstance(ours, ImageProcessing)
    assert ours.mean == tuple(theirs.image_mean) and ours.std == tuple(theirs.image_std)
    assert (ours.crop_height == 224) is bool(getattr(theirs, "do_center_crop", False))
    assert ours.resample == int(theirs.resample)
    assert ours.scale == theirs.rescale_factor


def test_the_newer_processor_file_and_old_config_wins(tmp_path: Path) -> None:
    nested = {"image_processor": {"size": {"height": 64, "width": 48}, "do_center_crop": False}}
    config = {
        "model_type": "clip",
        "vision_config": {"image_size": [64, 48], "patch_size": 16},
        "text_config": {"vocab_size": 7},
        "text_config_dict": {"vocab_size": 9},
    }
    dual = read_dual(write(tmp_path, config=config, processor_config=nested), config)
    assert dual.tower.shape == (3, 64, 48) and dual.tower.num_tokens == 13
    assert dual.config["text_config"]["vocab_size"] == 9


@pytest.mark.parametrize(
    ("config", "processor", "reason"),
    [
        ({"vision_config": {"image_size": 336}}, {}, "224 x 224.*336 x 336"),
        ({}, {"size": "large"}, "neither a shortest_edge"),
        ({"vision_config": {"patch_size": 0}}, {}, "patch_size"),
        ({"projection_dim": "wide"}, {}, "projection_dim"),
    ],
)
def test_contradictions(
    config: dict[str, Any], processor: dict[str, Any], reason: str, tmp_path: Path
) -> None:
    config = {"model_type": "clip", **config}
    with pytest.raises(ModelError, match=reason):
        read_dual(write(tmp_path, config=config, preprocessor_config=processor), config)


def test_the_padding_of_a_large_tokenizer(tmp_path: Path) -> None:
    tokenizer = {"model": "x" * MAX_JSON_BYTES, "added_tokens": [{"id": 7, "content": "<pad>"}]}
    folder = write(
        tmp_path,
        config={"model_type": "siglip"},
        tokenizer_config={"pad_token": "<pad>"},
        tokenizer=tokenizer,
    )
    assert read_dual(folder, {"model_type": "siglip"}).text.padding_id == 7
    (folder / "tokenizer.json").unlink()
    with pytest.raises(ModelError, match="'<pad>' has no id there, nor in tokenizer"):
        read_dual(folder, {"model_type": "siglip"})


def test_clap_whose_files_disagree_on_fusion(tmp_path: Path) -> None:
    config = {"model_type": "clap", "audio_config": {"enable_fusion": False}}
    with pytest.raises(ModelError, match="enable_fusion"):
        read_dual(write(tmp_path, preprocessor_config={"truncation": "fusion"}), config)


def test_what_a_dual_model_is_for(tmp_path: Path) -> None:
    spec = resolve(str(tiny_dual("clip", tmp_path / "clip", layout="transformer")))
    assert spec.modalities == (Modality.TEXT, Modality.IMAGE)
    assert tasks_of(spec) == (Task.EMBED, Task.RERANK, Task.IMAGE_EMBED)
    assert (spec.kind, spec.dimensions, spec.normalize, spec.family) == ("transformer", 24, True, "clip")
