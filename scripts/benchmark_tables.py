"""Writes the tables and pictures of the READMEs from the rows in benchmarks/results, between their markers.

    python scripts/benchmark_tables.py            writes
    python scripts/benchmark_tables.py --check    exit code 1 when a page is not what the rows say
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from benchmarks import measure, roofline  # noqa: E402
from benchmarks.tables import commands, kernels, method  # noqa: E402
from benchmarks.tables.rows import Table, read_rows, render  # noqa: E402

PAGES: dict[Path, dict[str, Table]] = {
    ROOT / "benchmarks" / "README.md": {
        "rates": kernels.rates, "lora_linear": kernels.lora_linear,
        "lora_producer": kernels.lora_producer, "blocks": kernels.blocks, "loss": kernels.loss,
        "train_step": kernels.train_step, "train": commands.train, "traffic": commands.traffic,
        "merge": commands.merge, "load": commands.load, "numbers": commands.numbers, "numct": commands.numct,
        "generate": commands.generate, "evaluate": commands.evaluation,
    },
    ROOT / "README.md": {"demo": method.demo, "ablation": method.ablation, "merge": commands.merge_in_short},
    ROOT / "numllm" / "README.md": {"families": method.families},
    ROOT / "numllm" / "merge" / "README.md": {"merge": commands.merge_of_larger},
    ROOT / "numllm" / "train" / "README.md": {
        "numeric_losses": method.numeric_losses, "orthogonality": method.orthogonality,
    },
}
"""Pages, and for each the name of a benchmark, in its rows and in the page's markers, with its tables."""


def main() -> None:
    """Runs from the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true", help="write nothing; exit 1 when a page is out of date")
    check = parser.parse_args().check
    results = ROOT / "benchmarks" / "results"
    rows = read_rows(results)
    wanted = roofline.pictures(rows, measure.slug)
    drawn = {path.name: path.read_text(encoding="utf-8") for path in results.glob("roofline-*.svg")}
    if check and drawn != wanted:
        sys.exit("the pictures are not what the rows say; run python scripts/benchmark_tables.py")
    if not check:
        for name in drawn.keys() - wanted.keys():
            (results / name).unlink()
        for name, picture in wanted.items():
            (results / name).write_text(picture, encoding="utf-8")
    for path, tables in PAGES.items():
        page = path.read_text(encoding="utf-8")
        rendered = render(page, tables, rows)
        if check and rendered != page:
            sys.exit(f"{path.relative_to(ROOT)} is not what the rows say; run python scripts/benchmark_tables.py")
        if not check:
            path.write_text(rendered, encoding="utf-8")


if __name__ == "__main__":
    main()
