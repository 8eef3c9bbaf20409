"""A repository as jina-clip's: a dual model whose classes and first module are its own code."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

from hilbert.testing.models import tiny_model

CONFIGURATION = """
from transformers import PretrainedConfig


class DuoConfig(PretrainedConfig):
    model_type = "duo"

    def __init__(self, text_config=None, vision_config=None, **more):
        super().__init__(**more)
        self.text_config, self.vision_config = text_config or {}, vision_config or {}
"""
MODEL = """
import torch
from torch import nn
from transformers import PreTrainedModel

from .configuration_duo import DuoConfig


class DuoModel(PreTrainedModel):
    config_class = DuoConfig

    def __init__(self, config):
        super().__init__(config)
        width = config.text_config["embed_dim"]
        self.words = nn.Embedding(config.text_config["num_words"], width)
        self.mix = nn.Linear(width, width)
        self.patches = nn.Conv2d(3, width, 8, stride=8)
        self.post_init()

    def get_text_features(self, input_ids):
        return torch.tanh(self.mix(self.words(input_ids))).mean(1)

    def get_image_features(self, pixel_values):
        return torch.tanh(self.patches(pixel_values)).mean((2, 3))
"""
MODULE = """
import torch
from torch import nn
from transformers import AutoImageProcessor, AutoModel, AutoTokenizer


class Transformer(nn.Module):
    save_in_root = True

    def __init__(self, path, **more):
        super().__init__()
        self.model = AutoModel.from_pretrained(path, trust_remote_code=True)
        self.tokenizer = AutoTokenizer.from_pretrained(path, trust_remote_code=True)
        self.image_processor = AutoImageProcessor.from_pretrained(path, trust_remote_code=True)
        self.max_seq_length = 128

    def tokenize(self, inputs, padding=True):
        kinds = [int(isinstance(x, str)) for x in inputs]
        features = {"kinds": kinds}
        texts = [x for x in inputs if isinstance(x, str)]
        images = [x for x in inputs if not isinstance(x, str)]
        if texts:
            tokens = self.tokenizer(texts, padding=True, truncation=True, max_length=128, return_tensors="pt")
            features["input_ids"] = tokens.input_ids
        if images:
            features["pixel_values"] = self.image_processor(images, return_tensors="pt").pixel_values
        return features

    def forward(self, features):
        sides = [
            iter(read(features[name]) if name in features else ())
            for name, read in (
                ("pixel_values", self.model.get_image_features),
                ("input_ids", self.model.get_text_features),
            )
        ]
        features["sentence_embedding"] = torch.stack([next(sides[kind]) for kind in features["kinds"]])
        return features

    @classmethod
    def load(cls, path, *more, **options):
        return cls(path)
"""


def remote_dual(folder: Path) -> Path:
    """Write the repository; BERT's tokenizer, vectors of 48 numbers, images of 32 x 32."""
    from safetensors.numpy import save_file

    tiny_model("bert", folder)
    num_words = json.loads((folder / "config.json").read_text())["vocab_size"]
    for file in folder.iterdir():
        if not file.name.startswith("token") and file.is_file():
            file.unlink()
    (folder / "configuration_duo.py").write_text(CONFIGURATION)
    (folder / "modeling_duo.py").write_text(MODEL)
    (folder / "custom_st.py").write_text(MODULE)
    config = {
        "architectures": ["DuoModel"],
        "model_type": "duo",
        "auto_map": {"AutoConfig": "configuration_duo.DuoConfig", "AutoModel": "modeling_duo.DuoModel"},
        "text_config": {"embed_dim": 48, "num_words": num_words},
        "vision_config": {"image_size": 32},
    }
    images = {
        "image_processor_type": "SiglipImageProcessor",
        "size": {"height": 32, "width": 32},
        "image_mean": [0.5, 0.5, 0.5],
        "image_std": [0.5, 0.5, 0.5],
    }
    modules = [{"idx": 0, "name": "0", "path": "", "type": "custom_st.Transformer"}]
    normalize = {
        "idx": 1,
        "name": "1",
        "path": "1_Normalize",
        "type": "sentence_transformers.models.Normalize",
    }
    (folder / "1_Normalize").mkdir()
    for name, value in (
        ("config.json", config),
        ("preprocessor_config.json", images),
        ("modules.json", [*modules, normalize]),
    ):
        (folder / name).write_text(json.dumps(value))
    random = np.random.default_rng(0)
    shapes = {
        "words.weight": (num_words, 48),
        "mix.weight": (48, 48),
        "mix.bias": (48,),
        "patches.weight": (48, 3, 8, 8),
        "patches.bias": (48,),
    }
    tensors = {name: random.normal(0, 0.2, shape).astype(np.float32) for name, shape in shapes.items()}
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    return folder
