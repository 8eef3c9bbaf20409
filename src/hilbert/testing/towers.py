"""Tiny random dual models: CLIP, SigLIP and CLAP folders that transformers and Hilbert both load.

Beside what `models` writes for text there is a tower and a preprocessor_config.json as the hub's
repositories have it. torch and transformers are imported inside the call.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hilbert.testing.models import FAMILIES, Dense, Family, _randomise, _save_dense, _save_tokenizer, _write
from hilbert.testing.vocabularies import byte_fallback_bpe, byte_level_bpe, unigram

if TYPE_CHECKING:
    from tokenizers import Tokenizer

IMAGE_SIZE = 32
HIDDEN_SIZE = 64
PROJECTION = 48

_SHARED = {"hidden_size": HIDDEN_SIZE, "num_hidden_layers": 2, "num_attention_heads": 4}
_WIDE = {**_SHARED, "intermediate_size": 2 * HIDDEN_SIZE}
_VISION = {**_WIDE, "image_size": IMAGE_SIZE, "patch_size": 8}


@dataclass(frozen=True, slots=True)
class _Recipe:
    """How a dual model is made.

    Attributes:
        text: how its tokenizer is made and configured.
        parts: the values of config.json, given the size of the vocabulary.
        preprocessor: preprocessor_config.json.
        length: `model_max_length` of the tokenizer.
    """

    text: Family
    parts: Callable[[int], dict[str, Any]]
    preprocessor: Mapping[str, Any]
    length: int


def _clip(vocab_size: int) -> dict[str, Any]:
    text = {**_WIDE, "vocab_size": vocab_size, "max_position_embeddings": 24, "eos_token_id": 1}
    return {"text_config": text, "vision_config": _VISION, "projection_dim": PROJECTION}


def _siglip(vocab_size: int) -> dict[str, Any]:
    text = {**_WIDE, "vocab_size": vocab_size, "max_position_embeddings": 16, "projection_size": PROJECTION}
    return {"text_config": text, "vision_config": _VISION | {"hidden_size": PROJECTION}}


def _clap(vocab_size: int) -> dict[str, Any]:
    text = {**_WIDE, "vocab_size": vocab_size, "max_position_embeddings": 34, "projection_dim": PROJECTION}
    audio = {
        "spec_size": 64,
        "num_mel_bins": 64,
        "patch_embeds_hidden_size": 16,
        "depths": [2, 2],
        "num_attention_heads": [2, 4],
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "projection_dim": PROJECTION,
    }
    return {"text_config": text, "audio_config": audio, "projection_dim": PROJECTION}


def _chinese_clip(vocab_size: int) -> dict[str, Any]:
    text = {**_WIDE, "vocab_size": vocab_size, "max_position_embeddings": 32, "type_vocab_size": 2}
    return {"text_config": text, "vision_config": _VISION, "projection_dim": PROJECTION}


_CLIP_IMAGES = {
    "image_processor_type": "CLIPImageProcessor",
    "crop_size": {"height": IMAGE_SIZE, "width": IMAGE_SIZE},
    "do_center_crop": True,
    "do_convert_rgb": True,
    "do_normalize": True,
    "do_rescale": True,
    "do_resize": True,
    "image_mean": [0.48145466, 0.4578275, 0.40821073],
    "image_std": [0.26862954, 0.26130258, 0.27577711],
    "resample": 3,
    "rescale_factor": 1 / 255,
    "size": {"shortest_edge": IMAGE_SIZE},
    "processor_class": "CLIPProcessor",
}
_SIGLIP_IMAGES = {
    "image_processor_type": "SiglipImageProcessor",
    "do_normalize": True,
    "do_rescale": True,
    "do_resize": True,
    "image_mean": [0.5, 0.5, 0.5],
    "image_std": [0.5, 0.5, 0.5],
    "resample": 3,
    "rescale_factor": 1 / 255,
    "size": {"height": IMAGE_SIZE, "width": IMAGE_SIZE},
    "processor_class": "SiglipProcessor",
}
_CLAP_SOUNDS = {
    "feature_extractor_type": "ClapFeatureExtractor",
    "feature_size": 64,
    "sampling_rate": 8000,
    "hop_length": 128,
    "fft_window_size": 1024,
    "max_length_s": 1,
    "frequency_min": 0,
    "frequency_max": 4000,
    "padding": "repeatpad",
    "truncation": "rand_trunc",
    "padding_value": 0.0,
    "return_attention_mask": False,
    "processor_class": "ClapProcessor",
}
_ROBERTA_TOKENS = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>", "unk_token": "<unk>"}

RECIPES: dict[str, _Recipe] = {
    "clip": _Recipe(
        Family(
            {},
            partial(byte_level_bpe, ["<start>", "<end>"], ["<start>"], ["<end>"]),
            {"bos_token": "<start>", "eos_token": "<end>", "pad_token": "<end>"},
        ),
        _clip,
        _CLIP_IMAGES,
        24,
    ),
    "chinese_clip": _Recipe(
        FAMILIES["bert"],
        _chinese_clip,
        _CLIP_IMAGES
        | {
            "image_processor_type": "ChineseCLIPImageProcessor",
            "size": {"height": IMAGE_SIZE, "width": IMAGE_SIZE},
            "processor_class": "ChineseCLIPProcessor",
        },
        32,
    ),
    "siglip": _Recipe(
        Family(
            {},
            partial(byte_fallback_bpe, ["<pad>", "</s>", "<unk>"], [], ["</s>"]),
            {"pad_token": "<pad>", "eos_token": "</s>", "unk_token": "<unk>"},
        ),
        _siglip,
        _SIGLIP_IMAGES,
        16,
    ),
    "clap": _Recipe(
        Family(
            {},
            partial(unigram, ["<s>", "<pad>", "</s>", "<unk>"], ["<s>"], ["</s>"], "<unk>"),
            _ROBERTA_TOKENS,
        ),
        _clap,
        _CLAP_SOUNDS,
        32,
    ),
}


def tiny_dual(
    family: str,
    folder: str | Path,
    *,
    layout: str = "plain",
    seed: int = 0,
    is_fused: bool = False,
    text: Mapping[str, Any] | None = None,
    preprocessor: Mapping[str, Any] | None = None,
) -> Path:
    """Write a tiny random dual model and return its folder.

    Images of 32 x 32 in patches of 8, sounds of one second at 8 kHz, vectors of 48 numbers.

    Args:
        family: a key of `RECIPES`: ``"clip"``, ``"siglip"``, ``"clap"``, or ``"chinese_clip"``, which runs
            through sentence-transformers.
        folder: where to write; made if it is not there.
        layout: ``"plain"``; ``"clip-module"``: as sentence-transformers' CLIPModel module saved it;
            ``"transformer"``: as sentence-transformers 6 saves it, with a Dense layer to 24 numbers and a
            Normalize behind.
        seed: of all weights.
        is_fused: CLAP with fusion of four spectrograms.
        text: values of `text_config`.
        preprocessor: values of preprocessor_config.json.
    Raises:
        KeyError: the family is unknown.
    """
    import torch
    import transformers

    folder, recipe = Path(folder), RECIPES[family]
    inner = folder / "0_CLIPModel" if layout == "clip-module" else folder
    inner.mkdir(parents=True, exist_ok=True)
    tokenizer = recipe.text.tokenizer()
    parts = recipe.parts(tokenizer.get_vocab_size())
    parts["text_config"] = {**parts["text_config"], **(text or {})}
    settings = {**recipe.preprocessor, **(preprocessor or {})}
    if is_fused:
        parts["audio_config"] |= {"enable_fusion": True, "fusion_type": "aff_2d", "aff_block_r": 2}
        settings["truncation"] = "fusion"
    model = transformers.AutoModel.from_config(transformers.AutoConfig.for_model(family, **parts))  # type: ignore[no-untyped-call]  # untyped there
    model = model.to(torch.float32).eval()
    _randomise(model, torch.Generator().manual_seed(seed), is_centred_at_zero=False)
    model.save_pretrained(inner)
    _save_tokenizer(inner, tokenizer, recipe.text, recipe.length)
    _write(inner / "preprocessor_config.json", settings)
    if layout == "clip-module":
        _write_modules(folder, [("0_CLIPModel", "sentence_transformers.models.CLIPModel")])
    elif layout == "transformer":
        _write_transformer(folder, family, seed)
    return folder


def _write_modules(folder: Path, modules: list[tuple[str, str]]) -> None:
    listed = [{"idx": i, "name": str(i), "path": p, "type": t} for i, (p, t) in enumerate(modules)]
    _write(folder / "modules.json", listed)
    versions = {"sentence_transformers": "6.2.0", "transformers": "5.23.0", "pytorch": "2.13.0"}
    _write(
        folder / "config_sentence_transformers.json",
        {"__version__": versions, "prompts": {}, "default_prompt_name": None, "similarity_fn_name": "cosine"},
    )


def _write_transformer(folder: Path, family: str, seed: int) -> None:
    other = "audio" if family == "clap" else "image"
    _write(
        folder / "sentence_bert_config.json",
        {
            "transformer_task": "feature-extraction",
            "modality_config": {
                modality: {"method": f"get_{modality}_features", "method_output_name": "pooler_output"}
                for modality in ("text", other)
            },
            "module_output_name": "sentence_embedding",
        },
    )
    base = "sentence_transformers.base.modules"
    _save_dense(folder / "1_Dense", Dense(24), PROJECTION, seed)
    names = [("", f"{base}.transformer.Transformer"), ("1_Dense", f"{base}.dense.Dense")]
    _write_modules(folder, [*names, ("2_Normalize", f"{base}.normalize.Normalize")])


def tiny_retriever(family: str, folder: str | Path, *, seed: int = 0) -> Path:
    """Write a tiny random visual retriever as transformers saves it, and return its folder.

    Token vectors of 24 numbers. ColPali's images are 32 x 32 in patches of 8; ColQwen2's keep their shape,
    a vector for each 28 x 28 pixels; ColModernVBert's are tiles of 32 x 32 and the whole once more.

    Args:
        family: ``"colpali"``, ``"colqwen2"`` or ``"colmodernvbert"``.
        folder: where to write; made if it is not there.
        seed: of all weights.
    """
    import torch
    import transformers

    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    recipe, parts, preprocessor = _RETRIEVERS[family]
    tokenizer = recipe.tokenizer()
    text, rest = parts(tokenizer)
    text |= {"vocab_size": tokenizer.get_vocab_size(), "max_position_embeddings": 128}
    config = transformers.AutoConfig.for_model(
        family, vlm_config={**rest, "text_config": text}, embedding_dim=24
    )
    names = {"colpali": "ColPali", "colqwen2": "ColQwen2", "colmodernvbert": "ColModernVBert"}
    model = getattr(transformers, f"{names[family]}ForRetrieval")(config).to(torch.float32).eval()
    _randomise(model, torch.Generator().manual_seed(seed), is_centred_at_zero=family == "colpali")
    model.save_pretrained(folder)
    _save_tokenizer(folder, tokenizer, recipe, 128)
    _write(folder / "preprocessor_config.json", preprocessor)
    keys = ("processor_class", "image_seq_length", "image_seq_len")
    _write(folder / "processor_config.json", {key: preprocessor[key] for key in keys if key in preprocessor})
    return folder


def _colpali(tokenizer: Tokenizer) -> tuple[dict[str, Any], dict[str, Any]]:
    heads = {"num_key_value_heads": 1, "head_dim": 16, "pad_token_id": 0}
    vision = {"model_type": "siglip_vision_model", "projection_dim": HIDDEN_SIZE, "vision_use_head": False}
    image_id = tokenizer.token_to_id("<image>")
    sizes = {"projection_dim": HIDDEN_SIZE, "hidden_size": HIDDEN_SIZE}
    rest = {"vision_config": _VISION | vision, "image_token_index": image_id, **sizes}
    return {"model_type": "gemma", **_WIDE, **heads}, {"model_type": "paligemma", **rest}


def _colqwen2(tokenizer: Tokenizer) -> tuple[dict[str, Any], dict[str, Any]]:
    rope = {"type": "mrope", "rope_type": "default", "mrope_section": [2, 3, 3]}
    heads = {"num_key_value_heads": 2, "rope_scaling": rope, "pad_token_id": 0}
    vision = {"depth": 2, "embed_dim": 32, "hidden_size": HIDDEN_SIZE, "num_heads": 2, "mlp_ratio": 2}
    ids = {
        f"{name}_token_id": tokenizer.token_to_id(f"<|{name}|>") for name in ("vision_start", "vision_end")
    }
    ids |= {f"{name}_token_id": tokenizer.token_to_id(f"<|{name}_pad|>") for name in ("image", "video")}
    rest = {"vision_config": vision | {"patch_size": 14, "spatial_merge_size": 2}, **ids}
    return {"model_type": "qwen2_vl_text", **_WIDE, **heads}, {"model_type": "qwen2_vl", **rest}


def _colmodernvbert(tokenizer: Tokenizer) -> tuple[dict[str, Any], dict[str, Any]]:
    ids = {f"{name}_token_id": tokenizer.token_to_id(f"[{name.upper()}]") for name in ("cls", "sep", "pad")}
    local = {"local_attention": 16, "global_attn_every_n_layers": 2}
    vision = {"model_type": "siglip_vision_model", "vision_use_head": False}
    image_id = tokenizer.token_to_id("<image>")
    rest = {"vision_config": _VISION | vision, "image_token_id": image_id, "pixel_shuffle_factor": 2}
    return {"model_type": "modernbert", **_WIDE, **local, **ids}, {"model_type": "modernvbert", **rest}


_PALI_NAMES = {"pad_token": "<pad>", "eos_token": "<eos>", "bos_token": "<bos>", "unk_token": "<unk>"}
_QWEN_NAMES = {"pad_token": "<|endoftext|>", "eos_token": "<|im_end|>"}
_QWEN_SPECIAL = [
    f"<|{name}|>" for name in ("im_start", "vision_start", "vision_end", "image_pad", "video_pad")
]
_VBERT_SPECIAL = ["<image>", "<fake_token_around_image>", "<end_of_utterance>", "<global-img>"]
_VBERT_SPECIAL += [f"<row_{row}_col_{column}>" for row in (1, 2) for column in (1, 2)]
_RETRIEVERS: dict[str, tuple[Family, Callable[..., Any], dict[str, Any]]] = {
    "colpali": (
        Family({}, partial(byte_fallback_bpe, [*_PALI_NAMES.values(), "<image>"], [], []), _PALI_NAMES),
        _colpali,
        _SIGLIP_IMAGES | {"processor_class": "ColPaliProcessor", "image_seq_length": (IMAGE_SIZE // 8) ** 2},
    ),
    "colqwen2": (
        Family({}, partial(byte_level_bpe, [*_QWEN_NAMES.values(), *_QWEN_SPECIAL], [], []), _QWEN_NAMES),
        _colqwen2,
        {
            "image_processor_type": "Qwen2VLImageProcessor",
            "patch_size": 14,
            "merge_size": 2,
            "temporal_patch_size": 2,
            "min_pixels": 2 * 28 * 28,
            "max_pixels": 16 * 28 * 28,
            "image_mean": [0.5, 0.5, 0.5],
            "image_std": [0.5, 0.5, 0.5],
            "processor_class": "ColQwen2Processor",
        },
    ),
    "colmodernvbert": (
        Family(
            {},
            partial(
                byte_level_bpe,
                [*FAMILIES["modernbert"].special_tokens.values(), *_VBERT_SPECIAL],
                ["[CLS]"],
                ["[SEP]"],
            ),
            FAMILIES["modernbert"].special_tokens,
        ),
        _colmodernvbert,
        {
            "image_processor_type": "Idefics3ImageProcessor",
            "size": {"longest_edge": 2 * IMAGE_SIZE},
            "max_image_size": {"longest_edge": IMAGE_SIZE},
            "image_mean": [0.5, 0.5, 0.5],
            "image_std": [0.5, 0.5, 0.5],
            "processor_class": "ColModernVBertProcessor",
            "image_seq_len": 4,
        },
    ),
}
