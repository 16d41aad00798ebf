"""`snakemake --lint` without the one advice that this project does not follow.

    python .ci/snakelint.py

Its rules run with the interpreter that runs Snakemake, from one lock file, so none names a conda environment or a
container. Any other advice, and any error, is printed and fails.
"""

from __future__ import annotations

import re
import subprocess
import sys

NOT_FOLLOWED = "Specify a conda environment or container for each rule."


def remaining(report: str) -> list[str]:
    """The advice in the text of `snakemake --lint` that is ours to follow, each with the rule that it is about."""
    kept, about = [], ""
    for block in re.split(r"\n(?=Lints for |    \* )|\n\n", report):
        if block.startswith("Lints for "):
            about = block.strip()
        elif block.startswith("    * "):
            if not block.startswith(f"    * {NOT_FOLLOWED}"):
                kept.append(f"{about}\n{block}")
        elif block.strip():
            kept.append(block)  # no advice: an error
    return kept


def main() -> int:
    command = [sys.executable, "-m", "snakemake", "--lint", "--workflow-profile", "none"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode == 0:
        return 0
    advice = remaining(done.stdout + done.stderr)
    print("\n".join(advice) or "snakemake --lint: clean but for the advice to name a conda environment or container")
    return 1 if advice or NOT_FOLLOWED not in done.stderr + done.stdout else 0


if __name__ == "__main__":
    sys.exit(main())
