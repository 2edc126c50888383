"""The options of the models and of their trainings, each stated once.

A field holds everything that is known about an option: type, default, help, range or choices. The fields drive the
checks of constructors, `config.json`, the options and `--help` of the command line, and `--set NAME=VALUE`.
This module needs the standard library only, so that `xmodal --help` does not wait for torch.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import Field, dataclass, field, fields
from itertools import chain
from numbers import Integral, Real
from types import NoneType
from typing import Any, ClassVar, TypeVar, get_args, get_origin, get_type_hints

from .errors import UserError

MONITORS = ("recall@1", "recall@5", "recall@10", "map_all", "map_50", "mrr")
PRECISIONS = ("32-true", "bf16-mixed", "16-mixed")
FEATURES = ("none", "standard", "sqrt", "chi2", "kernel")
INVARIANCES = ("structure", "batch_hinge")
SIMILARITIES = ("probability", "bhattacharyya")
RIDGES = (0.01, 0.03, 0.1, 0.3, 1.0, 3.0)
COMPONENTS = (2, 3, 5, 7, 10, 20, 50, 100, 200, 500)
POWERS = (0.0, 1.0, 2.0, 4.0)

_NOUNS = {int: "an integer", float: "a finite number", bool: "true or false", str: "a word"}
_NUMBERS = {int: Integral, float: Real}
_BOOLS = {"true": True, "false": False}

LARGEST = 2**31 - 1  # integer

T = TypeVar("T", bound="Options")


def option(default: Any, **facts: Any) -> Any:
    """A dataclass field that states an option. `facts` are fields of `Option`, from `help` on."""
    return field(default=default, metadata=facts)


@dataclass(frozen=True, kw_only=True)
class Option:
    """Everything that is known about an option."""

    name: str
    default: Any
    kind: type  # int, float, bool or str; of the elements if it is a tuple
    optional: bool  # may be None
    scalar: bool  # may be a single value
    sequence: bool  # may be a tuple
    length: int  # of the tuple; 0: any
    help: str  # one sentence
    choices: Sequence[str] = ()
    minimum: float = -math.inf  # limits of a number, or of each number in a tuple
    maximum: float = math.inf
    above: float = -math.inf  # exclusive
    below: float = math.inf  # exclusive

    @classmethod
    def of(cls, field: Field[Any], hint: Any) -> Option:
        """The option of a field with the type `int`, `int | None`, `tuple[int, ...]`, `int | tuple[int, int]`, …"""
        arms = (hint,) if get_origin(hint) is tuple else get_args(hint) or (hint,)
        scalars = [arm for arm in arms if arm in _NOUNS]
        tuples = [get_args(arm) for arm in arms if get_origin(arm) is tuple]
        kind = scalars[0] if scalars else tuples[0][0]
        return cls(
            name=field.name, default=field.default, kind=kind, optional=NoneType in arms, scalar=bool(scalars),
            sequence=bool(tuples), length=len(tuples[0]) if tuples and ... not in tuples[0] else 0, **field.metadata,
        )  # fmt: skip

    def check(self, value: Any) -> Any:
        """The value in the option's type. Raises UserError if it has another type or is out of range."""
        if value is None and self.optional:
            return None
        if self.sequence and isinstance(value, (list, tuple)):
            if self.length and len(value) != self.length:
                raise UserError(f"{self.name} must have {self.length} values, got {len(value)}")
            return tuple(self._element(element) for element in value)
        if not self.scalar:
            raise UserError(f"{self.name} must be a list, got {value!r}")
        return self._element(value)

    def _element(self, value: Any) -> Any:
        right = isinstance(value, _NUMBERS.get(self.kind, self.kind)) and isinstance(value, bool) == (self.kind is bool)
        if not right or (self.kind is float and _infinite(value)):
            raise UserError(f"{self.name} must be {_NOUNS[self.kind]}, got {value!r}")
        if self.choices and value not in self.choices:
            raise UserError(f"{self.name} must be one of {', '.join(map(repr, self.choices))}, got {value!r}")
        if self.kind is int and value > LARGEST:
            raise UserError(f"{self.name} must be at most {LARGEST}, got {value}")
        if self.kind in _NUMBERS and not (self.minimum <= value <= self.maximum and self.above < value < self.below):
            raise UserError(f"{self.name} must {self.range}, got {value}")
        return self.kind(value)

    @property
    def range(self) -> str:
        """The allowed numbers, as in "temperature must be positive"."""
        if self.above == 0:
            return "be positive"
        if self.maximum < math.inf:
            return f"lie in {self.minimum}..{self.maximum}"
        return f"be at least {self.minimum}" + (f" and less than {self.below}" if self.below < math.inf else "")

    def parse(self, text: str) -> Any:
        """The value of `0.1`, `512,256`, `true`, `none` or a word, checked."""
        if self.optional and text == "none":
            return None
        if not self.sequence:
            return self.check(self._read(text))
        values = [self._read(word) for word in text.strip("[]").split(",") if word.strip()]
        return self.check(values[0] if self.scalar and len(values) == 1 else values)

    def _read(self, text: str) -> Any:
        try:
            return _BOOLS[text.lower()] if self.kind is bool else self.kind(text)
        except (KeyError, ValueError):
            return text  # which the check refuses

    def text(self, value: Any) -> str:
        """The inverse of `parse`."""
        return ",".join(map(str, value)) if isinstance(value, tuple) else "none" if value is None else str(value)


