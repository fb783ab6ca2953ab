"""The simulation's state behind one pointer, for machine code.

A tuple of sixty arrays would be copied, description by description, into every function called.
"""

from typing import Any

from numba.core import cgutils as untyped_cgutils
from numba.core import imputils as untyped_imputils
from numba.core import types
from numba.core.typing.templates import AttributeTemplate
from numba.extending import infer_getattr, intrinsic, models, register_model

from planner.sim.run import run
from planner.sim.state import Sim

# Parts of numba that have no types.
cgutils: Any = untyped_cgutils
imputils: Any = untyped_imputils


class Handle(types.Type):
    """numba's type of a pointer to a named tuple; its fields are read through it."""

    def __init__(self, columns: Any) -> None:  # noqa: ANN401 - as numba
        self.columns = columns
        super().__init__(name=f"Handle({columns})")


@register_model(Handle)
class _HandleModel(models.PrimitiveModel):
    def __init__(self, manager: Any, kind: Any) -> None:  # noqa: ANN401
        pointer = manager.lookup(kind.columns).get_value_type().as_pointer()
        super().__init__(manager, kind, pointer)  # type: ignore[no-untyped-call]


@infer_getattr
class _HandleFields(AttributeTemplate):
    key = Handle

    def generic_resolve(self, kind: Any, name: str) -> Any:  # type: ignore[override]  # noqa: ANN401
        return kind.columns.types[kind.columns.fields.index(name)]


@imputils.lower_getattr_generic(Handle)  # type: ignore[untyped-decorator]
def _field(context: Any, builder: Any, kind: Any, value: Any, name: str) -> Any:  # noqa: ANN401
    place = kind.columns.fields.index(name)
    loaded = builder.load(cgutils.gep_inbounds(builder, value, 0, place))
    return imputils.impl_ret_borrowed(context, builder, kind.columns.types[place], loaded)


@intrinsic
def _handle(typing: Any, columns: Any) -> Any:  # noqa: ANN401
    """A pointer that is good until its caller returns."""

    def code(_context: Any, builder: Any, _signature: Any, arguments: Any) -> Any:  # noqa: ANN401
        return cgutils.alloca_once_value(builder, arguments[0])

    return Handle(columns)(columns), code


def play(sim: Sim) -> None:
    """`run`, over a handle."""
    run(_handle(sim))  # type: ignore[call-arg]  # numba gives the typing context
