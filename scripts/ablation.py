"""The paper's ablation on a base of yours: base, + domain, + numeric, merged by each method; several seeds; a report.

    python scripts/ablation.py --out ablation                      # the embedded demo
    python scripts/ablation.py --config ablation.json --out ablation
    python scripts/ablation.py --out ablation --row benchmarks/results/ablation.jsonl     # for the README's table

Killed, it goes on where it was when the command is given again. --out then holds report.html, report.md, report.json,
and a result file for each model and seed. The config (every key has a default, the demo's):

    {"base": "Qwen/Qwen2.5-7B",                  checkpoint: folder, Hub id or demo
     "questions": ["fineval/"],                  files or folders of questions
     "eval": {"protocol": "letters", "shots": 5},          as in numllm.evaluate.evaluate; "split" too
     "seeds": [0, 1, 2],
     "train": {"corpus": "corpus", "numct": "numct.jsonl", "steps": 1000, "rank": 16, "alpha": 32},
     "adapters": {"domain": "run/adapters/domain", "numeric": "run/adapters/numeric"},   instead of "train": one seed
     "weights": {"domain": 1.0, "numeric": 1.0},           of the adapters together; the demo's own: 1 and 0.8
     "merges": [{"method": "exact"}, {"method": "svd", "rank": 16}, {"method": "ties", "density": 0.3}],
     "device": "auto", "dtype": "bfloat16"}
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import shutil
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from benchmarks import measure  # noqa: E402
from numllm import demo  # noqa: E402
from numllm.cli.common import bar, command_line, load_for_use, pick_device, say, scoring_dtype  # noqa: E402
from numllm.cli.training import run_training  # noqa: E402
from numllm.config import LoRAConfig  # noqa: E402
from numllm.corpus import build_corpus, read_corpus  # noqa: E402
from numllm.errors import ConfigError, NumLLMError  # noqa: E402
from numllm.evaluate import across_seeds, evaluate, hashes, provenance  # noqa: E402
from numllm.files import read_json, write_json, write_jsonl  # noqa: E402
from numllm.merge import merge  # noqa: E402
from numllm.questions import read_questions  # noqa: E402
from numllm.report import markdown_table, percent  # noqa: E402
from numllm.report.page import Section, write_report  # noqa: E402
from numllm.tokenizer import Tokenizer  # noqa: E402
from numllm.train_config import TrainConfig  # noqa: E402

KEYS = {"base", "questions", "eval", "seeds", "train", "adapters", "weights", "merges", "device", "dtype"}
MERGES = [
    {"method": "exact"}, {"method": "svd", "rank": 16}, {"method": "svd", "rank": 8}, {"method": "linear"},
    {"method": "ties"}, {"method": "dare-ties"}, {"method": "knots"}, {"method": "core"},
]
ADAPTERS = ("domain", "numeric")


def read_config(path: Path | None) -> dict[str, Any]:
    """The config with its defaults. ConfigError for keys unknown, or what does not go together."""
    given = read_json(path) if path else {}
    if not isinstance(given, dict) or set(given) - KEYS:
        unknown = ", ".join(sorted(set(given) - KEYS)) if isinstance(given, dict) else type(given).__name__
        raise ConfigError(f"{path}: unknown in an ablation's config: {unknown}; known: {', '.join(sorted(KEYS))}")
    config = {"base": "demo", "questions": [str(demo.NUMERIC), str(demo.CONCEPTS)], "eval": {}, "seeds": [0, 1, 2],
              "merges": MERGES, "device": "auto", "dtype": None, **given}
    if config["base"] == "demo":
        config["eval"] = {"protocol": "likelihood", **config["eval"]}  # a base so small knows no format
    config.setdefault("weights", demo.WEIGHTS if config["base"] == "demo" else dict.fromkeys(ADAPTERS, 1.0))
    if set(config["weights"]) != set(ADAPTERS):
        raise ConfigError(f"{path}: weights wants a number for domain and numeric, got {config['weights']}")
    adapters = config.get("adapters")
    if adapters is not None and ("train" in config or set(adapters) != set(ADAPTERS)):
        raise ConfigError(f"{path}: adapters are domain and numeric, and take the place of train")
    if adapters is not None:
        config["seeds"] = [0]
    if not config["seeds"] or len(set(config["seeds"])) != len(config["seeds"]):
        raise ConfigError(f"{path}: wanted seeds, each once, got {config['seeds']}")
    return config


class Ablation:
    """One ablation in its folder."""

    def __init__(self, config: Mapping[str, Any], out: Path) -> None:
        self.config, self.out = config, out
        self.device = pick_device(config["device"])
        self.dtype = scoring_dtype(self.device, config["dtype"])
        self.began, self.resumed = time.perf_counter(), out.exists()
        known = out / "config.json"
        if known.exists() and read_json(known) != dict(config):
            raise NumLLMError(f"{out}: holds an ablation of another config; choose another --out or remove it")
        write_json(known, dict(config))
        settings = dict(config["eval"])
        split = settings.pop("split", None)
        self.questions = read_questions(config["questions"], split=split, multiple="set", strict=False)
        self.dev = read_questions(config["questions"], split="dev") if settings.get("shots") else None
        self.settings = settings
        self.tokenizer = Tokenizer.open(config["base"])

    def run(self) -> dict[str, Any]:
        """Everything that is not there yet, then the report's figures."""
        base = self.score("base", self.out / "base.json", ())
        runs: dict[str, list[dict[str, Any]]] = {}
        for seed in self.config["seeds"]:
            for name, result in self.of_seed(seed).items():
                runs.setdefault(name, []).append(result)
        return self.report(base, runs)

    def of_seed(self, seed: int) -> dict[str, dict[str, Any]]:
        """Name → result of each model of a seed."""
        folder = self.out / f"seed-{seed}"
        wanted = {"+ domain": ("domain",), "+ numeric": ("numeric",), "both, unmerged": ADAPTERS}
        files = {name: folder / f"{name.replace('+ ', 'with-').replace(', ', '-')}.json" for name in wanted}
        merges = {self.name_of(how): how for how in self.config["merges"]}
        files |= {name: folder / f"{name.replace(' ', '-')}.json" for name in merges}
        found = {name: read_json(file) for name, file in files.items() if file.exists()}
        if len(found) == len(files):
            return found
        adapters = self.adapters(seed, folder)
        for name, which in wanted.items():
            if name not in found:
                weights = self.config["weights"] if len(which) > 1 else dict.fromkeys(which, 1.0)
                given = [f"{adapters[part]}={weights[part]}" for part in which]
                found[name] = self.score(f"seed {seed}: {name}", files[name], given)
        for name, how in merges.items():
            if name not in found:
                merged = folder / "merged"
                shutil.rmtree(merged, ignore_errors=True)
                merge(self.config["base"], [(path, self.config["weights"][part]) for part, path in adapters.items()],
                      merged, verify=True, progress=bar, **how)
                found[name] = self.score(f"seed {seed}: {name}", files[name], (), model=str(merged))
                shutil.rmtree(merged)
        return {name: found[name] for name in files}

    @staticmethod
    def name_of(how: Mapping[str, Any]) -> str:
        """"merged svd 16" of {"method": "svd", "rank": 16}."""
        return " ".join(["merged", *(str(value) for value in how.values())])

    def adapters(self, seed: int, folder: Path) -> dict[str, Path]:
        """The adapters given, or those trained with a seed; a run that was stopped is resumed."""
        if "adapters" in self.config:
            return {name: Path(self.config["adapters"][name]) for name in ADAPTERS}
        run = folder / "run"
        paths = {name: run / "adapters" / name for name in ADAPTERS}
        if not all((path / "adapter_model.safetensors").exists() for path in paths.values()):
            say(f"seed {seed}: training both adapters")
            event, _ = run_training(self.training(seed, run), resume=(run / "config.json").exists())
            if event["event"] == "interrupted":
                raise KeyboardInterrupt
        return paths

    def training(self, seed: int, run: Path) -> TrainConfig:
        """The training of a seed."""
        given = {"out": str(run), "seed": seed, "device": self.device, **self.config.get("train", {})}
        lora = LoRAConfig(rank=given.pop("rank", 16), alpha=given.pop("alpha", 32.0))
        given |= {"domain": lora, "numeric": lora}
        try:
            if self.config["base"] == "demo" and not {"corpus", "numct"} & set(given):
                self.demo_data()
                return dataclasses.replace(demo.training(self.out, given.pop("steps", demo.STEPS)), **given)
            return TrainConfig(model=self.config["base"], dtype=self.config["dtype"], **given)
        except TypeError as error:
            raise ConfigError(f"train: {error}") from error

    def demo_data(self) -> None:
        """The demo's corpus and choice questions, once."""
        if not (self.out / "numct.jsonl").exists():
            build_corpus([demo.TEXTBOOK], self.out / "corpus", holdout=0.0, overwrite=True)
            write_jsonl(self.out / "numct.jsonl", demo.training_questions(list(read_corpus(self.out / "corpus"))))

    def score(self, what: str, file: Path, adapters: Sequence[str], model: str | None = None) -> dict[str, Any]:
        """The result of a model, from its file where it is there."""
        if file.exists():
            return read_json(file)
        say(f"{what}: {len(self.questions):,} questions")
        name = model or self.config["base"]
        loaded, _, attached = load_for_use(name, tuple(adapters), self.device, self.dtype)
        journal = file.with_name(f"{file.name}.journal")
        with attached.use("all") if attached is not None else torch.no_grad():
            result = evaluate(
                loaded, self.tokenizer, self.questions, dev=self.dev, journal=journal, identity=what, progress=bar,
                **self.settings,
            )
        result = {"model": name, "adapters": list(adapters), **result}
        write_json(file, result)
        journal.unlink(missing_ok=True)
        return result

    def report(self, base: dict[str, Any], runs: Mapping[str, list[dict[str, Any]]]) -> dict[str, Any]:
        """Writes the report; the figures over the seeds."""
        seeds = self.config["seeds"]
        figures = {name: across_seeds(base, results) for name, results in runs.items()}
        rows = [_row("base", across_seeds(base, [base]), alone=True), *(_row(*item) for item in figures.items())]
        domains = [
            {"model": name, **{domain: _accuracy(part) for domain, part in figure["by_domain"].items()}}
            for name, figure in (("base", across_seeds(base, [base])), *figures.items())
        ]
        remark = (
            f"{len(seeds)} seeds: mean accuracy ± standard deviation over the seeds; the gain on the base in points, "
            f"with the 95 % interval of a bootstrap over the questions. The sections below are of seed {seeds[0]}."
        )
        lead = [Section("Ablation", remark, rows)]
        if base["by_domain"]:
            lead.append(Section("Ablation by domain", "", domains))
        first = {"base": base, **{name: results[0] for name, results in runs.items()}}
        command = command_line().replace("numllm", "python scripts/ablation.py", 1)
        origin = provenance(command, hashes(sorted(self.out.glob("seed-*/run/adapters/*/*.safetensors"))))
        write_report(
            {name: {**result, "provenance": origin} for name, result in first.items()}, self.out,
            title=f"Ablation on {self.config['base']}", lead=lead,
            extra={"config": dict(self.config), "across_seeds": figures},
        )
        return {
            "across_seeds": figures, "rows": rows, "remark": remark,
            "seconds": None if self.resumed else round(time.perf_counter() - self.began, 1),
        }