def _infinite(value: Any) -> bool:
    try:
        return math.isinf(value)
    except OverflowError:  # an integer too large for a float
        return True


def options_of(kind: type[Options]) -> dict[str, Option]:
    """The options of a class by name, those of its bases first."""
    hints = get_type_hints(kind)
    return {field.name: Option.of(field, hints[field.name]) for field in fields(kind)}


@dataclass
class Options:
    """Base of the classes of options: dataclasses whose fields come from `option`.

    Construction checks every value. UserError, a ValueError, names the option, what it must be, and what was given.
    A subclass may give an inherited option another default, `epochs: int = 200`; help and limits stay.
    """

    PRESETS: ClassVar[Mapping[str, Mapping[str, Any]]] = {}

    def __init_subclass__(cls) -> None:
        for inherited in chain.from_iterable(fields(base) for base in cls.__mro__[1:-1]):
            default = vars(cls).get(inherited.name, inherited)
            if not isinstance(default, Field):
                setattr(cls, inherited.name, option(default, **inherited.metadata))

    def __post_init__(self) -> None:
        for name, known in options_of(type(self)).items():
            setattr(self, name, known.check(getattr(self, name)))

    @classmethod
    def preset(cls: type[T], data: str, /, **options: Any) -> T:
        """The options that were chosen for a data set on its validation split; `options` replace some of them."""
        return cls(**{**cls.PRESETS.get(data, {}), **options})

    def to_dict(self) -> dict[str, Any]:
        """The options as plain data for JSON."""
        values = {name: getattr(self, name) for name in options_of(type(self))}
        return {name: list(value) if isinstance(value, tuple) else value for name, value in values.items()}

    @classmethod
    def from_dict(cls: type[T], values: Mapping[str, Any]) -> T:
        """The inverse of `to_dict`. Missing options take their defaults; an unknown one is a UserError."""
        if unknown := sorted(values.keys() - options_of(cls).keys()):
            raise UserError(f"config.json holds options that this version does not know: {', '.join(unknown)}")
        return cls(**values)

    def part(self, kind: type[Options]) -> dict[str, Any]:
        """The values of the options that `kind` has as well."""
        return {name: getattr(self, name) for name in options_of(kind)}


