"""The effect of each part of ACMR, and what was tried on Wikipedia's validation pairs to find its preset.

    python -m bench.acmr_variants --data wikipedia --path DIR [--seeds 5] [--only NAME]
    python -m bench.acmr_variants --data glyphs [--seeds 3]

Variants of the presets are trained with several seeds and evaluated on the test split. What was tried is evaluated by
mAP@all on three draws of the validation split and never sees the test split. Each result is written as soon as it is
there, to bench/results/retrieval/{variants,tried}-acmr-<data>.json; another run computes only those that are missing.
"""

from __future__ import annotations

import argparse
import io
import json
import statistics
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from bench import harness
from xmodal_ops.data import load
from xmodal_ops.training import ACMRConfig, train_acmr, train_acmr_seeds

RESULTS = harness.RESULTS / "retrieval"
QUIET: dict[str, Any] = {"device": "cpu", "console": Console(file=io.StringIO()), "pictures": False}
HISTOGRAMS = {"image_hidden": (512,), "text_hidden": (200,), "dim": 100, "learning_rate": 3e-4, "epochs": 30}

# name: (preset, options that differ)
Variants = dict[str, tuple[str, dict[str, Any]]]
WIKIPEDIA: Variants = {
    "best": ("best", {}),
    "best, adversary off": ("best", {"reversal": 0.0}),
    "best, adversary at full strength": ("best", {"reversal": 1.0}),
    "best, without L_imi": ("best", {"alpha": 0.0}),
    "best, L_imi ten times as strong": ("best", {"alpha": 0.1}),
    "best, without mixing": ("best", {"mixup": 0.0}),
    "best, without dropout before the label predictor": ("best", {"label_dropout": 0.0}),
    "best, compared by cosine of the projections": ("best", {"label_weight": 0.0}),
    "best, not refitted": ("best", {"refit": False}),
    "best, additive χ² features and hidden layers": (
        "best", {"image_features": "chi2", "text_features": "chi2", **HISTOGRAMS}
    ),
    "best, standardised features and hidden layers": (
        "best", {"image_features": "standard", "text_features": "standard", **HISTOGRAMS}
    ),
    "paper": ("paper", {}),
    "paper, adversary off": ("paper", {"reversal": 0.0}),
    "paper, compared by label probability": ("paper", {"label_weight": 1.0}),
    "demo (as the released code)": ("demo", {}),
}  # fmt: skip
GLYPHS: Variants = {
    "best": ("best", {}),
    "best, adversary off": ("best", {"reversal": 0.0}),
    "best, compared by cosine alone": ("best", {"label_weight": 0.0}),
    "best, a fifth of the weight to labels": ("best", {"label_weight": 0.2}),
    "best, compared by labels alone": ("best", {"label_weight": 1.0, "monitor": "map_all"}),
    "best, labels compared by probability": ("best", {"label_similarity": "probability"}),
    "best, without the search for the own partner": ("best", {"pair_weight": 0.0}),
}
VARIANTS = {"wikipedia": WIKIPEDIA, "glyphs": GLYPHS}

TRIED: dict[str, dict[str, Any]] = {
    "as it is": {},
    "adversary off": {"reversal": 0.0},
    "adversary at full strength": {"reversal": 1.0},
    "α = 0.1": {"alpha": 0.1},
    "without L_imi": {"alpha": 0.0},
    "mixing by Beta(1, 1)": {"mixup": 1.0},
    "without mixing": {"mixup": 0.0},
    "additive χ² features of texts, a hidden layer": {
        "text_features": "chi2", "text_hidden": (200,), "text_input_dropout": 0.1
    },
    "additive χ² features, hidden layers": {"image_features": "chi2", "text_features": "chi2", **HISTOGRAMS},
    "square roots of features, hidden layers": {"image_features": "sqrt", "text_features": "sqrt", **HISTOGRAMS},
    "four networks side by side": {"members": 4, "dim": 1024},
    "half the dropout before the label predictor": {"label_dropout": 0.35},
    "label smoothing 0.1": {"smoothing": 0.1},
    "a hidden layer in the label predictor": {"label_hidden": (100,)},
    "search for the own partner, weight 0.1": {"pair_weight": 0.1},
    "learning rate 2e-4": {"learning_rate": 2e-4},
    "learning rate 1e-3": {"learning_rate": 1e-3},
    "batches of 256": {"batch_size": 256},
    "30 epochs": {"epochs": 30},
}  # fmt: skip


def protocol(data: Any, **rest: Any) -> dict[str, Any]:
    pairs = {split: len(getattr(data, split)) for split in ("train", "validation", "test")}
    return {"pairs": pairs, **rest}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", choices=list(VARIANTS), required=True)
    parser.add_argument("--path", type=Path, help="directory of the Wikipedia files, see docs/data.md")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--only", help="only this entry of either table")
    options = parser.parse_args()
    torch.set_num_threads(1)  # the networks are too small for more
    place = {} if options.path is None else {"path": options.path}
    data, ours = load(options.data, **place), VARIANTS[options.data]

    def known(name: str) -> dict[str, Any]:
        file = RESULTS / f"{name}-acmr-{options.data}.json"
        return json.loads(file.read_text()) if file.exists() else {}  # type: ignore[no-any-return]

    def write(name: str, content: Mapping[str, Any]) -> None:
        head = {"machine": harness.machine("cpu")}
        (RESULTS / f"{name}-acmr-{options.data}.json").write_text(json.dumps({**content, **head}, indent=1) + "\n")

    variants = {v["name"]: v for v in known("variants").get("variants", ())}
    for name, (preset, changes) in ours.items():
        if name in variants or options.only not in (None, name):
            continue
        config = ACMRConfig.preset(preset, options.data, **changes)
        with tempfile.TemporaryDirectory() as folder:
            scores = train_acmr_seeds(data, config, folder, range(options.seeds), **QUIET)
        variants[name] = {"name": name, "figures": scores, "options": config.to_dict()}
        print(name, scores["mean"]["map_all"], scores["deviation"]["mean"]["map_all"], flush=True)
        facts = protocol(
            data, gallery=len(data.test), similarity="cosine of the retrieval space",
            chosen_by=f"{config.monitor} on the validation split, mean of both directions",
        )  # fmt: skip
        ordered = [variants[v] for v in ours if v in variants]
        write(
            "variants",
            {"title": f"ACMR on {options.data.capitalize()}, its parts", "protocol": facts, "variants": ordered},
        )

    rows = {row[0]: row for row in known("tried").get("rows", ())}
    for name, changes in TRIED.items() if options.data == "wikipedia" else ():
        if name in rows or options.only not in (None, name):
            continue
        config = ACMRConfig.preset("best", "wikipedia", refit=False, **changes)
        best = []
        for draw in range(3):
            with tempfile.TemporaryDirectory() as folder:
                pairs = load("wikipedia", seed=draw, **place)
                result = train_acmr(pairs, config, folder, **QUIET)
            best.append(max(epoch[f"validation {config.monitor}"] for epoch in result.history))
        rows[name] = [name, *(f"{score:.4f}" for score in (*best, statistics.mean(best)))]
        print(rows[name], flush=True)
        note = (
            "One training on each of three draws of the validation split (a fifth of training), seed 0; mAP@all, "
            "the mean of both directions, of the best epoch. The test split is not used."
        )
        columns = ["preset `best` with", "draw 0", "draw 1", "draw 2", "mean"]
        title = "ACMR on Wikipedia, what was tried"
        ordered = [rows[r] for r in TRIED if r in rows]
        write("tried", {"title": title, "note": note, "columns": columns, "rows": ordered})


if __name__ == "__main__":
    main()
