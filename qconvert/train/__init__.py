"""Training of the Q/DQ graph that ships, as a torch module; needs the extra `[torch]`.

`prepare` and `finish` are for loops of your own: docs/guides/qat.md shows them.
"""

from typing import TYPE_CHECKING

from qconvert.core.errors import Unavailable
from qconvert.core.pip_command import pip_install

if TYPE_CHECKING:
    from qconvert.train.own_loop import QuantizedModule, finish, prepare
else:  # torch takes a second to import

    def __getattr__(name: str) -> object:
        if name not in __all__:
            raise AttributeError(f"module `{__name__}` has no attribute `{name}`")
        try:
            from qconvert.train import own_loop
        except ModuleNotFoundError as error:
            if error.name != "torch":
                raise
            raise Unavailable(
                "training needs torch, which is not installed", hint=pip_install("torch")
            ) from None
        return getattr(own_loop, name)


__all__ = ["QuantizedModule", "finish", "prepare"]
