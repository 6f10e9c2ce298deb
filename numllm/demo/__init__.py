"""The whole way on the embedded default: a mini textbook, a tiny trained base, held-out questions.

`textbook/` is trained on. `workbook/` is only evaluated on: its cases are the held-out text, and `questions/` is made
of them and of its reviews, which state the textbook's rules in other words (scripts/build_demo_questions.py). `base/`
is the model, with its card.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ..config import LoRAConfig
from ..corpus import build_corpus, read_corpus
from ..files import Progress, new_folder, no_progress, place_of, write_json, write_jsonl
from ..numct import audit, build
from ..train_config import TrainConfig

HERE = Path(__file__).parent
TEXTBOOK, WORKBOOK, BASE = HERE / "textbook", HERE / "workbook", HERE / "base"
NUMERIC, CONCEPTS = HERE / "questions" / "numeric.jsonl", HERE / "questions" / "concepts.jsonl"
REVIEW = "复习与思考"
"""Title of the section at the end of a chapter that states its rules again in other words."""
VALIDATION = HERE / "questions" / "validation.jsonl"
CASE = 4
"""Held-out questions of a worked case at most: each holds many more numbers than a review states rules."""
VALIDATION_CHAPTERS = ("02", "13", "14")
"""The demo's settings were chosen on the reviews of these chapters; the other reviews are held out."""

STEPS = 320
LORA = LoRAConfig(rank=16, alpha=32.0)
WEIGHTS = {"domain": 1.0, "numeric": 0.8}
"""Of the adapters in the merge, chosen on the validation questions and reviews, means of three seeds: at a numeric
weight of 0.6, 0.8, 1 the merge answers 33.1, 35.7, 35.2 %, with a perplexity of 87, 99, 117."""
PROMPT = "货币时间价值是指"


def training(out: Path, steps: int, seed: int = 0) -> TrainConfig:
    """The demo's training run: both adapters in one pass, choices by likelihood."""
    return TrainConfig(
        model="demo", out=str(out / "run"), corpus=str(out / "corpus"), numct=str(out / "numct.jsonl"),
        steps=steps, length=256, rows=2, questions=12, loss="likelihood", text_weight=1.0, domain=LORA,
        numeric=LORA, domain_rate=2e-3, numeric_rate=2e-3, save_every=100, dtype="float32", seed=seed,
    )


def workbook_questions(scratch: Path) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """(held-out, validation) numeric questions, rows of numct.jsonl, made from the workbook with seed 0.

    Each sentence of a review is asked by itself (subject 复习); of the cases (subject 案例), the numbers that
    follow from others in the text. scratch: folder for the corpora in between.
    """
    reviews = sorted(WORKBOOK.glob("review-*.md"))
    chosen_on = [path for path in reviews if path.stem.endswith(VALIDATION_CHAPTERS)]
    heldout = [path for path in reviews if path not in chosen_on]

    def made(subject: str, paths: list[Path], **settings: Any) -> list[dict[str, Any]]:
        folder = scratch / paths[0].stem
        build_corpus(paths, folder, holdout=0.0)
        return [row | {"subject": subject, "split": "heldout"} for row in build(read_corpus(folder), **settings)]

    cases = made("案例", sorted(WORKBOOK.glob("cases-*.md")), tags=("derivable",), max_per_doc=CASE)
    return made("复习", heldout, context=0) + cases, made("复习", chosen_on, context=0)


def training_questions(documents: list[dict[str, Any]], seed: int = 0) -> list[dict[str, Any]]:
    """The numeric adapter's questions from the textbook's corpus: the rules.

    Each sentence is asked by itself; kept are those of the chapters' review sections, which state the rules in
    other words, and elsewhere those tagged recall. The numbers of worked examples are their story's own.
    """
    reviews = {row["id"] for row in documents if row["title"].endswith(REVIEW)}
    return [
        row for row in build(documents, context=0, seed=seed) if row["source_id"] in reviews or row["tag"] == "recall"
    ]


