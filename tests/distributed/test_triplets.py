"""The triplet losses of several processes, and all gradients, equal those of one process with all the rows."""

import pytest
import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

import xmodal_ops
from xmodal_ops import distributed, large_batch_loss

SHARDS = {"even": (13, 13, 13, 13), "uneven": (30, 2, 1, 9)}
KINDS = ("all", "hard", "semihard", "batch_hard")


def batch(n, multi_label, dtype=torch.float64):
    rows = sum(n)
    generator = torch.Generator().manual_seed(3)
    image, text = (torch.randn(rows, 5, generator=generator, dtype=torch.float64).to(dtype) for _ in range(2))
    if multi_label:
        image_labels, text_labels = (torch.rand(rows, 70, generator=generator) < 0.03 for _ in range(2))
    else:
        image_labels, text_labels = (torch.randint(4, (rows,), generator=generator) for _ in range(2))
    return image, text, image_labels, text_labels


class TwoViews(nn.Module):
    def __init__(self, dtype=torch.float64):
        super().__init__()
        torch.manual_seed(1)
        self.image, self.text = (nn.Sequential(nn.Linear(5, 7), nn.Tanh(), nn.Linear(7, 3)).to(dtype) for _ in range(2))

    def forward(self, image, text):
        return self.image(image), self.text(text)


def gradients(module):
    return torch.cat([(torch.zeros_like(p) if p.grad is None else p.grad).flatten() for p in module.parameters()])


def structure(library, image, text, il, tl, options):
    return library.structure_preserving_loss(image, text, il, tl, margin=2.0, **options)


def margin(library, image, text, il, tl, options):
    return library.triplet_margin_loss(image, il, text, tl, margin=0.5, **options)


def margin_within(library, image, text, il, tl, options):
    """Anchors are their own references: the diagonal is left out."""
    return library.triplet_margin_loss(torch.cat([image, text]), torch.cat([il, tl]), margin=0.5, **options)


LOSSES = [
    *((structure, {"reduction": r}) for r in ("mean", "sum")),
    *((f, {"triplets": k, "reduction": "mean_active"}) for f in (margin, margin_within) for k in KINDS),
    *((margin, {"triplets": k, "reduction": r}) for k in ("all", "batch_hard") for r in ("mean", "sum")),
]


def data_parallel(rank, n, group, shards, multi_label, loss, options):
    parallel = DistributedDataParallel(TwoViews(), process_group=group)
    image, text, il, tl = (t.split(shards[:n])[rank] for t in batch(shards[:n], multi_label))
    value = loss(distributed, *parallel(image, text), il, tl, {**options, "group": group})
    value.backward()
    return value.detach(), gradients(parallel)


@pytest.mark.parametrize("n", [2, 4])
@pytest.mark.parametrize("multi_label", [False, True], ids=["classes", "multi-label"])
@pytest.mark.parametrize("shards", SHARDS.values(), ids=SHARDS.keys())
def test_loss_and_every_parameters_gradient(workers, n, shards, multi_label):
    for loss, options in LOSSES:
        model, (image, text, il, tl) = TwoViews(), batch(shards[:n], multi_label)
        expected = loss(xmodal_ops, *model(image, text), il, tl, options)
        expected.backward()
        truth = gradients(model)
        assert truth.norm() > 0, "without a gradient, the comparison would test nothing"
        for value, gradient in workers(n, data_parallel, shards, multi_label, loss, options):
            torch.testing.assert_close(value, expected.detach(), rtol=1e-10, atol=0)
            assert (gradient - truth).norm() <= 1e-9 * truth.norm(), (loss.__name__, options)


def in_chunks(rank, n, group, shards, loss, options):
    parallel = DistributedDataParallel(TwoViews(), process_group=group)
    image, text, il, tl = (t.split(shards[:n])[rank] for t in batch(shards[:n], False))

    def global_loss(v, t):
        return loss(distributed, v, t, il, tl, {**options, "group": group})

    value = large_batch_loss(parallel, (image, text), global_loss, chunk_size=7)
    value.backward()
    return value.detach(), gradients(parallel)


def test_two_passes_over_chunks_of_global_batches(workers):
    shards = SHARDS["uneven"]
    for loss, options in LOSSES[:4]:
        model, (image, text, il, tl) = TwoViews(), batch(shards, False)
        expected = loss(xmodal_ops, *model(image, text), il, tl, options)
        expected.backward()
        truth = gradients(model)
        for value, gradient in workers(4, in_chunks, shards, loss, options):
            torch.testing.assert_close(value, expected.detach(), rtol=1e-10, atol=0)
            assert (gradient - truth).norm() <= 1e-9 * truth.norm(), (loss.__name__, options)


def halves_and_sums(rank, n, group, dtype):
    image, text, il, tl = (t.split(SHARDS["uneven"])[rank] for t in batch(SHARDS["uneven"], False, dtype))
    results = []
    for loss, options in LOSSES:
        leaves = [v.clone().requires_grad_() for v in (image, text)]
        (2 * loss(distributed, *leaves, il, tl, {**options, "averaged": False})).backward()
        results.append([leaf.grad for leaf in leaves])
    return results


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_summed_gradients_of_other_dtypes(workers, dtype):
    results = workers(4, halves_and_sums, dtype)
    for index, (loss, options) in enumerate(LOSSES):
        image, text, il, tl = batch(SHARDS["uneven"], False, dtype)
        leaves = [v.double().requires_grad_() for v in (image, text)]
        (2 * loss(xmodal_ops, *leaves, il, tl, options)).backward()
        for view, leaf in enumerate(leaves):
            gradient = torch.cat([r[index][view] for r in results])
            assert gradient.dtype == dtype
            tolerance = 1e-5 if dtype == torch.float32 else 2e-2
            assert (gradient.double() - leaf.grad).norm() <= tolerance * leaf.grad.norm(), (loss.__name__, options)


