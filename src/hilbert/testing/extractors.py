"""Tiny random GLiNER models: folders that gliner and Hilbert both load.

Beside what `models` writes for text there is gliner_config.json. torch and gliner are imported inside the
call.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from hilbert.testing.models import FAMILIES, HIDDEN_SIZE, _randomise, _save_tokenizer, _write

MARKS = ("<<ENT>>", "<<SEP>>")
MAX_WORDS = 24
_SCALE = 0.03


def tiny_extractor(
    folder: str | Path,
    *,
    family: str = "deberta-v2",
    span_mode: str = "markerV0",
    weights: str = "safetensors",
    model_max_length: int | None = None,
    seed: int = 0,
) -> Path:
    """Write a tiny random GLiNER model and return its folder.

    Hidden size 64, two layers and an LSTM, 24 words, spans of up to 4.

    Args:
        folder: where to write; made if it is not there.
        family: a key of `FAMILIES`.
        span_mode: ``"markerV0"``, or ``"token_level"``.
        weights: ``"safetensors"`` or ``"bin"``.
        model_max_length: of tokenizer_config.json; None leaves it out.
        seed: of all weights.
    """
    import torch
    from gliner import GLiNER
    from safetensors.torch import save_file

    folder, recipe = Path(folder), FAMILIES[family]
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer = recipe.tokenizer()
    tokenizer.add_special_tokens(list(MARKS))
    _save_tokenizer(folder, tokenizer, recipe, model_max_length)
    vocab_size = tokenizer.get_vocab_size()
    _write(folder / "gliner_config.json", _config(family, span_mode, vocab_size))
    # gliner makes a model only where there are weights already, whatever they are.
    save_file({"nothing": torch.zeros(1)}, folder / "model.safetensors")
    model = GLiNER.from_pretrained(str(folder), local_files_only=True).model
    (folder / "model.safetensors").unlink()
    _randomise(model, torch.Generator().manual_seed(seed), is_centred_at_zero=False)
    with torch.no_grad():  # the last layer: else every score is 0 or 1
        for parameter in list(model.parameters())[-2:]:
            parameter.mul_(_SCALE)
    tensors = {name: tensor.contiguous() for name, tensor in model.state_dict().items()}
    if weights == "bin":
        torch.save(tensors, folder / "pytorch_model.bin")
    else:
        save_file(tensors, folder / "model.safetensors")
    return folder


def _config(family: str, span_mode: str, vocab_size: int) -> dict[str, Any]:
    recipe = FAMILIES[family]
    hidden, layers, heads, feed_forward = recipe.shared
    sizes = {
        hidden: HIDDEN_SIZE,
        layers: 2,
        heads: 4,
        feed_forward: 2 * HIDDEN_SIZE,
        "vocab_size": vocab_size,
    }
    encoder = {"model_type": family, **sizes, **recipe.config}
    return {
        "model_name": "nobody/nothing",
        "span_mode": span_mode,
        "hidden_size": HIDDEN_SIZE,
        "max_width": 4,
        "max_len": MAX_WORDS,
        "vocab_size": vocab_size,
        "class_token_index": vocab_size - 2,
        "ent_token": MARKS[0],
        "sep_token": MARKS[1],
        "words_splitter_type": "whitespace",
        "encoder_config": encoder,
    }