class Judge:
    """Scores models on the held-out text and the held-out questions, numeric and non-numeric."""

    def __init__(self, corpus: Path, progress: Progress) -> None:
        from ..questions import read_questions

        self.texts = [row["text"] for row in read_corpus(corpus)]
        self.questions = read_questions([NUMERIC, CONCEPTS])
        self.progress = progress

    def __call__(self, model: Any, tokenizer: Any) -> dict[str, dict[str, Any]]:
        """{"text": perplexity, "likelihood": evaluation result, "letters": evaluation result}."""
        from ..evaluate import evaluate, perplexity

        return {"text": perplexity(model, tokenizer, self.texts, length=256, stride=224)} | {
            protocol: evaluate(model, tokenizer, self.questions, protocol=protocol, progress=self.progress)
            for protocol in ("likelihood", "letters")
        }


def run_demo(
    out: Path, *, train: Callable[[TrainConfig], Any], steps: int | None = None, seed: int = 0,
    overwrite: bool = False, say: Callable[[str], None] = lambda text: None, progress: Progress = no_progress,
) -> dict[str, Any]:
    """Walks from the textbook to the merged model in the folder `out`, which appears whole.

    train: called with the TrainConfig; runs it to its end. seed: of the adapters' start and the order of data.
    say: told what is being done.
    → {"models": [{"name", "perplexity", "numeric", "non_numeric", "letters"}], "comparisons", "generated",
    "stages", "text", and figures}, "text" being the table for people; written to demo.json too.
    """
    with new_folder(place_of(out), overwrite=overwrite) as folder:
        result = _walk(folder, train, steps or STEPS, seed, say, progress)
        result["folder"] = str(out)
    return result


def _walk(
    out: Path, train: Callable[[TrainConfig], Any], steps: int, seed: int, say: Callable[[str], None],
    progress: Progress,
) -> dict[str, Any]:
    import torch

    from ..generate import generate
    from ..lora import load_adapters
    from ..merge import merge
    from ..model import load_model
    from ..tokenizer import Tokenizer

    stages: list[dict[str, Any]] = []
    clock = time.perf_counter()

    def done(stage: str, text: str) -> None:
        nonlocal clock
        stages.append({"stage": stage, "done": text, "seconds": round(time.perf_counter() - clock, 1)})
        say(stage_line(stages[-1]))
        clock = time.perf_counter()

    stats = build_corpus([TEXTBOOK], out / "corpus", holdout=0.0)
    build_corpus(sorted(WORKBOOK.glob("cases-*.md")), out / "heldout", holdout=0.0)
    done("corpus", f"{stats['documents']} documents, {stats['chinese_characters']:,} Chinese characters")

    rows = training_questions(list(read_corpus(out / "corpus")))
    write_jsonl(out / "numct.jsonl", rows)
    write_json(out / "audit.json", audit(rows))
    done("numct", f"{len(rows):,} choice questions about the textbook's rules")

    config = training(out, steps, seed)
    train(config)
    adapters = {name: Path(config.out) / "adapters" / name for name in config.adapters}
    done("train", f"both adapters, {steps} steps in one pass over the frozen model")

    total, rank = sum(config.lora(name).rank for name in adapters), LORA.rank
    merges = {"exact": ("exact", None), f"svd-{total}": ("svd", total), f"svd-{rank}": ("svd", rank)}
    reports = {
        name: merge("demo", [(path, WEIGHTS[adapter]) for adapter, path in adapters.items()], out / f"merged-{name}",
                    method=method, rank=kept, verify=True)
        for name, (method, kept) in merges.items()
    }
    done("merge", f"{len(reports)} ways, each verified: {', '.join(reports)}")

    judge, tokenizer = Judge(out / "heldout", progress), Tokenizer.open("demo")
    found: dict[str, dict[str, Any]] = {}
    base = load_model("demo", dtype=torch.float32)
    attached = load_adapters(base, {name: (path, 1.0) for name, path in adapters.items()})
    for label, which in (("base", "none"), ("+ domain", "domain"), ("+ numeric", "numeric")):
        with attached.use(which):
            found[label] = judge(base, tokenizer)
    for name in merges:
        merged = load_model(out / f"merged-{name}", dtype=torch.float32)
        found[f"merged {name}"] = judge(merged, tokenizer)
    done("evaluate", f"{len(found)} models on {len(judge.questions)} held-out questions")

    (sentence,) = generate(merged, tokenizer, [PROMPT], max_new_tokens=48, temperature=0.7, top_p=0.9, seed=seed)
    done("generate", f"by merged svd-{rank}")
    return _report(out, found, PROMPT + sentence, {
        "documents": stats["documents"], "chinese_characters": stats["chinese_characters"],
        "choice_questions": len(rows), "questions": len(judge.questions), "steps": steps, "seed": seed,
        "stages": stages,
    })


