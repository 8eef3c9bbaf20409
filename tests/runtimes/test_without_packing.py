"""Models that need no torch at run time, and those that nothing but sentence-transformers can run."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from hilbert.core import Batch, EmbedRequest, OutputType, Sequence, finish_vectors
from hilbert.engine.rows import bad_sequences
from hilbert.errors import WorkerLost
from hilbert.hub import resolve
from hilbert.processors.text import TextProcessor
from hilbert.runtimes import RuntimeSettings, load_runtime
from hilbert.runtimes.outputs import OutputBuilder
from hilbert.runtimes.packing import pack
from hilbert.testing.models import tiny_model
from hilbert.testing.runtime import FakeRuntime

TEXTS = ["a short text", "b", "", "a rather longer text with quite a few more words in it " * 3]
FLOAT32 = RuntimeSettings(engine="openvino", dtype="float32", device="cpu")


def reference(folder: Path) -> tuple[tuple[Sequence, ...], np.ndarray]:
    from sentence_transformers import SentenceTransformer

    model = SentenceTransformer(str(folder), device="cpu")
    ids = [model.tokenize([t])["input_ids"][0].numpy().astype(np.int32) for t in TEXTS]
    rows = model.encode(TEXTS, batch_size=1, show_progress_bar=False)
    return tuple(Sequence(0, i, x) for i, x in enumerate(ids)), np.asarray(rows)


def ship_graph(folder: Path, kind: str) -> None:
    """Put the graph beside the weights that optimum's users find in such repositories."""
    import openvino as ov
    import torch
    from transformers import AutoModel

    model = AutoModel.from_pretrained(folder, attn_implementation="eager").eval()

    class Plain(torch.nn.Module):
        def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
            return model(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state

    plain = Plain()
    plain.model = model
    ids = torch.ones(2, 5, dtype=torch.int64)
    names = ["input_ids", "attention_mask"]
    if kind == "onnx":
        (folder / "onnx").mkdir()
        axes = {name: {0: "batch", 1: "length"} for name in [*names, "last_hidden_state"]}
        torch.onnx.export(
            plain,
            (ids, torch.ones_like(ids)),
            str(folder / "onnx" / "model.onnx"),
            input_names=names,
            output_names=["last_hidden_state"],
            dynamic_axes=axes,
            dynamo=False,
        )
        return
    graph = ov.convert_model(plain, example_input=(ids, torch.ones_like(ids)))
    for port, name in zip(graph.inputs, names, strict=True):
        port.get_tensor().set_names({name})
    graph.outputs[0].get_tensor().set_names({"last_hidden_state"})
    (folder / "openvino").mkdir()
    ov.save_model(graph, folder / "openvino" / "openvino_model.xml", compress_to_fp16=False)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", ["openvino", "onnx"])
def test_shipped_graph_without_torch(kind: str, tmp_path: Path) -> None:
    folder = tiny_model("bert", tmp_path / "model", pooling="mean")
    sequences, expected = reference(folder)
    ship_graph(folder, kind)
    script = """
import sys
for name in ("torch", "transformers", "sentence_transformers"):
    sys.modules[name] = None
import json
import numpy as np
from hilbert.core import Batch, Sequence, finish_vectors
from hilbert.hub import resolve
from hilbert.runtimes import RuntimeSettings, load_runtime
from hilbert.runtimes import tracing
from hilbert.errors import MissingDependency, WorkerLost
def trace(*args):
    raise MissingDependency("torch is not installed")
tracing.trace = trace
folder, cache, ids = json.load(sys.stdin)
spec = resolve(folder)
settings = RuntimeSettings(engine="openvino", dtype="float32", device="cpu", cache_dir=cache)
runtime = load_runtime(spec, settings)
assert runtime.info.program == "shipped", runtime.info
sequences = tuple(Sequence(0, i, np.array(x, np.int32)) for i, x in enumerate(ids))
rows = finish_vectors(runtime.run(runtime.prepare(Batch(sequences))).dense, None, True)
print(json.dumps(rows.tolist()))
class Full:
    def infer(self, *args, **options):
        raise MemoryError
runtime._encoder._request = Full()
try:
    runtime.run(runtime.prepare(Batch(sequences)))
except WorkerLost as error:
    assert "a batch of 3 sequences of up to 12 tokens" in error.message, error
else:
    raise AssertionError("what OpenVINO computes after that is not to be trusted")
"""
    order = [str(folder), str(tmp_path / "cache"), [s.input_ids.tolist() for s in sequences]]
    child = subprocess.run(
        [sys.executable, "-c", script], input=json.dumps(order), capture_output=True, text=True, check=False
    )
    assert child.returncode == 0, child.stderr[-2000:]
    np.testing.assert_allclose(np.array(json.loads(child.stdout)), expected, atol=1e-5)


@pytest.mark.parametrize("family", ["static", "model2vec"])
def test_static(family: str, tmp_path: Path) -> None:
    from sentence_transformers import SentenceTransformer

    folder = tiny_model(family, tmp_path / "model")
    spec = resolve(str(folder))
    runtime = load_runtime(spec, RuntimeSettings())
    assert runtime.info.program == "static"
    texts = [*TEXTS[:2], TEXTS[3]]
    if family == "static":
        expected = SentenceTransformer(str(folder), device="cpu").encode(texts, show_progress_bar=False)
    else:
        from model2vec import StaticModel

        expected = StaticModel.from_pretrained(folder).encode(texts)
    processor = TextProcessor(spec)
    sequences = tuple(
        Sequence(0, i, np.array(processor.tokenizer.encode(t, add_special_tokens=False).ids, np.int32))
        for i, t in enumerate(texts)
    )
    dense = runtime.run(runtime.prepare(Batch(sequences))).dense
    assert dense is not None
    np.testing.assert_allclose(finish_vectors(dense, None, spec.normalize), expected, atol=1e-5)


@pytest.fixture(scope="module")
def odd(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A chain that no program of ours knows: a CNN between the transformer and the pooling."""
    import torch
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.modules import CNN, Pooling

    folder = tmp_path_factory.mktemp("odd")
    torch.manual_seed(0)
    body = SentenceTransformer(str(tiny_model("bert", folder / "body")), device="cpu")[0]
    cnn = CNN(in_word_embedding_dimension=64, out_channels=16, kernel_sizes=[1, 3])
    modules = [body, cnn, Pooling(32, "mean", include_prompt=False)]
    SentenceTransformer(modules=modules, device="cpu").save(str(folder / "model"))
    return folder / "model"


def test_sentence_transformers_is_the_last_resort(odd: Path) -> None:
    spec = resolve(str(odd))
    runtime = load_runtime(spec, FLOAT32)
    assert runtime.info.program == "sentence-transformers"
    assert "CNN" in runtime.info.reason
    sequences, expected = reference(odd)
    dense = runtime.run(runtime.prepare(Batch(sequences))).dense
    assert dense is not None
    np.testing.assert_allclose(finish_vectors(dense, None, spec.normalize), expected, atol=1e-5)


def test_the_last_resort_leaves_out_each_texts_own_prompt(odd: Path) -> None:
    """Also where prompts of other lengths, or none, are in the same batch."""
    from sentence_transformers import SentenceTransformer

    spec = resolve(str(odd))
    runtime, processor = load_runtime(spec, FLOAT32), TextProcessor(spec)
    prompts, text = ["a b ", "a b c ", ""], "a b c d e f g"
    sequences = [processor.encode(EmbedRequest((text[: -len(p) or None],), prompt=p), 0)[0] for p in prompts]
    assert len({s.num_tokens for s in sequences}) == 1 and len({s.prompt_len for s in sequences}) == 3
    dense = runtime.run(runtime.prepare(Batch(tuple(sequences)))).dense
    assert dense is not None
    model = SentenceTransformer(str(odd), device="cpu")
    expected = [
        model.encode([text[: -len(p) or None]], prompt=p, show_progress_bar=False)[0] for p in prompts
    ]
    np.testing.assert_allclose(finish_vectors(dense, None, spec.normalize), np.stack(expected), atol=1e-5)


def test_the_last_resort_keeps_to_its_threads_and_its_device(
    odd: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        runtime = load_runtime(resolve(str(odd)), replace(FLOAT32, threads=1))
        assert torch.get_num_threads() == 1
    finally:
        torch.set_num_threads(before)

    def fail(features: object) -> None:
        raise torch.AcceleratorError("CUDA error: an illegal memory access was encountered\nand so on")

    monkeypatch.setattr(runtime, "_rows", fail)
    with pytest.raises(WorkerLost, match="the device is lost: CUDA error: an illegal memory access was enc"):
        runtime.run(runtime.prepare(Batch((Sequence(0, 0, np.ones(3, np.int32)),))))
    emptied: list[bool] = []
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: emptied.append(True))
    runtime.close()
    assert emptied == [True]


def test_weights_that_are_no_numbers_are_not_left_out() -> None:
    """The engine has to see them."""
    part = pack((Sequence(0, 0, np.array([5, 6], np.int32)),), 1)
    builder = OutputBuilder(1, frozenset({OutputType.SPARSE}))
    builder.add(part, {"token_weights": np.full(len(part.input_ids), np.nan, np.float32)})
    assert bad_sequences(builder.finish(), FakeRuntime().info) == [0]