def _accuracy(part: Mapping[str, Any]) -> str:
    if not part["n"]:
        return "–"
    return percent(part["accuracy"]) + ("" if part["spread"] is None else f" ± {100 * part['spread']:.1f}")


def _row(name: str, figure: Mapping[str, Any], alone: bool = False) -> dict[str, str]:
    row = {"model": name}
    for label, part in (("overall", figure), ("numeric", figure["numeric"]), ("non-numeric", figure["non_numeric"])):
        row[f"{label} (n = {part['n']})"] = _accuracy(part)
        gain = "–"
        if part["n"] and not alone:
            low, high = part["ci95_points"]
            gain = f"{part['difference_points']:+.1f} ({low:+.1f} to {high:+.1f})"
        row[f"gain, {label}"] = gain
    return row


def main(arguments: list[str] | None = None) -> int:
    """The command; its exit code."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--config", type=Path, help="JSON; default: the embedded demo")
    parser.add_argument("--out", type=Path, required=True, help="folder of the ablation")
    parser.add_argument("--row", type=Path, help="write the table as a benchmark's row here")
    parser.add_argument("--json", action="store_true", help="last line of stdout: one JSON object")
    options = parser.parse_args(arguments)
    try:
        config = read_config(options.config)
        found = Ablation(config, options.out).run()
    except NumLLMError as error:
        say(f"Error: {error}")
        return 1
    except KeyboardInterrupt:
        say("Interrupted; give the command again to go on")
        return 130
    rows = found["rows"]
    print(f"{found['remark']}\n\n{markdown_table(rows, list(rows[0]))}\n\n{options.out / 'report.html'}")
    if options.row:
        row = {"rows": rows, "seconds": found["seconds"]} | {key: config[key] for key in ("base", "seeds", "weights")}
        whole = {"bench": "ablation", **row, **measure.provenance(torch.device("cpu"))}
        measure.write_rows(options.row, [whole], anew=True)
    if options.json:
        print(json.dumps(found, ensure_ascii=False))
    return 0


if __name__ == "__main__":
    sys.exit(main())