def _report(
    out: Path, found: dict[str, dict[str, Any]], sentence: str, figures: dict[str, Any]
) -> dict[str, Any]:
    """Writes demo.json, demo.md, demo.png (with plots installed) and a result file for each model."""
    from ..evaluate import compare
    from ..report import has_plots, markdown_table, plot_bars, table

    keys = ("n", "correct", "accuracy", "ci95")
    models, comparisons = [], []
    for name, scores in found.items():
        write_json(out / "results" / f"{name.replace(' ', '-').replace('+', 'with')}.json",
                   {"model": name, **scores["likelihood"]})
        groups = {
            protocol: {group: {key: scores[protocol][group][key] for key in keys}
                       for group in ("overall", "numeric", "non_numeric")}
            for protocol in ("likelihood", "letters")
        }
        models.append({
            "name": name, "perplexity": scores["text"]["perplexity"],
            "bits_per_character": scores["text"]["bits_per_character"], **groups["likelihood"],
            "letters": groups["letters"],
        })
        if name != "base":
            pair = compare(found["base"]["likelihood"], scores["likelihood"])
            comparisons += [
                {"model": name, "questions": group, **{key: pair[group][key] for key in (
                    "n", "difference_points", "ci95_points", "p_value", "verdict")}}
                for group in ("numeric", "non_numeric")
            ]
    result = {"models": models, "comparisons": comparisons, "generated": sentence, **figures}
    write_json(out / "demo.json", result)
    shown = tables(result)
    (out / "demo.md").write_text(
        "".join(f"{markdown_table(rows, list(rows[0]))}\n\n" for rows in shown) + f"> {sentence}\n", encoding="utf-8")
    if has_plots():
        plot_bars({name: scores["likelihood"] for name, scores in found.items()}, out / "demo.png")
    return result | {"text": "\n" + "".join(f"{table(rows, list(rows[0]))}\n\n" for rows in shown) + sentence}


def stage_line(stage: dict[str, Any]) -> str:
    """What a stage did and how long it took."""
    return f"{stage['stage']:<10} {stage['done']} ({stage['seconds']:.1f} s)"


def tables(result: dict[str, Any]) -> list[list[dict[str, str]]]:
    """The rows of the tables for people: the models side by side, and each against the base."""
    models = [
        {
            "model": row["name"], "perplexity": f"{row['perplexity']:.1f}", "numeric": _accuracy(row["numeric"]),
            "non-numeric": _accuracy(row["non_numeric"]), "letters: numeric": _accuracy(row["letters"]["numeric"]),
            "non-numeric ": _accuracy(row["letters"]["non_numeric"]),
        }
        for row in result["models"]
    ]
    against = [
        {
            "model": row["model"], "questions": row["questions"].replace("_", "-"), "n": str(row["n"]),
            "points against base": f"{row['difference_points']:+.1f}",
            "95 %": " to ".join(f"{bound:+.1f}" for bound in row["ci95_points"]),
            "McNemar p": f"{row['p_value']:.2g}",
            "verdict": row["verdict"].replace("B is", "the model is").replace("A is", "the base is"),
        }
        for row in result["comparisons"]
    ]
    return [models, against]


def _accuracy(group: dict[str, Any]) -> str:
    """"34.5 % (31.0–38.0)"."""
    low, high = group["ci95"]
    return f"{100 * group['accuracy']:.1f} % ({100 * low:.1f}–{100 * high:.1f})"
