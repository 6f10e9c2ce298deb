"""A report of evaluation results that can be shown: one HTML file without network, the same as Markdown and JSON."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from .. import __version__
from ..errors import DataError
from ..evaluate import calibration, compare_all, flips
from ..files import write_aside, write_json
from . import svg
from .html import details, html_page, html_table
from .tables import accuracy, markdown_table, percent

Results = Mapping[str, Mapping[str, Any]]


@dataclasses.dataclass
class Section:
    """A heading with a remark, tables (rows, each a dict of one set of keys), a chart, and questions that flipped."""

    title: str
    remark: str = ""
    rows: Sequence[Mapping[str, str]] = ()
    chart: str = ""
    flipped: Sequence[Mapping[str, Any]] = ()


def write_report(
    results: Results, folder: str | Path, *, title: str = "Evaluation", extra: Mapping[str, Any] | None = None,
    lead: Sequence[Section] = (),
) -> dict[str, Any]:
    """Writes report.html, report.md and report.json of results (name → result of `numllm eval`) into a folder.

    The others are compared with the first. extra goes into the JSON; lead: sections before the others. → the
    object in report.json. DataError when there is no result, or one is no evaluation result.
    """
    if not results:
        raise DataError("there is no result to report; give result files of numllm eval")
    for name, result in results.items():
        if not isinstance(result, Mapping) or not {"overall", "by_domain", "questions"} <= set(result):
            raise DataError(f"{name}: is no result of numllm eval")
    comparisons = compare_all(results) if len(results) > 1 else []
    curves = {name: calibration(result["questions"]) for name, result in results.items()}
    first, *others = results
    flipped = {name: flips(results[first], results[name]) for name in others}
    sections = [
        *lead, _accuracies(results), *_comparisons(comparisons), _domains(results), _numeric(results),
        _subjects(results), *_calibrations(curves), *_orders(results), *_contaminations(results),
        *(_flips(first, name, rows) for name, rows in flipped.items()), _events(results), _origins(results),
    ]
    data = {
        "title": title, "numllm": __version__, **(extra or {}),
        "results": {name: {key: value for key, value in result.items() if key != "questions"}
                    for name, result in results.items()},
        "comparisons": comparisons, "calibration": curves, "flips": flipped,
    }
    folder = Path(folder)
    for file, text in (("report.html", _html(title, sections)), ("report.md", _markdown(title, sections))):
        with write_aside(folder / file) as out:
            out.write(text)
    write_json(folder / "report.json", data)
    return data


# Sections


def _accuracies(results: Results) -> Section:
    rows = [
        {"model": name, "protocol": f"{result['protocol']}, {result['shots']} shots",
         "n": f"{result['overall']['n']:,}", "accuracy": accuracy(result["overall"]),
         "numeric": accuracy(result["numeric"]), "non-numeric": accuracy(result["non_numeric"]),
         "mean of subjects": percent(result["overall"].get("macro"))}
        for name, result in results.items()
    ]
    groups = {label: {name: result[key] for name, result in results.items()}
              for label, key in (("overall", "overall"), ("numeric", "numeric"), ("non-numeric", "non_numeric"))}
    chance = _chance(results)
    chart = svg.bars(groups, chance=chance) if any(result["overall"]["n"] for result in results.values()) else ""
    remark = f"With 95 % Wilson intervals; the dashed line is a blind guess, {percent(chance)}."
    return Section("Accuracy", remark, rows, chart)


def _chance(results: Results) -> float | None:
    """Expected accuracy of a blind guess among the possible answers of each question."""
    choices = [
        len(row.get("logprobs") or row.get("options") or ())
        for result in results.values() for row in result["questions"]
    ]
    return sum(1 / count for count in choices) / len(choices) if choices and all(choices) else None


def _comparisons(found: Sequence[Mapping[str, Any]]) -> list[Section]:
    rows = [
        {"model": pair["b"], "questions": label, "n": f"{part['n']:,}",
         "points": f"{part['difference_points']:+.1f}",
         "95 %": " to ".join(f"{bound:+.1f}" for bound in part["ci95_points"]),
         "only first / only this": f"{part['only_a']} / {part['only_b']}", "McNemar p": f"{part['p_value']:.3g}",
         "Holm p": f"{part['p_holm']:.3g}",
         "verdict": part["verdict"].replace("A is", f"{pair['a']} is").replace("B is", f"{pair['b']} is")}
        for pair in found
        for label, part in (("all", pair), ("numeric", pair["numeric"]), ("non-numeric", pair["non_numeric"]))
        if part["n"]
    ]
    remark = (
        "On the same questions: exact McNemar test, bootstrap interval of the difference, p corrected by Holm for the "
        "number of models."
    )
    return [Section(f"Against {found[0]['a']}", remark, rows)] if found else []


def _domains(results: Results) -> Section:
    names = list(dict.fromkeys(domain for result in results.values() for domain in result["by_domain"]))
    rows = [
        {"domain": domain, **{name: accuracy(result["by_domain"].get(domain)) for name, result in results.items()}}
        for domain in names
    ]
    groups = {
        domain: {name: result["by_domain"].get(domain) for name, result in results.items()} for domain in names
        if any(result["by_domain"].get(domain, {"n": 0})["n"] for result in results.values())
    }
    return Section("Domains", "" if rows else "The questions name no domain.", rows,
                   svg.bars(groups, chance=_chance(results)) if groups else "")


def _numeric(results: Results) -> Section:
    rows = []
    for name, result in results.items():
        digit = result["any_digit"]
        rows.append({
            "model": name, "numeric (recogniser)": accuracy(result["numeric"]),
            "numeric (any digit)": accuracy(digit["numeric"]),
            **{kind: accuracy(part) for kind, part in result.get("by_numeric_kind", {}).items()},
        })
    keys = list(dict.fromkeys(key for row in rows for key in row))
    return Section(
        "Numeric questions, by two rules and by kind",
        "calculation: numbers in the stem and as options; recall: options are numbers, the stem has none; stem, "
        "options, both: where the numbers stand otherwise.",
        [{key: row.get(key, "–") for key in keys} for row in rows],
    )


def _subjects(results: Results) -> Section:
    points = {
        name: [
            (part["non_numeric"]["accuracy"], part["numeric"]["accuracy"], part["n"],
             f"{name}, {subject}: numeric {accuracy(part['numeric'])}, non-numeric {accuracy(part['non_numeric'])}")
            for subject, part in result["by_subject"].items()
            if part.get("numeric", {"n": 0})["n"] and part["non_numeric"]["n"]
        ]
        for name, result in results.items()
    }
    subjects = list(dict.fromkeys(subject for result in results.values() for subject in result["by_subject"]))
    rows = [
        {"subject": subject, **{name: accuracy(result["by_subject"].get(subject)) for name, result in results.items()}}
        for subject in subjects
    ]
    chart = svg.scatter(points, "non-numeric accuracy, %", "numeric accuracy, %") if any(points.values()) else ""
    remark = "Each dot is a subject; below the diagonal its numeric questions fare worse."
    return Section("Subjects", remark if chart else "", rows, chart)


def _calibrations(curves: Mapping[str, Mapping[str, Any]]) -> list[Section]:
    shown = {name: curve for name, curve in curves.items() if curve["bins"]}
    rows = [{"model": name, "expected calibration error": percent(curve["error"])} for name, curve in shown.items()]
    remark = "Confidence is the share of probability on the answer given; a calibrated model lies on the diagonal."
    return [Section("Calibration", remark, rows, svg.curves({n: c["bins"] for n, c in shown.items()}))] if shown else []


def _orders(results: Results) -> list[Section]:
    rows = [
        {"model": name, "orders": str(bias["orders"]), "never changes its option": percent(bias["consistent"]),
         "letters said": ", ".join(f"{letter} {percent(share)}" for letter, share in bias["said"].items()),
         "accuracy by order": ", ".join(percent(share) for share in bias["accuracy_by_order"])}
        for name, result in results.items() if (bias := result.get("permutations"))
    ]
    return [Section("Position of the options", "Each question in several orders of its options.", rows)] if rows else []


def _contaminations(results: Results) -> list[Section]:
    rows = [
        {"model": name, "questions that overlap": f"{part['questions']:,}", "with them": accuracy(result["overall"]),
         "without them": accuracy(part["without"]), "only them": accuracy(part["with"])}
        for name, result in results.items() if (part := result.get("contamination"))
    ]
    run = next((result["contamination"]["run"] for result in results.values() if result.get("contamination")), 0)
    remark = f"Questions that share {run} letters and digits in a row with the corpus."
    return [Section("Overlap with the training text", remark, rows)] if rows else []


def _flips(first: str, name: str, rows: Sequence[Mapping[str, Any]]) -> Section:
    gained = sum(row["gained"] for row in rows)
    return Section(
        f"Questions that flipped: {first} → {name}", f"{gained} gained, {len(rows) - gained} lost.", flipped=rows
    )


def _events(results: Results) -> Section:
    rows = [
        {"model": name, "what": what} for name, result in results.items() for what in (
            *result.get("notes", ()), *(f"{count} {quirk}" for quirk, count in result.get("quirks", {}).items())
        )
    ]
    return Section("What was met on the way", "" if rows else "Nothing.", rows)


def _origins(results: Results) -> Section:
    rows = []
    for name, result in results.items():
        origin = result.get("provenance") or {}
        rows.append({
            "model": name, "command": origin.get("command", "–"),
            "SHA-256": "; ".join(f"{file}: {digest}" for file, digest in origin.get("sha256", {}).items()) or "–",
            "with": ", ".join(f"{key} {value}" for key, value in origin.get("versions", {}).items()) or "–",
        })
    return Section("Where the figures come from", "", rows)


# Pages


def _html_flip(row: Mapping[str, Any]) -> str:
    lettered = zip("ABCDE", row["options"], strict=False)
    options = "".join(f"<br>{letter}. {escape(option)}" for letter, option in lettered)
    said = f"{'+' if row['gained'] else '−'} {row['a'] or 'none'} → {row['b'] or 'none'}, right: {row['answer']}"
    return details(f"{said} · {row['id']}", f"<p>{escape(row['question'])}{options}</p>")


def _html(title: str, sections: Sequence[Section]) -> str:
    parts = []
    for section in sections:
        parts.append(f"<h2>{escape(section.title)}</h2>")
        parts.append(f"<p>{escape(section.remark)}</p>" if section.remark else "")
        parts.append(section.chart)
        parts.append(html_table(section.rows) if section.rows else "")
        parts += map(_html_flip, section.flipped)
    return html_page(title, "\n".join(filter(None, parts)))


def _markdown(title: str, sections: Sequence[Section]) -> str:
    parts = [f"# {title}"]
    for section in sections:
        parts.append(f"## {section.title}")
        if section.remark:
            parts.append(section.remark)
        if section.rows:
            parts.append(markdown_table(section.rows, list(section.rows[0])))
        if section.flipped:
            parts.append(markdown_table(
                [{"id": row["id"], "question": row["question"], "right": row["answer"], "first": row["a"] or "none",
                  "this": row["b"] or "none"} for row in section.flipped],
                ["id", "question", "right", "first", "this"],
            ))
    return "\n\n".join(parts) + "\n"