@dataclass
class TrainingConfig(Options):
    """Options of every training."""

    seed: int = option(0, minimum=0, help="Seed of weights and batches; equal seeds give equal runs on a CPU.")
    epochs: int = option(20, minimum=1, help="Passes over the training pairs.")
    batch_size: int = option(64, minimum=2, help="Pairs per step.")
    learning_rate: float = option(1e-3, minimum=0, help="Learning rate; the peak if a schedule changes it.")
    weight_decay: float = option(0.0, minimum=0, help="Decoupled weight decay of AdamW.")
    gradient_clip: float = option(0.0, minimum=0, help="Maximum norm of the gradients; 0 does not clip.")
    augment: bool = option(False, help="Shift, rotate and scale training images at random.")
    patience: int = option(0, minimum=0, help="Stop after this many epochs without improvement; 0 never stops early.")
    refit: bool = option(False, help="Retrain on training + validation pairs up to the best epoch.")
    monitor: str = option("recall@10", choices=MONITORS, help="Validation metric that selects the best epoch.")
    precision: str = option("32-true", choices=PRECISIONS, help="Floating-point precision, as in Lightning.")


@dataclass
class LinearCCAConfig(Options):
    """Options of a linear CCA: the grid from which the validation split selects."""

    monitor: str = option("recall@10", choices=MONITORS, help="Validation metric that selects the parameters.")
    ridges: tuple[float, ...] = option(RIDGES, minimum=0, help="Candidate ridges, relative to the mean variances.")
    components: tuple[int, ...] = option(COMPONENTS, minimum=1, help="Candidate numbers of components, besides all.")
    powers: tuple[float, ...] = option(POWERS, minimum=0, help="Candidate exponents of the correlations as weights.")
    refit: bool = option(False, help="Refit on training + validation pairs with the selected parameters.")

    PRESETS: ClassVar[Mapping[str, Mapping[str, Any]]] = {"wikipedia": {"monitor": "map_all"}}

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("ridges", "powers"):
            if not getattr(self, name):
                raise UserError(f"{name} must hold at least one number, got none")


@dataclass
class DCCAOptions(Options):
    """Options of the model `DCCA`."""

    ridge: float | tuple[float, float] = option(1e-3, minimum=0, help="Ridge of the covariances, or one per view.")
    top_k: int | None = option(None, minimum=1, help="Count only the leading correlations; none counts all.")
    power: float = option(1.0, minimum=0, help="Exponent of the correlations that weight the retrieval space.")


@dataclass
class DCCAConfig(DCCAOptions, TrainingConfig):
    """Options of a DCCA training."""

    batch_size: int = 1024
    learning_rate: float = 4e-3
    weight_decay: float = 0.01
    chunk_size: int = option(0, minimum=0, help="Pairs whose activations are held at once; 0 holds the whole batch.")
    output_dim: int = option(100, minimum=1, help="Outputs of each branch; a batch should hold several times as many.")
    image_branch: str = option("auto", help="Image branch: auto, cnn, alexnet (227x227 RGB) or mlp.")
    hidden: tuple[int, ...] = option((512,), minimum=1, help="Hidden layer units of the text branch and of the MLP.")
    dropout: float = option(0.3, minimum=0, below=1, help="Dropout after every hidden layer.")

    PRESETS: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "wikipedia": {
            "epochs": 60, "batch_size": 256, "output_dim": 10, "ridge": 1.0, "dropout": 0.5, "learning_rate": 3e-3,
            "weight_decay": 0.1, "monitor": "map_all",
        },
    }  # fmt: skip

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.top_k is not None and self.top_k > self.output_dim:
            raise UserError(f"top_k must lie in 1..{self.output_dim}, the outputs, got {self.top_k}")
        if self.chunk_size in (1, 2):  # an odd batch in chunks of at most 2 leaves a single pair to batch norm
            raise UserError(f"chunk_size must be 0 or at least 3, got {self.chunk_size}")


