"""What a user may say of a model against its own files: another pooling, other prompts."""

from __future__ import annotations

from collections.abc import Iterable

import msgspec

from hilbert.core.spec import ModelSpec, PoolingMode, PoolingModule
from hilbert.errors import InvalidInput

_MODES = {
    "cls": PoolingMode.CLS,
    "mean": PoolingMode.MEAN,
    "max": PoolingMode.MAX,
    "last": PoolingMode.LAST,
}


def with_pooling(spec: ModelSpec, pooling: str) -> ModelSpec:
    """The same model with another pooling.

    Raises:
        InvalidInput: it does not pool, or pools in two ways side by side, which later layers count on.
    """
    mode, own = _MODES[pooling], spec.pooling
    if own is None or len(own.modes) != 1:
        what = "does not pool" if own is None else f"pools by {'+'.join(own.modes)}"
        raise InvalidInput(f"{spec.model_id} {what}, so --pooling {pooling} cannot be used; leave it out")
    if own.modes == (mode,):
        return spec
    changed = msgspec.structs.replace(own, modes=(mode,))
    modules = tuple(changed if isinstance(m, PoolingModule) and m is own else m for m in spec.modules)
    return msgspec.structs.replace(spec, modules=modules)


def with_prompts(spec: ModelSpec, prompts: Iterable[tuple[str, str]]) -> ModelSpec:
    """The same model with these prompts beside its own, or instead of those of the same name."""
    return msgspec.structs.replace(spec, prompts={**spec.prompts, **dict(prompts)})


def with_default_prompt(spec: ModelSpec, name: str) -> ModelSpec:
    """The same model with this prompt before the inputs of requests that name none.

    Raises:
        InvalidInput: it has no prompt of this name.
    """
    if name not in spec.prompts:
        known = ", ".join(sorted(spec.prompts)) or "none"
        raise InvalidInput(
            f"{spec.model_id} has no prompt {name!r} for --default-prompt-name; it has: {known}. Give it one "
            "with --prompts."
        )
    return msgspec.structs.replace(spec, default_prompt_name=name)
