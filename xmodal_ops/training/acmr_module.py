"""The game of ACMR under Lightning: two players, two optimisers."""

from __future__ import annotations

from typing import Any, cast

import torch
from lightning.pytorch.core.optimizer import LightningOptimizer
from torch import Tensor
from torch.distributions import Beta
from torch.nn import functional as F
from torch.optim.lr_scheduler import LambdaLR, LRScheduler

from .._images import unit_range
from ..data import PairData
from ..models import ACMR
from ..nn import reversal_schedule
from .acmr_config import ACMRConfig
from .augment import augment
from .lightning import OnEpoch, RunModule, one_cycle, stream

LOSSES = ("loss", "adversary", "invariance", "discrimination", "pair")


class ACMRModule(RunModule):
    """Trains an ACMR: so many steps of projectors and label predictor, then one of the modality classifier.

    With one for one, both step at once: the reversed gradient makes one backward pass serve both.
    """

    def __init__(self, model: ACMR, data: PairData, config: ACMRConfig, on_epoch: OnEpoch) -> None:
        super().__init__(data, config.seed, config.batch_size, config.monitor, on_epoch)
        self.automatic_optimization = False
        self.model: ACMR = model
        self.config = config
        self.sums: list[Tensor] = []

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
        """The batch and the label predictor's targets after smoothing and mixup (Zhang et al., ICLR 2018).

        A pair is mixed with another in such a way that more than half of it stays itself: so its labels are still
        what L_imi is to go by.
        """
        config = self.config
        targets = (labels if labels.ndim == 2 else F.one_hot(labels, self.model.options["classes"])).float()
        if config.smoothing:
            # One label an item: uniform over the classes; several: towards a half in each.
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
        optimizers = []
        for player in self.model.players():
            # Biases and norms are not decayed.
            groups: list[dict[str, Any]] = [
                {"params": [p for p in player if p.ndim > 1], "weight_decay": config.weight_decay},
                {"params": [p for p in player if p.ndim <= 1], "weight_decay": 0.0},
            ]
            optimizers.append(torch.optim.AdamW(groups, lr=config.learning_rate, betas=(config.beta1, 0.999)))
        if config.schedule == "constant":
            return optimizers
        steps = config.epochs * len(self.sampler)
        schedules = [LambdaLR(o, lambda step: one_cycle((step + 1) / (steps + 1))) for o in optimizers]
        return optimizers, [{"scheduler": schedule, "interval": "step"} for schedule in schedules]
