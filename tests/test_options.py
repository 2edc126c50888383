"""The options: what a field states, and everything that follows from it."""

import json
from dataclasses import dataclass

import pytest

from xmodal_ops.errors import UserError
from xmodal_ops.options import (
    CONFIGS,
    ACMRConfig,
    DCCAConfig,
    DCCAOptions,
    LinearCCAConfig,
    Options,
    option,
    options_of,
)


@dataclass
class Example(Options):
    count: int = option(3, minimum=1, help="A count.")
    rate: float = option(0.5, minimum=0, below=1, help="A rate.")
    scale: float = option(1.0, above=0, help="A scale.")
    share: float = option(0.5, minimum=0, maximum=1, help="A share.")
    on: bool = option(False, help="A switch.")
    word: str = option("a", choices=("a", "b"), help="A word.")
    limit: int | None = option(None, minimum=1, help="A limit.")
    units: tuple[int, ...] = option((), minimum=1, help="Units.")
    ridge: float | tuple[float, float] = option(0.1, minimum=0, help="One number or two.")


@dataclass
class Changed(Example):
    count: int = 7


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"count": 0}, "count must be at least 1, got 0"),
        ({"count": 2.5}, "count must be an integer, got 2.5"),
        ({"count": True}, "count must be an integer, got True"),
        ({"rate": 1.0}, "rate must be at least 0 and less than 1, got 1.0"),
        ({"rate": float("nan")}, "rate must be at least 0 and less than 1, got nan"),
        ({"scale": 0}, "scale must be positive, got 0"),
        ({"scale": float("inf")}, "scale must be a finite number, got inf"),
        ({"scale": 10**400}, f"scale must be a finite number, got {10**400}"),
        ({"count": 2**31}, "count must be at most 2147483647, got 2147483648"),
        ({"scale": "1"}, "scale must be a finite number, got '1'"),
        ({"share": 2}, "share must lie in 0..1, got 2"),
        ({"on": 1}, "on must be true or false, got 1"),
        ({"word": "c"}, "word must be one of 'a', 'b', got 'c'"),
        ({"limit": 0}, "limit must be at least 1, got 0"),
        ({"units": 5}, "units must be a list, got 5"),
        ({"units": (5, 0)}, "units must be at least 1, got 0"),
        ({"ridge": (1, 2, 3)}, "ridge must have 2 values, got 3"),
    ],
)
def test_a_field_checks_its_values(values, message):
    with pytest.raises(UserError) as error:
        Example(**values)
    assert str(error.value) == message


def test_a_subclass_may_change_a_default():
    assert Changed().count == 7 and Example().count == 3
    assert options_of(Changed)["count"].help == "A count."
    with pytest.raises(UserError, match="count must be at least 1"):
        Changed(count=0)


@pytest.mark.parametrize(
    ("name", "text", "value"),
    [
        ("count", "4", 4),
        ("rate", ".5", 0.5),
        ("on", "true", True),
        ("word", "b", "b"),
        ("limit", "none", None),
        ("limit", "2", 2),
        ("units", "512,256", (512, 256)),
        ("units", "[512, 256]", (512, 256)),
        ("units", "512", (512,)),
        ("units", "", ()),
        ("ridge", "0.1", 0.1),
        ("ridge", "0.1,0.2", (0.1, 0.2)),
    ],
)
def test_text_is_read_by_the_type_of_the_field(name, text, value):
    known = options_of(Example)[name]
    assert known.parse(text) == value
    assert known.parse(known.text(value)) == value


def test_text_of_another_type_is_refused():
    with pytest.raises(UserError, match=r"^count must be an integer, got '2\.5'$"):
        options_of(Example)["count"].parse("2.5")
    with pytest.raises(UserError, match=r"^on must be true or false, got 'yes'$"):
        options_of(Example)["on"].parse("yes")


@pytest.mark.parametrize("kind", CONFIGS.values())
def test_json_holds_every_configuration(kind):
    config = kind()
    assert kind.from_dict(json.loads(json.dumps(config.to_dict()))) == config
    assert kind.from_dict({}) == config  # an older version knew fewer options
    with pytest.raises(UserError, match=r"config.json holds options that this version does not know: foo"):
        kind.from_dict({"foo": 1})


@pytest.mark.parametrize("kind", CONFIGS.values())
def test_every_option_has_help_and_a_default_within_its_limits(kind):
    for known in options_of(kind).values():
        assert known.help.endswith(".")
        assert known.check(known.default) == known.default


def test_a_configuration_holds_the_options_of_its_model():
    assert DCCAConfig(top_k=3).part(DCCAOptions) == {"ridge": 1e-3, "top_k": 3, "power": 1.0}
    with pytest.raises(UserError, match="members must divide dim, 200, got 3"):
        ACMRConfig(members=3)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (lambda: LinearCCAConfig(ridges=()), "ridges must hold at least one number, got none"),
        (lambda: LinearCCAConfig(powers=()), "powers must hold at least one number, got none"),
        (lambda: DCCAConfig(chunk_size=2), "chunk_size must be 0 or at least 3, got 2"),
        (lambda: ACMRConfig(mixup=1e-9), "mixup must be 0 or at least 1e-6, got 1e-09"),
    ],
)
def test_options_that_no_training_can_use_are_refused(config, message):
    with pytest.raises(UserError) as error:
        config()
    assert str(error.value) == message
