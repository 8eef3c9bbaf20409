"""Dual models: config.json and the processor's JSON to towers, CLIP, SigLIP and CLAP.

The two sides of such a model meet in one space. Values that a repository leaves out are those of
transformers' configuration classes, which is what transformers would load. Never imports torch.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from hilbert.core import (
    AudioProcessing,
    ImageProcessing,
    Modality,
    PoolingMode,
    PoolingModule,
    TextProjectionModule,
    TextTower,
    Tower,
)
from hilbert.core.spec import Module
from hilbert.errors import ModelError
from hilbert.hub.files import read_object

# Pillow's bicubic filter, the default of CLIP's and SigLIP's image processors.
_BICUBIC = 3
_TEXT_DEFAULTS: dict[str, dict[str, Any]] = {
    "clip": {
        "model_type": "clip_text_model", "hidden_size": 512, "vocab_size": 49_408,
        "max_position_embeddings": 77, "eos_token_id": 49_407,
    },
    "siglip": {
        "model_type": "siglip_text_model", "hidden_size": 768, "vocab_size": 32_000,
        "max_position_embeddings": 64,
    },
    "clap": {
        "model_type": "clap_text_model", "hidden_size": 768, "vocab_size": 50_265,
        "max_position_embeddings": 514, "pad_token_id": 1, "projection_dim": 512,
    },
}  # fmt: skip
_TOWER_DEFAULTS: dict[str, dict[str, Any]] = {
    "clip": {"image_size": 224, "patch_size": 32, "num_channels": 3},
    "siglip": {"image_size": 224, "patch_size": 16, "num_channels": 3},
    "clap": {"spec_size": 256, "patch_stride": (4, 4), "depths": (2, 2, 6, 2), "enable_fusion": False},
}
# What transformers' processor classes take where preprocessor_config.json is silent.
_IMAGE_DEFAULTS: dict[str, dict[str, Any]] = {
    "clip": {
        "size": {"shortest_edge": 224},
        "do_center_crop": True,
        "crop_size": {"height": 224, "width": 224},
        "image_mean": (0.48145466, 0.4578275, 0.40821073),
        "image_std": (0.26862954, 0.26130258, 0.27577711),
    },
    "siglip": {
        "size": {"height": 224, "width": 224},
        "image_mean": (0.5, 0.5, 0.5),
        "image_std": (0.5, 0.5, 0.5),
    },
}
_POOLING = {"clip": PoolingMode.LAST, "siglip": PoolingMode.LAST, "clap": PoolingMode.CLS}


class _Tokenizer(msgspec.Struct):
    """The part of tokenizer.json that is needed; the rest (SigLIP 2: 34 MB) is skipped unread."""

    added_tokens: list[dict[str, Any]] = []


@dataclass(frozen=True)
class Dual:
    """What is read of a dual model.

    Attributes:
        config: config.json with the text part complete.
        modules: from the text's hidden states to the common space.
        text: how the text side wants its token ids.
        tower: the other side.
        normalize: whether the model's own features have length 1 (CLAP's have).
        lower_case: the tokenizer class lower-cases, whatever tokenizer.json says.
    """

    config: dict[str, Any]
    modules: tuple[Module, ...]
    text: TextTower
    tower: Tower
    normalize: bool
    lower_case: bool


def is_dual(config: dict[str, Any]) -> bool:
    """Whether config.json describes a dual model that Hilbert runs itself."""
    return config.get("model_type") in _TEXT_DEFAULTS


# Images for sentence-transformers go to it as they are, up to so many pixels: 12 MiB of features.
OTHER_PIXELS = 1024 * 1024
# What one costs there: patches of 14 pixels, four merged to one, as the Qwen family has it.
_OTHER_TOKENS = OTHER_PIXELS // (28 * 28)


def other_tower(folder: Path, config: dict[str, Any], ways: Any) -> Tower | None:
    """How images reach a model that sentence-transformers runs: as pixels. None where it takes none.

    Args:
        folder: of its Transformer module.
        config: its config.json.
        ways: `modality_config` of sentence_bert_config.json, or None.
    """
    has_processor = any((folder / f"{name}_config.json").is_file() for name in ("processor", "preprocessor"))
    sees = any(isinstance(config.get(key), dict) for key in ("vision_config", "vlm_config"))
    takes = sees if not isinstance(ways, dict) else "image" in ways or ("message" in ways and sees)
    if not (has_processor and takes):
        return None
    processing = ImageProcessing(scale=1.0, max_pixels=OTHER_PIXELS)
    return Tower(Modality.IMAGE, (3, 1024, 1024), _OTHER_TOKENS, processing)


def read_dual(folder: Path, config: dict[str, Any]) -> Dual:
    """Describe the dual model in a folder.

    Raises:
        ModelError: its JSON describes a tower of no fixed size, or contradicts itself.
    """
    family = str(config["model_type"])
    text = _part(config, "text_config", _TEXT_DEFAULTS[family])
    tokenizer = read_object(folder / "tokenizer_config.json")
    if family == "clap":
        tower = _audio_tower(folder, _part(config, "audio_config", _TOWER_DEFAULTS[family]))
        width = _whole(text, "projection_dim", folder)
    else:
        tower = _image_tower(family, folder, _part(config, "vision_config", _TOWER_DEFAULTS[family]))
        width = _whole(config, "projection_dim", folder, 512)
        if family == "siglip":
            width = _whole(text, "projection_size", folder, int(text["hidden_size"]))
    return Dual(
        config={**config, "text_config": text},
        modules=(PoolingModule((_POOLING[family],)), TextProjectionModule(width)),
        text=_text_tower(family, folder, text, tokenizer),
        tower=tower,
        normalize=family == "clap",
        lower_case=_class_of(tokenizer) == "Siglip2Tokenizer" or _lower_cases(tokenizer),
    )


def _class_of(tokenizer: dict[str, Any]) -> str:
    return str(tokenizer.get("tokenizer_class") or "").removesuffix("Fast")


def _lower_cases(tokenizer: dict[str, Any]) -> bool:
    return _class_of(tokenizer) == "SiglipTokenizer" and bool(tokenizer.get("do_lower_case", True))


def _part(config: dict[str, Any], name: str, defaults: dict[str, Any]) -> dict[str, Any]:
    """One side's configuration; ``text_config_dict``, where old files have it, wins over ``text_config``."""
    given = config.get(name)
    old = config.get(f"{name}_dict")
    part = defaults | (given if isinstance(given, dict) else {})
    return part | (defaults | old if isinstance(old, dict) else {})


