"""A BERT-like encoder as a CTranslate2 model: its layers alone; pooling and heads stay ours.

CTranslate2's own command converts by loading the model itself; here its converters are handed the model that
`load_model` has checked, as they know nothing of transformers 5.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from ctranslate2 import Encoder
from ctranslate2.converters import transformers as converters

from hilbert.core import ModelSpec
from hilbert.errors import UnsupportedArchitecture
from hilbert.programs.build import FLOAT32_TOLERANCE
from hilbert.programs.load import load_model

_CONVERTERS: dict[str, type[Any]] = {
    "bert": converters.BertLoader,
    "camembert": converters.CamembertLoader,
    "distilbert": converters.DistilBertLoader,
    "roberta": converters.RobertaLoader,
    "xlm-roberta": converters.RobertaLoader,
}


def convert(spec: ModelSpec, folder: Path, trust_remote_code: bool) -> dict[str, Any]:
    """Write a CTranslate2 model in float32 and compare its token vectors with the model's own.

    Returns:
        What the runtime must know of it, beside what holds of every graph.

    Raises:
        UnsupportedArchitecture: it is not of a family that CTranslate2 knows, or computes something else.
        ModelError: the weights are missing, wrong or unsafe.
    """
    model: Any = load_model(spec, "eager", torch.float32, trust_remote_code)
    model.config.position_embedding_type = "absolute"  # the only kind left in transformers 5
    try:
        written = _CONVERTERS[spec.family]().get_model_spec(model)
    except Exception as error:  # a converter raises whatever it meets
        raise UnsupportedArchitecture(
            f"{spec.model_id}: CTranslate2 cannot convert it ({type(error).__name__}: {error}); "
            "take --engine openvino"
        ) from error
    written.config.layer_norm_epsilon = getattr(model.config, "layer_norm_eps", 1e-12)
    written.register_vocabulary([f"<{i}>" for i in range(spec.vocab_size)])  # it is fed ids, never words
    written.validate()
    written.optimize(quantization="float32")
    written.save(str(folder))
    _check(spec, model, folder)
    return {
        "program": "padded",
        "reason": f"{spec.family} runs in CTranslate2, pooled by Hilbert",
        "inputs": (),
        "outputs": ("dense", "tokens"),
        "num_groups": 1,
        "num_parameters": sum(p.numel() for p in model.parameters()),
    }


def _check(spec: ModelSpec, model: Any, folder: Path) -> None:
    random = np.random.default_rng(7)
    lowest = 1 + int(spec.config.get("pad_token_id") or 0)
    longest = min(spec.max_model_len or 512, 40)
    encoder = Encoder(str(folder), device="cpu", compute_type="float32")
    for length in sorted({1, min(7, longest), longest}):
        ids = random.integers(lowest, spec.vocab_size, length)
        ours = np.array(encoder.forward_batch([ids.tolist()]).last_hidden_state)[0]
        with torch.inference_mode():
            theirs = model(input_ids=torch.from_numpy(ids)[None]).last_hidden_state[0].numpy()
        worst, scale = float(np.abs(ours - theirs).max()), max(1.0, float(np.abs(theirs).max()))
        if not worst <= FLOAT32_TOLERANCE * scale:
            raise UnsupportedArchitecture(
                f"{spec.model_id}: CTranslate2 does not compute what the model computes (largest difference "
                f"{worst:.1e} at scale {scale:.1f}); take --engine openvino"
            )