def not_finite(rank, n, group):
    image, text, il, tl = (t.split(SHARDS["even"])[rank].clone() for t in batch(SHARDS["even"], False))
    if rank == 1:
        text[0, 0] = torch.inf
    return [loss(distributed, image, text, il, tl, {**options, "group": group}) for loss, options in LOSSES]


def test_a_row_that_is_not_finite_is_nan_everywhere(workers):
    for values in workers(2, not_finite):
        assert all(value.isnan() for value in values)


def no_gradient(rank, n, group):
    image, text, il, tl = (t.split(SHARDS["even"][:n])[rank] for t in batch(SHARDS["even"][:n], False))
    values = [loss(distributed, image, text, il, tl, {**options, "group": group}) for loss, options in LOSSES]
    return [(value.item(), value.requires_grad) for value in values]


def test_values_without_gradients(workers):
    image, text, il, tl = batch(SHARDS["even"][:2], False)
    expected = [loss(xmodal_ops, image, text, il, tl, options).item() for loss, options in LOSSES]
    for values in workers(2, no_gradient):
        assert [v for v, _ in values] == pytest.approx(expected, rel=1e-12)
        assert not any(requires for _, requires in values)


def disagree(rank, n, group, case):
    image, text, il, tl = (t.split(SHARDS["even"])[rank] for t in batch(SHARDS["even"], False))
    odd = rank == n - 1
    options = {"group": group}
    if odd and case == "columns":
        image, text = image[:, :4], text[:, :4]
    if odd and case == "no rows":
        image, il = image[:0], il[:0]
    if odd and case == "dtype":
        image, text = image.float(), text.float()
    if odd and case == "labels":
        il, tl = il[:, None] == torch.arange(70), tl[:, None] == torch.arange(70)
    if odd and case == "margin":
        options["margin"] = 0.7
    if odd and case == "bad margin":
        options["margin"] = -1.0
    if odd and case == "reduction":
        options["reduction"] = "none"
    if odd and case == "requires_grad":
        image.requires_grad_()
    for call in (
        lambda: distributed.structure_preserving_loss(image, text, il, tl, **options),
        lambda: distributed.triplet_margin_loss(image, il, text, tl, **options),
    ):
        try:
            call()
        except (ValueError, TypeError) as error:
            last = error
        else:
            return "no error"
    raise last


CASES = {
    "columns": ("columns must be the same on every rank, got 5 on rank 0, 4 on rank {odd}", ""),
    "no rows": ("rank {odd} cannot take part: anchor must have at least 1 rows, got 0", "anchor must have at least 1"),
    "dtype": ("dtype must be the same on every rank, got float64 on rank 0, float32 on rank {odd}", ""),
    "labels": (
        r"kind of labels must be the same on every rank, got int64 \[\] on rank 0, int64 \[2\] on rank {odd}",
        "",
    ),
    "margin": ("margin must be the same on every rank, got 0.2 on rank 0, 0.7 on rank {odd}", ""),
    "bad margin": ("rank {odd} cannot take part: margin must be finite and >= 0", "margin must be finite and >= 0"),
    "reduction": ("rank {odd} cannot take part: reduction must be one of", "reduction must be one of"),
    "requires_grad": ("requires_grad must be the same on every rank, got False on rank 0, True on rank {odd}", ""),
}


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("n", [2, 4])
def test_unsuitable_arguments_are_an_error_on_every_rank(workers, n, case):
    common, own = (message.format(odd=n - 1) for message in CASES[case])
    for rank, (_, error) in enumerate(workers.outcomes(n, disagree, case)):
        assert isinstance(error, (ValueError, TypeError)), (rank, error)
        with pytest.raises(type(error), match=own if own and rank == n - 1 else common):
            raise error


def unequal_dtypes(rank, n, group, loss, options):
    """The loss and the gradients of a float32 and a float64 view; what a second backward pass says."""
    image, text, il, tl = (t.split(SHARDS["even"][:n])[rank] for t in batch(SHARDS["even"][:n], False))
    image, text = image.float().requires_grad_(), text.requires_grad_()
    value = loss(distributed, image, text, il.to(torch.uint8), tl.to(torch.int16), {**options, "group": group})
    gradients = torch.autograd.grad(value, (image, text), create_graph=True)
    with pytest.raises(RuntimeError) as raised:
        gradients[1].square().sum().backward()
    return value.detach(), [g.detach() for g in gradients], str(raised.value)


def test_unequal_dtypes_are_promoted_and_second_derivatives_refused(workers):
    image, text, il, tl = batch(SHARDS["even"][:2], False)
    for loss, options in (LOSSES[0], LOSSES[2], LOSSES[5], (trace, {})):
        expected = loss(xmodal_ops, image.float().double(), text, il, tl, options)
        for value, (gi, gt), message in workers(2, unequal_dtypes, loss, options):
            torch.testing.assert_close(value, expected, rtol=1e-6, atol=0)
            assert (gi.dtype, gt.dtype) == (torch.float32, torch.float64)
            assert "is differentiable once" in message


def trace(library, image, text, il, tl, options):
    return library.trace_norm_loss(image, text, **options)