@dataclass
class ACMROptions(Options):
    """Options of the model `ACMR`."""

    dim: int = option(200, minimum=1, help="Dimension of the common space.")
    members: int = option(1, minimum=1, help="Networks side by side in each projector, an ensemble; they share `dim`.")
    label_hidden: tuple[int, ...] = option((), minimum=1, help="Hidden layer units of the label predictor.")
    label_dropout: float = option(0.0, minimum=0, below=1, help="Dropout before the label predictor.")
    modality_hidden: tuple[int, ...] = option((50,), minimum=1, help="Hidden layer units of the modality classifier.")
    train_label_predictor: bool = option(True, help="Train the label predictor; otherwise it stays as initialised.")
    invariance: str = option("structure", choices=INVARIANCES, help="L_imi: the paper's, or the released code's.")
    alpha: float = option(0.1, minimum=0, help="Weight of L_imi, the inter-modal invariance.")
    beta: float = option(0.1, minimum=0, help="Weight of L_imd, the intra-modal discrimination.")
    penalty: float = option(0.0, minimum=0, help="Weight of the Frobenius norms of the projectors' weight matrices.")
    pair_weight: float = option(0.0, minimum=0, help="Weight of L_pair, finding an item's partner in the batch.")
    temperature: float = option(0.07, above=0, help="Temperature of L_pair.")
    margin: float = option(1.0, minimum=0, help="Margin of L_imi.")
    gamma: float = option(0.05, minimum=0, help="Weight of the negatives in L_imi.")
    reduction: str = option("mean", choices=("mean", "sum"), help="Mean or sum over triplets; the paper sums.")
    label_weight: float = option(0.0, minimum=0, maximum=1, help="Weight of label similarity in the retrieval space.")
    label_similarity: str = option("probability", choices=SIMILARITIES, help="Label similarity of the retrieval space.")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.dim % self.members:
            raise UserError(f"members must divide dim, {self.dim}, got {self.members}")


# `paper`: ACM MM 2017, as far as it says. It leaves open the learning rate (1e-4 is the released code's), the margin,
# the dropout (none here), and how the sum over triplets is scaled (a mean here; a sum would leave the other terms
# without weight). alpha and beta are the upper ends of the ranges that it calls best. The norms of the weights have
# no factor in the paper; with 1 they would outweigh everything else, so it is 1e-4 here.
#
# `demo`: the released code, which deviates from the paper in everything set here: narrow projectors, a modality
# classifier with two narrow hidden layers (linear there, tanh here) that is trained but never against the projectors,
# a label predictor that keeps its initial weights, a loss hinged once on sums over the batch, other weights, no weight
# penalty, Adam with beta1 = 0.5. The larger of the factors 100 and 50 goes to the labels. Its score, AP over the
# hits in the top 50, is `map_50_hits` of every evaluation.
#
# A preset may have a part for one data set, "best glyphs".
_ACMR_PRESETS: dict[str, dict[str, Any]] = {
    "paper": {},
    "demo": {
        "dim": 40, "image_hidden": (512, 100), "text_hidden": (40, 100), "modality_hidden": (20, 10),
        "invariance": "batch_hinge", "alpha": 50.0, "beta": 100.0, "penalty": 0.0, "reversal": 0.0,
        "projector_steps": 1, "train_label_predictor": False, "beta1": 0.5, "epochs": 100,
    },
    "best": {
        "dim": 100, "image_hidden": (512,), "text_hidden": (200,), "image_features": "standard",
        "text_features": "standard", "image_dropout": 0.5, "text_dropout": 0.5, "alpha": 0.01, "beta": 1.0,
        "penalty": 0.0, "label_weight": 1.0, "reversal": 0.1, "projector_steps": 1, "learning_rate": 3e-4,
        "weight_decay": 0.5, "schedule": "one_cycle", "mixup": 1.0, "epochs": 30, "patience": 0, "refit": True,
    },
    "best wikipedia": {
        "image_features": "kernel", "image_hidden": (), "text_features": "kernel", "text_hidden": (),
        "dim": 512, "label_dropout": 0.7, "learning_rate": 5e-4, "mixup": 0.4, "epochs": 20,
    },
    "best glyphs": {
        "dim": 256, "text_hidden": (512,), "image_features": "none", "text_features": "none", "text_dropout": 0.5,
        "beta": 2.0, "pair_weight": 1.0, "temperature": 0.1, "label_weight": 0.6, "label_similarity": "bhattacharyya",
        "learning_rate": 3e-3, "weight_decay": 0.01, "mixup": 0.0, "smoothing": 0.1, "epochs": 30, "batch_size": 512,
        "refit": False, "monitor": "recall@10",
    },
}  # fmt: skip


