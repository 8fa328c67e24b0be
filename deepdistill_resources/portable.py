"""Resources that can be sent to another process."""

from collections.abc import Callable
from typing import Any

import dagster as dg


class PortableResource(dg.ConfigurableResource):
    """Travels as its values alone; what Dagster binds it to during a run (loggers, the instance) stays behind."""

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return _made, (type(self), {name: getattr(self, name) for name in type(self).model_fields})


def _made(kind: type[PortableResource], values: dict[str, Any]) -> PortableResource:
    return kind(**values)