def _whole(config: dict[str, Any], key: str, source: Path, default: int | None = None) -> int:
    value = config.get(key)
    value = default if value is None else value
    if isinstance(value, int) and not isinstance(value, bool) and value > 0:
        return value
    raise ModelError(f"{source / 'config.json'}: {key} must be a positive whole number, got {value!r}.")


def _pair(value: Any, what: str, source: Path) -> tuple[int, int]:
    """A height and a width, from one number or two."""
    values = (value, value) if isinstance(value, int) else tuple(value or ())
    if len(values) != 2 or not all(isinstance(v, int) and v > 0 for v in values):
        raise ModelError(f"{source}: {what} must be one positive whole number or two, got {value!r}.")
    return values[0], values[1]


def _text_tower(family: str, folder: Path, text: dict[str, Any], tokenizer: dict[str, Any]) -> TextTower:
    if family == "clip":
        # Transformers: configurations with the wrong id 2 mean the token with the highest id.
        end = text.get("eos_token_id")
        return TextTower(end_id=-1 if end == 2 or not isinstance(end, int) else end)
    if family == "siglip":
        side = tokenizer.get("padding_side")
        left = side == "left" or (side is None and _class_of(tokenizer) == "Siglip2Tokenizer")
        return TextTower(
            length=_whole(text, "max_position_embeddings", folder),
            padding_id=_padding_id(folder, tokenizer),
            pads_left=left,
            strips_punctuation=_class_of(tokenizer) == "SiglipTokenizer",
        )
    return TextTower()


def _padding_id(folder: Path, tokenizer: dict[str, Any]) -> int:
    """The id of the tokenizer's padding token, as tokenizer.json and its configuration have it."""
    token = tokenizer.get("pad_token", "</s>")
    token = token.get("content") if isinstance(token, dict) else token
    listed = tokenizer.get("added_tokens_decoder")
    if isinstance(listed, dict):
        for number, entry in listed.items():
            if isinstance(entry, dict) and entry.get("content") == token and str(number).isdigit():
                return int(number)
    for entry in _added_tokens(folder):
        if entry.get("content") == token and isinstance(entry.get("id"), int):
            return int(entry["id"])
    raise ModelError(
        f"{folder / 'tokenizer_config.json'}: the padding token {token!r} has no id there, nor in "
        "tokenizer.json."
    )


def _added_tokens(folder: Path) -> list[dict[str, Any]]:
    try:
        data = (folder / "tokenizer.json").read_bytes()
        return msgspec.json.decode(data, type=_Tokenizer).added_tokens
    except (OSError, msgspec.MsgspecError):
        return []


