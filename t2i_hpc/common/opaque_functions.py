"""Custom autograd Functions that torch.compile leaves whole.

Dynamo traces the Python code of a Function and ignores ``set_materialize_grads(False)``, which
gives silently wrong gradients (pytorch#118396); ``torch.func.grad`` inside a compiled function may
drop its backward (pytorch#193279). An operator of a library Dynamo does not look into. The call
stands in its graph, and AOTAutograd, which differentiates the graph, runs the Function as eager
execution does: same kernels, same gradients to the bit until Inductor fuses them.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import _SingleLevelFunction

_LIBRARY = torch.library.Library("t2i_hpc", "DEF")


class TwoWayFunction(torch.autograd.Function):
    """A Function with a ``setup_context``, as torch.func needs it, that is entered quickly.

    torch binds the arguments of such a Function at each call: 21 µs. Outside torch.func
    :meth:`call` enters the same code as a Function of the older form, in 5 µs.
    """

    _quick: type[torch.autograd.Function]

    @classmethod
    def call(cls, *inputs: Any) -> Any:
        """Do what ``apply`` does."""
        if torch._C._are_functorch_transforms_active():
            return cls.apply(*inputs)
        return cls._quick.apply(*inputs)

    def __init_subclass__(cls) -> None:
        if "_quick" not in vars(cls):
            members = {
                "forward": staticmethod(lambda ctx, *inputs: _forward(cls, ctx, inputs)),
                "setup_context": staticmethod(_SingleLevelFunction.setup_context),
                "_quick": cls,
            }
            cls._quick = type(cls.__name__, (cls,), members)


def _forward(function: type[torch.autograd.Function], ctx: Any, inputs: tuple[Any, ...]) -> Any:
    output = function.forward(*inputs)
    function.setup_context(ctx, inputs, output)
    return output


def opaque(schema: str, function: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """Return a function that enters `function` at once, and is one operator while compiled.

    Args:
        schema: of the operator: name, arguments and result, as torch.library writes them.
        function: runs Functions through :meth:`TwoWayFunction.call`, no other Python state.
    """
    name = schema.partition("(")[0]
    _LIBRARY.define(schema)
    # Under torch.func.grad the second is asked first, while Functions know the level they are at.
    for key in ("CompositeImplicitAutograd", "FuncTorchDynamicLayerFrontMode"):
        _LIBRARY.impl(name, function, key)
    operator = getattr(torch.ops.t2i_hpc, name).default

    def entered(*inputs: Any) -> Tensor:
        result: Tensor = (operator if torch.compiler.is_compiling() else function)(*inputs)
        return result

    return entered