@dataclass
class ACMRConfig(ACMROptions, TrainingConfig):
    """Options of an ACMR training. The defaults are the preset `paper`."""

    epochs: int = 200
    batch_size: int = 64
    learning_rate: float = 1e-4
    augment: bool = True
    patience: int = 20
    monitor: str = "map_all"
    penalty: float = 1e-4
    schedule: str = option("constant", choices=("constant", "one_cycle"), help="Schedule of the learning rate.")
    beta1: float = option(0.9, minimum=0, below=1, help="First moment coefficient of AdamW.")
    reversal: float = option(1.0, minimum=0, help="Strength of the adversary; 0 switches it off.")
    reversal_schedule: bool = option(
        True, help="Let the adversary grow from 0 as 2 / (1 + exp(-10 p)) - 1 over the training."
    )
    projector_steps: int = option(
        5,
        minimum=1,
        help="Steps of projectors and label predictor per step of the modality classifier.",
    )
    mixup: float = option(
        0.0, minimum=0, maximum=1e6, help="Parameter of the Beta distribution that mixes pairs; 0: no mixing."
    )
    smoothing: float = option(0.0, minimum=0, below=1, help="Share of a label's weight spread over all classes.")
    image_hidden: tuple[int, ...] = option((2000,), minimum=1, help="Hidden layer units of the image projector.")
    text_hidden: tuple[int, ...] = option((500,), minimum=1, help="Hidden layer units of the text projector.")
    image_features: str = option("none", choices=FEATURES, help="Map of image features; the last 3 are for histograms.")
    text_features: str = option("none", choices=FEATURES, help="Map of text features; the last 3 are for histograms.")
    image_dropout: float = option(0.0, minimum=0, below=1, help="Dropout after the image projector's hidden layers.")
    text_dropout: float = option(0.0, minimum=0, below=1, help="Dropout after the text projector's hidden layers.")
    image_input_dropout: float = option(0.0, minimum=0, below=1, help="Dropout of the image projector's input.")
    text_input_dropout: float = option(0.0, minimum=0, below=1, help="Dropout of the text projector's input.")
    landmarks: int = option(2000, minimum=1, help="Maximum number of training rows as landmarks of `kernel` features.")

    PRESETS: ClassVar[Mapping[str, Mapping[str, Any]]] = _ACMR_PRESETS

    def __post_init__(self) -> None:
        super().__post_init__()
        if 0 < self.mixup < 1e-6:
            raise UserError(f"mixup must be 0 or at least 1e-6, got {self.mixup}")

    @classmethod
    def preset(cls, name: str, data: str = "", /, **options: Any) -> ACMRConfig:
        """The options of a preset and of its part for a data set, if any; `options` replace some of them."""
        if name not in (names := [known for known in cls.PRESETS if " " not in known]):
            raise UserError(f"preset must be one of {', '.join(names)}, got {name!r}")
        part = cls.PRESETS.get(f"{name} {data.removesuffix('-1300')}", {})
        return cls(**{**cls.PRESETS[name], **part, **options})


CONFIGS: dict[str, type[Options]] = {"linear_cca": LinearCCAConfig, "dcca": DCCAConfig, "acmr": ACMRConfig}