def _image_tower(family: str, folder: Path, vision: dict[str, Any]) -> Tower:
    source = folder / "config.json"
    height, width = _pair(vision["image_size"], "image_size", source)
    patch_height, patch_width = _pair(vision["patch_size"], "patch_size", source)
    patches = (height // patch_height) * (width // patch_width)
    processing = _image_processing(folder, _IMAGE_DEFAULTS[family])
    made = _made_size(processing)
    if made != (height, width):
        raise ModelError(
            f"{folder / 'preprocessor_config.json'} makes images of {made[0]} x {made[1]}, and the tower of "
            f"config.json reads {height} x {width}."
        )
    return Tower(
        Modality.IMAGE,
        (_whole(vision, "num_channels", folder), height, width),
        patches + (family == "clip"),
        processing,
    )


def _made_size(processing: ImageProcessing) -> tuple[int, int]:
    if processing.crop_height:
        return processing.crop_height, processing.crop_width
    return processing.height, processing.width


def processor_settings(folder: Path, part: str) -> dict[str, Any]:
    """What the processor's JSON says of one part, ``"image_processor"`` or ``"feature_extractor"``.

    A file of the part's own (preprocessor_config.json) is the older form; transformers 5 writes all parts
    into processor_config.json.
    """
    nested = read_object(folder / "processor_config.json").get(part)
    own = read_object(folder / "preprocessor_config.json")
    inner = own.get(part)
    if isinstance(nested, dict):
        return nested
    return inner if isinstance(inner, dict) else own


def _image_processing(folder: Path, defaults: dict[str, Any]) -> ImageProcessing:
    given = {k: v for k, v in processor_settings(folder, "image_processor").items() if v is not None}
    settings = defaults | given
    edge = height = width = crop_height = crop_width = 0
    source = folder / "preprocessor_config.json"
    if settings.get("do_resize", True):
        edge, height, width = _resize(settings["size"], source, "shortest_edge" in defaults["size"])
    if settings.get("do_center_crop", False):
        crop = settings.get("crop_size")
        given_pair = (crop.get("height"), crop.get("width")) if isinstance(crop, dict) else crop
        crop_height, crop_width = _pair(given_pair, "crop_size", source)
    is_normal = settings.get("do_normalize", True)
    resample = settings.get("resample", _BICUBIC)
    return ImageProcessing(
        shortest_edge=edge,
        height=height,
        width=width,
        resample=resample if isinstance(resample, int) and 0 <= resample <= 5 else _BICUBIC,
        crop_height=crop_height,
        crop_width=crop_width,
        scale=float(settings.get("rescale_factor", 1 / 255)) if settings.get("do_rescale", True) else 1.0,
        mean=tuple(map(float, settings["image_mean"])) if is_normal else (),
        std=tuple(map(float, settings["image_std"])) if is_normal else (),
    )


def _resize(size: Any, source: Path, is_edge: bool) -> tuple[int, int, int]:
    """Shortest edge, height and width; a bare number is an edge where the processor's default is one."""
    if isinstance(size, int):
        size = {"shortest_edge": size} if is_edge else {"height": size, "width": size}
    if isinstance(size, dict) and isinstance(size.get("shortest_edge"), int) and "longest_edge" not in size:
        return size["shortest_edge"], 0, 0
    if isinstance(size, dict) and {"height", "width"} <= size.keys():
        return 0, *_pair((size["height"], size["width"]), "size", source)
    raise ModelError(f"{source}: size {size!r} is neither a shortest_edge nor a height and a width.")


def _audio_tower(folder: Path, audio: dict[str, Any]) -> Tower:
    given = processor_settings(folder, "feature_extractor")
    source = folder / "preprocessor_config.json"
    base = AudioProcessing()
    truncation = given.get("truncation", "fusion")
    is_fused = truncation == "fusion"
    if truncation not in ("fusion", "rand_trunc"):
        raise ModelError(f"{source}: truncation {truncation!r} is neither fusion nor rand_trunc.")
    if bool(audio["enable_fusion"]) != is_fused:
        raise ModelError(
            f"{source}: truncation is {truncation!r}, and enable_fusion of config.json is "
            f"{audio['enable_fusion']!r}."
        )
    processing = AudioProcessing(
        sampling_rate=_whole(given, "sampling_rate", folder, base.sampling_rate),
        num_mels=_whole(given, "feature_size", folder, base.num_mels),
        window=_whole(given, "fft_window_size", folder, base.window),
        hop=_whole(given, "hop_length", folder, base.hop),
        max_seconds=float(given.get("max_length_s", base.max_seconds)),
        min_hertz=float(given.get("frequency_min", base.min_hertz)),
        max_hertz=float(given.get("frequency_max", base.max_hertz)),
        padding=str(given.get("padding", base.padding)),
        is_fused=is_fused,
    )
    frames = processing.max_samples // processing.hop + 1
    rows, columns = _pair(audio["patch_stride"], "patch_stride", source)
    size = _whole(audio, "spec_size", folder)
    # Each stage has a quarter of the tokens at twice the width: its layers cost as much as the last one's.
    last = 4 ** (len(audio["depths"]) - 1)
    return Tower(
        Modality.AUDIO,
        (4 if is_fused else 1, frames, processing.num_mels),
        max(1, (size // rows) * (size // columns) // last),
        processing,
    )
