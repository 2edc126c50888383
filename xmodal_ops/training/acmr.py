"""Training of ACMR, for one seed or several."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import torch
from lightning.pytorch.core.optimizer import LightningOptimizer
from torch import Tensor
from torch.distributions import Beta
from torch.nn import functional as F
from torch.optim.lr_scheduler import LambdaLR, LRScheduler

from .._images import unit_range
from ..data import PairData
from ..errors import UserError
from ..models import ACMR
from ..models.branches import BranchSpec
from ..models.projector import Projector
from ..nn import reversal_schedule
from ..options import ACMRConfig
from . import report
from .augment import augment
from .dcca import cnn_spec
from .evaluation import Ensemble, drawing, evaluate, load_run
from .files import write_json
from .fit import Result, train, train_seeds
from .lightning import Row, RunModule, adamw, one_cycle, stream
from .run import RunDirectory

ACMRResult = Result[ACMR]
LOSSES = ("loss", "adversary", "invariance", "discrimination", "pair")


def train_acmr(data: PairData, config: ACMRConfig, output: str | Path, **options: Any) -> Result[ACMR]:
    """Trains an ACMR on labelled pairs; arguments, `options` and errors are those of `xmodal_ops.training.fit.train`.

    The run directory also holds `space.png`, the common space before and after, and `config.json` the class names.
    """
    return train(ACMRModule, data, config, output, **options)


class ACMRModule(RunModule):
    """The game of ACMR: `projector_steps` steps of projectors and label predictor, then one of the modality classifier.

    If `projector_steps` is 1, both players step at once: the reversed gradient makes one backward pass serve both.
    """

    NAME = "acmr"
    model: ACMR
    config: ACMRConfig

    def __init__(self, model: ACMR, data: PairData, config: ACMRConfig) -> None:
        super().__init__(model, data, config)
        self.automatic_optimization = False
        self.sums: list[Tensor] = []
        for projector, rows in ((model.image_projector, data.train.image), (model.text_projector, data.train.text)):
            if isinstance(projector, Projector):
                projector.fit(rows)

    @staticmethod
    def describe(config: ACMRConfig, data: PairData) -> dict[str, Any]:
        classes, several = label_kind(data)
        labels = {"classes": classes, "multi_label": several, "class_names": data.classes}
        return {**labels, **dict(zip(ACMR.NETWORKS, projector_specs(config, data)))}

    @staticmethod
    def notes(config: ACMRConfig, data: PairData) -> list[str]:
        return absent_classes(data)

    def snapshot(self) -> tuple[Tensor, Tensor]:
        test = self.data.test
        return self.model.project(0, test.image).cpu(), self.model.project(1, test.text).cpu()

    def draw(self, run: RunDirectory, history: list[Row], before: Any) -> None:
        with drawing(run.loss) as path:
            report.game_curves(history, self.config.monitor, path)
        with drawing(run.space) as path:
            labels, classes = self.data.test.labels, self.data.classes
            report.space_picture(before, self.snapshot(), labels, path, classes=classes)

    def training_step(self, batch: dict[str, Tensor], index: int) -> Tensor:
        config = self.config
        first, second = cast("list[LightningOptimizer]", self.optimizers())
        step = self.current_epoch * len(self.sampler) + index
        torch.manual_seed(stream(config.seed, step))  # dropout, mixup and augmentation
        progress = step / (config.epochs * len(self.sampler))
        reversal = config.reversal * (reversal_schedule(progress) if config.reversal_schedule else 1.0)
        image, text, labels = batch["image"], batch["text"], batch["labels"]
        if config.augment and image.ndim == 4:
            image = augment(image)
        image, text, targets = self.soften(image, text, labels)
        losses = self.model.losses(image, text, labels, targets=targets, reversal=reversal)
        first.zero_grad()
        second.zero_grad()
        self.manual_backward(losses.embedding + losses.adversary)
        first.step()
        if config.projector_steps == 1:
            second.step()
        elif (step + 1) % config.projector_steps == 0:
            with torch.no_grad():
                projections = self.model(image, text)
            second.zero_grad()
            self.manual_backward(self.model.modality_loss(*projections))
            second.step()
        for schedule in cast("list[LRScheduler] | None", self.lr_schedulers()) or ():
            schedule.step()
        self.sums.append(torch.stack([value.detach().float() for value in losses]))
        return losses.embedding.detach()

    def soften(self, image: Tensor, text: Tensor, labels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The batch and the label predictor's targets (m, C) after smoothing and mixup (Zhang et al., ICLR 2018).

        At least half of each pair stays itself, so that its labels still hold for L_imi.
        """
        config = self.config
        targets = (labels if labels.ndim == 2 else F.one_hot(labels, self.model.classes)).float()
        if config.smoothing:
            # Towards the uniform distribution if an item has one label, towards one half if it may have several.
            centre = 0.5 if labels.ndim == 2 else 1 / targets.shape[1]
            targets = targets.lerp(torch.full_like(targets, centre), config.smoothing)
        if config.mixup:
            share = Beta(config.mixup, config.mixup).sample((len(labels), 1)).to(targets.device)
            share = torch.minimum(share, 1 - share)
            other = torch.randperm(len(labels), device=targets.device)
            targets = targets.lerp(targets[other], share)
            text = text.lerp(text[other], share.to(text.dtype))
            image = unit_range(image)
            image = image.lerp(image[other], share.to(image.dtype).view(-1, *(1,) * (image.ndim - 1)))
        return image, text, targets

    def on_train_epoch_end(self) -> None:
        means = torch.stack(self.sums).mean(0).tolist()
        self.sums.clear()
        self.finish_epoch(**dict(zip(LOSSES, means)))

    def configure_optimizers(self) -> Any:
        config = self.config
        optimizers = [adamw(player, config, config.beta1) for player in self.model.players()]
        if config.schedule == "constant":
            return optimizers
        steps = config.epochs * len(self.sampler)
        schedules = [LambdaLR(o, lambda step: one_cycle((step + 1) / (steps + 1))) for o in optimizers]
        return optimizers, [{"scheduler": schedule, "interval": "step"} for schedule in schedules]


