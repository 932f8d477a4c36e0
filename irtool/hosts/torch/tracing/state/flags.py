"""Training flags of modules while they are traced: they note who asks for them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any


class Flag(int):
    """A module's `training` while it is traced: handed on it is the plain flag, decided by or computed with it leaves a note.

    Arithmetic with a float cannot be told, nor `is`: a module whose code asks that keeps its plain flag (see `untouched`).
    """

    plain: bool
    asked: Callable[[], object]

    def __new__(cls, plain: bool, asked: Callable[[], object]) -> Flag:
        made = super().__new__(cls, plain)
        made.plain, made.asked = bool(plain), asked
        return made

    def __reduce__(self) -> Any:
        return bool, (self.plain,)

    def __deepcopy__(self, memo: Any) -> bool:
        return self.plain


def _asking(name: str) -> Callable[..., Any]:
    def asked(self: Flag, *others: Any) -> Any:
        self.asked()
        return getattr(self.plain, name)(*others)

    return asked


_QUESTIONS = (
    "bool eq ne lt le gt ge hash str repr format int index float abs neg pos invert "
    "add radd sub rsub mul rmul truediv rtruediv floordiv rfloordiv mod rmod pow rpow and rand or ror xor rxor"
)
for _name in _QUESTIONS.split():
    setattr(Flag, f"__{_name}__", _asking(f"__{_name}__"))
