"""What the loss modules share: their options are those of the function, stated once in its signature."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, ClassVar

from torch import nn


class LossModule(nn.Module):
    """A loss function as a module: the constructor takes the function's options, which become attributes.

    Subclasses set `function` and call it in `forward` with `**self.options()`. Options are the keyword-only parameters
    of the function, except `return_stats`; the constructor also takes them by position. They may be changed between
    steps, and are checked when the function is called. The docstring of the function follows that of the subclass.
    """

    function: ClassVar[Callable[..., Any]]
    __signature__: ClassVar[inspect.Signature]

    if TYPE_CHECKING:  # the options

        def __getattr__(self, name: str) -> Any: ...

    def __init_subclass__(cls) -> None:
        parameters = inspect.signature(cls.function).parameters.values()
        options = [p for p in parameters if p.kind is p.KEYWORD_ONLY and p.name != "return_stats"]
        cls.__signature__ = inspect.Signature([p.replace(kind=p.POSITIONAL_OR_KEYWORD) for p in options])
        cls.__doc__ = f"{cls.__doc__}\n\n{inspect.getdoc(cls.function)}"

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__()
        bound = self.__signature__.bind(*args, **options)
        bound.apply_defaults()
        for name, value in bound.arguments.items():
            setattr(self, name, value)

    def options(self) -> dict[str, Any]:
        """The options of the function, by name."""
        return {name: getattr(self, name) for name in self.__signature__.parameters}

    def extra_repr(self) -> str:
        return ", ".join(f"{name}={value!r}" for name, value in self.options().items())