def train_acmr_seeds(
    data: PairData, config: ACMRConfig, output: str | Path, seeds: Sequence[int], **rest: Any
) -> dict[str, Any]:
    """Trains one ACMR per seed in `output/seed-N`; returns the metrics of all of them by `summarise`.

    If there are several seeds, "ensemble" holds the metrics of all networks as one model. A seed determines weights,
    batches and everything else that is random in training; the validation pairs are the same for all. With `resume`,
    finished seeds stay as they are. `rest` are the options of `train_acmr`.
    """
    top = RunDirectory(output)
    with top.reserved():
        summary = summarise(train_seeds(train_acmr, "acmr", data, config, output, seeds, **rest), seeds)
        if len(seeds) > 1:
            runs = [RunDirectory(top.path / f"seed-{seed}") for seed in seeds]
            ensemble = Ensemble([cast(ACMR, load_run(run.path, rest.get("device", "auto"))) for run in runs])
            summary["ensemble"] = evaluate(ensemble, data.test)
        write_json(top.metrics, {"acmr": summary})
    return summary


def summarise(results: Sequence[Mapping[str, Any]], seeds: Sequence[int]) -> dict[str, Any]:
    """The metrics of one evaluation per seed, averaged, and in `deviation` their sample standard deviations."""
    directions = ("image_to_text", "text_to_image", "mean")
    out = dict(results[0])
    out["deviation"] = {}
    for name in directions:
        values = {metric: [float(r[name][metric]) for r in results] for metric in results[0][name]}
        out[name] = {metric: statistics.fmean(v) for metric, v in values.items()}
        out["deviation"][name] = {metric: statistics.stdev(v) if len(v) > 1 else 0.0 for metric, v in values.items()}
    out["seeds"] = list(seeds)
    return out


def projector_specs(config: ACMRConfig, data: PairData) -> tuple[BranchSpec, BranchSpec]:
    """The projectors that suit the data: a small CNN for images, fully connected layers for features."""

    def projector(view: str, rows: Tensor) -> BranchSpec:
        own = {name: getattr(config, f"{view}_{name}") for name in ("hidden", "features", "dropout", "input_dropout")}
        arguments = {"in_features": rows.shape[1], "out_features": config.dim, "members": config.members, **own}
        if own["features"] == "kernel":
            arguments["landmarks"] = min(len(rows), config.landmarks)
        return {"name": "Projector", "arguments": arguments}

    image, text = data.train.image, data.train.text
    return projector("image", image) if image.ndim == 2 else cnn_spec(data, config.dim), projector("text", text)


def label_kind(data: PairData) -> tuple[int, bool]:
    """The number of classes, and whether an item may have several. UserError for data without labels."""
    labels = data.train.labels
    if labels is None:
        raise UserError(f"ACMR learns from labels, and {data.name} has none: name classes, or train dcca")
    if labels.ndim == 2:
        return labels.shape[1], True
    parts = (data.train, data.validation, data.test)
    largest = max(int(part.labels.max()) for part in parts if part.labels is not None)
    classes = len(data.classes) if data.classes is not None else largest + 1
    if classes < 2:
        raise UserError(f"ACMR needs at least 2 classes, {data.name} has {classes}")
    return classes, False


def absent_classes(data: PairData) -> list[str]:
    """Notes on classes that are missing from a split, on which the metrics are then silent."""
    _, several = label_kind(data)

    def present(labels: Tensor | None) -> set[int]:
        assert labels is not None
        return set((labels.any(0).nonzero()[:, 0] if several else labels.unique()).tolist())

    def names(missing: set[int]) -> str:
        return ", ".join(str(c) if data.classes is None else data.classes[c] for c in sorted(missing))

    train, validation, test = (present(part.labels) for part in (data.train, data.validation, data.test))
    lines = []
    if missing := (validation | test) - train:
        lines.append(f"classes without a training pair, which cannot be learnt: {names(missing)}")
    if missing := train - validation:
        lines.append(f"classes without a validation pair, which do not count in choosing the epoch: {names(missing)}")
    return lines
