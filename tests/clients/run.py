"""`make test-clients`: other people's client libraries against a real Hilbert.

Makes the environments of those libraries, starts the servers, computes with the Python API what the clients
should get, and runs the tests of each environment in it. Each test is a row of docs/compatibility.md.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from xml.etree import ElementTree

import environments
import world

HERE = Path(__file__).parent
ROOT = HERE.parents[1]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--venvs", type=Path, default=ROOT / ".venv-clients", help="folder of environments")
    parser.add_argument("--only", choices=environments.NAMES, help="one environment")
    parser.add_argument("rest", nargs="*", help="arguments of pytest, after --")
    asked = parser.parse_args()
    names = [asked.only] if asked.only else environments.NAMES
    folders = {name: environments.made(name, asked.venvs.resolve()) for name in names}
    counts: Counter[str] = Counter()
    with world.running(ROOT / "build/clients") as file:
        for name, folder in folders.items():
            counts += _tests(name, folder, file, asked.rest)
    passed, rows = counts["passed"], counts.total()
    print(f"clients: {passed} of {rows} rows" + "".join(f", {counts[k]} {k}" for k in _OTHERS if counts[k]))
    return 1 if counts["failed"] or not passed else 0


_OTHERS = ("failed", "skipped")


def _tests(name: str, folder: Path, file: Path, more: Sequence[str]) -> Counter[str]:
    """How many rows of one environment passed, failed and were skipped."""
    report = file.parent / f"{name}.xml"
    report.unlink(missing_ok=True)
    environ = {key: value for key, value in os.environ.items() if key not in _LEFT_OUT}
    environ |= {
        "HILBERT_CLIENTS_WORLD": str(file),
        "PYTHONPATH": str(ROOT / "src"),  # our own SDK is one of the clients, in its bare form
        "HILBERT_CLIENTS_NODE": str(folder.parent / "node"),
        "LITELLM_LOCAL_MODEL_COST_MAP": "True",
        "ANONYMIZED_TELEMETRY": "False",
        "HAYSTACK_TELEMETRY_ENABLED": "False",
    }
    subprocess.run(
        [
            *(
                str(folder / "bin/python"),
                "-m",
                "pytest",
                "-c",
                str(HERE / "pytest.ini"),
                "-q",
                "-rs",
                "--tb=short",
                "--durations=6",
            ),
            *(f"--junitxml={report}", *_folders(name), *more),
        ],
        env=environ,
        cwd=HERE,
        check=False,
    )
    if not report.exists():
        raise SystemExit(f"the tests of {name} did not begin")
    return _counts(report)


def _folders(name: str) -> list[str]:
    return [str(HERE / name), *([str(HERE / "both")] if name in environments.WITH_OPENAI else [])]


# Client libraries would read them.
_LEFT_OUT = {"HF_HUB_OFFLINE", "HF_TOKEN", "OPENAI_API_KEY", "OPENAI_BASE_URL"}


def _counts(report: Path) -> Counter[str]:
    cases = ElementTree.parse(report).iter("testcase")
    return Counter(
        next((_OUTCOMES[child.tag] for child in case if child.tag in _OUTCOMES), "passed") for case in cases
    )


_OUTCOMES = {"failure": "failed", "error": "failed", "skipped": "skipped"}


if __name__ == "__main__":
    sys.exit(main())
