"""Writes docs/results.md from the JSON in bench/results/retrieval.

python bench/report_results.py

benchmark-*.json   what `xmodal benchmark --json` writes
variants-*.json    variants of one model on one data set: {"protocol", "variants": [{"name", "figures"}]}
tried-*.json       what was tried on validation data: {"protocol", "columns", "rows"}
published.json     figures of papers
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from xmodal_ops.training.report import NAMES

ROOT = Path(__file__).parent
RESULTS = ROOT / "results" / "retrieval"
TARGET = ROOT.parent / "docs" / "results.md"
DIRECTIONS = ("image_to_text", "text_to_image", "mean")

HEAD = """# Results

Made by `python bench/report_results.py` from the JSON in `bench/results/retrieval`; not written by hand.

Every figure is of the test split, which chose nothing. All items of the other modality are a query's gallery, its own
pair among them. *mAP* is mAP@all: the mean over queries of average precision over the whole gallery, divided by the
number of relevant items in it; relevant are items of the query's class. *R@10* counts a query's own pair only. Figures
are image → text / text → image / mean of both; ± is the standard deviation over seeds.
"""


def table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [columns, ["---"] * len(columns), *rows]
    return "".join("| " + " | ".join(line) + " |\n" for line in lines)


def figure(result: Mapping[str, Any], name: str) -> str:
    """Three figures, the last in bold, with the deviation of that one."""
    a, b, mean = (f"{result[direction][name]:.3f}" for direction in DIRECTIONS)
    seeds = len(result.get("seeds", ()))
    spread = f" ± {result['deviation']['mean'][name]:.3f}" if seeds > 1 else ""
    return f"{a} / {b} / **{mean}**{spread}"


def row(name: str, result: Mapping[str, Any]) -> list[str]:
    return [name, figure(result, "map_all"), figure(result, "recall@10"), str(len(result.get("seeds", ())) or "–")]


def protocol(facts: Mapping[str, Any]) -> str:
    pairs = " / ".join(f"{count:,}" for count in facts["pairs"].values())
    parts = [f"{pairs} pairs for training / validation / test", f"gallery {facts['gallery']:,}"]
    parts += [f"compared by {facts['similarity']}", f"chosen by {facts['chosen_by']}"]
    if facts.get("refit"):
        parts.append("what was chosen, fitted anew to training and validation pairs")
    return "Protocol: " + "; ".join(parts) + ".\n" + (f"\n{facts['note']}\n" if "note" in facts else "")


def sections() -> Iterator[str]:
    columns = ("model", "mAP", "R@10", "seeds")
    for file in sorted(RESULTS.glob("benchmark-*.json")):
        content = json.loads(file.read_text())
        models = content["models"]
        chance = next(iter(models.values()))["chance"]
        rows = [["chance", f"{chance['map_all']:.3f}", f"{chance['recall@10']:.3f}", "–"]]
        for name, result in models.items():
            rows.append(row(NAMES[name], result))
            if "ensemble" in result:
                label = f"{NAMES[name]}, the {len(result['seeds'])} networks as one model"
                rows.append([*row(label, result["ensemble"])[:3], "1"])
        yield f"\n## {content['protocol']['data']}\n\n{protocol(content['protocol'])}\n{table(columns, rows)}"
    for file in sorted(RESULTS.glob("variants-*.json")):
        content = json.loads(file.read_text())
        rows = [row(variant["name"], variant["figures"]) for variant in content["variants"]]
        yield f"\n## {content['title']}\n\n{protocol(content['protocol'])}\n{table(columns, rows)}"
    for file in sorted(RESULTS.glob("tried-*.json")):
        content = json.loads(file.read_text())
        rows = [[str(cell) for cell in cells] for cells in content["rows"]]
        yield f"\n## {content['title']}\n\n{content['note']}\n\n{table(content['columns'], rows)}"
    published = json.loads((RESULTS / "published.json").read_text())["figures"]
    rows = [
        [p["data"], p["method"], " / ".join("–" if f is None else f"{f:.3f}" for f in p["figures"]), p["protocol"],
         p["source"]]
        for p in published
    ]  # fmt: skip
    yield (
        "\n## Published figures\n\nNot like for like with the above: other splits, other text features, and where said "
        f"another metric.\n\n{table(('data', 'method', 'mAP', 'protocol', 'source'), rows)}"
    )


def main() -> None:
    TARGET.parent.mkdir(exist_ok=True)
    TARGET.write_text(HEAD + "".join(sections()), encoding="utf-8")
    print(TARGET)


if __name__ == "__main__":
    main()
