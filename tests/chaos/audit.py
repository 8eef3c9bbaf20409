"""Known vulnerabilities of every pinned dependency, by pip-audit from OSV: `make audit`.

    python tests/chaos/audit.py [--requirements FILE] [--osv-url URL]

Says `passed` only where every package was looked up. pip-audit ends well and says "no known vulnerabilities"
when it could look up nothing; that is `unreachable` here. Exit status: 0 passed, 1 vulnerable, 2 unreachable.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

CONSTRAINTS = Path(__file__).parents[2] / "constraints.txt"
_TIMEOUT_SECONDS = 15
PASSED, VULNERABLE, UNREACHABLE = range(3)


def verdict(report: dict[str, Any]) -> tuple[int, list[str]]:
    """An exit status, and lines that say why."""
    packages = report["dependencies"]
    skipped = [package["name"] for package in packages if "skip_reason" in package]
    lines = [
        f"{package['name']} {package['version']}: {vulnerability['id']}, mended in "
        + (", ".join(vulnerability["fix_versions"]) or "no version yet")
        for package in packages
        for vulnerability in package.get("vulns", ())
    ]
    num_checked = len(packages) - len(skipped)
    if lines:
        return VULNERABLE, [*lines, f"vulnerable: {len(lines)} findings in {num_checked} packages"]
    if skipped or not packages:
        return UNREACHABLE, [
            f"unreachable: {len(skipped)} of {len(packages)} packages could not be looked up "
            f"({', '.join(skipped[:3])}, …); nothing is known of them"
        ]
    return PASSED, [f"passed: no known vulnerability in {num_checked} packages"]


def audit(requirements: Path, osv_url: str | None) -> tuple[int, list[str]]:
    """Run pip-audit."""
    command = [sys.executable, "-m", "pip_audit", "--requirement", str(requirements), "--no-deps"]
    command += ["--disable-pip", "--format", "json", "--progress-spinner", "off"]
    command += ["--timeout", str(_TIMEOUT_SECONDS), "--vulnerability-service", "osv"]
    command += ["--osv-url", osv_url] if osv_url else []
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    try:
        return verdict(json.loads(done.stdout))
    except ValueError:
        said = done.stderr.strip().splitlines()[-1:] or ["it said nothing"]
        return UNREACHABLE, [f"unreachable: pip-audit could not look anything up: {said[0]}"]


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--requirements", type=Path, default=CONSTRAINTS)
    parser.add_argument("--osv-url", help="another place that speaks OSV's API")
    options = parser.parse_args()
    status, lines = audit(options.requirements, options.osv_url)
    print("\n".join(lines))
    return status


if __name__ == "__main__":
    sys.exit(main())
