"""The command line: parse, call, report. The only package that knows click; commands import what they use."""

from __future__ import annotations

import sys

import click

from ..errors import NumLLMError
from .common import cli
from .evaluation import compare, evaluate, perplexity, report
from .inference import demo, generate, inspect
from .merging import calibrate, merge
from .text import corpus, numbers, numct, probes
from .training import train

__all__ = [
    "calibrate", "cli", "compare", "corpus", "demo", "evaluate", "generate", "inspect", "main", "merge", "merge_main",
    "numbers", "numct", "perplexity", "probes", "report", "train", "train_main",
]


def _run(entry: click.Command) -> None:
    try:
        code = entry.main(standalone_mode=False)
        sys.exit(code if isinstance(code, int) else 0)
    except NumLLMError as error:
        click.echo(f"Error: {' '.join(str(error).split())}", err=True)
        sys.exit(1)
    except click.ClickException as error:
        error.show()
        sys.exit(error.exit_code)
    except (click.Abort, KeyboardInterrupt):
        click.echo("Interrupted", err=True)
        sys.exit(130)
    except BrokenPipeError:
        sys.stderr.close()
        sys.exit(1)


def main() -> None:
    """`numllm`."""
    _run(cli)


def train_main() -> None:
    """`numllm-train`."""
    _run(train)


def merge_main() -> None:
    """`numllm-merge`."""
    _run(merge)
