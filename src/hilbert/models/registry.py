"""Names to served models.

With one model any name means it, as clients send whatever they were configured with. With several an
unknown name is an error that lists the known ones.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from hilbert.engine.base import Health
from hilbert.errors import ModelNotFound, ShuttingDown
from hilbert.models.served import ServedModel


@dataclass(frozen=True, slots=True)
class Readiness:
    """Whether all models can answer now, and the health of each by name."""

    is_ready: bool
    health: dict[str, Health]


class Registry:
    """All models of this server, under their names and aliases."""

    def __init__(self, models: Iterable[ServedModel]) -> None:
        """Index the models.

        Raises:
            ValueError: there is none, or two share a name.
        """
        self._models = tuple(models)
        if not self._models:
            raise ValueError("no model to serve")
        self._by_name: dict[str, ServedModel] = {}
        for model in self._models:
            for name in (model.name, *model.aliases):
                if self._by_name.setdefault(name, model) is not model:
                    raise ValueError(f"two models are named {name!r}; set --served-model-name")
        self._only = self._models[0] if len(self._models) == 1 else None
        self.is_draining = False

    def get(self, name: str | None) -> ServedModel:
        """The model that a request names.

        Raises:
            ShuttingDown: the server finishes what it has and takes nothing new.
            ModelNotFound: several models are served and none has this name.
        """
        if self.is_draining:
            raise ShuttingDown("The server is shutting down and takes no new requests.")
        if self._only is not None:
            return self._only
        model = self._by_name.get(name or "")
        if model is not None:
            return model
        known = ", ".join(m.name for m in self._models)
        asked = (
            f"The model {name!r} is not served here" if name else "`model` is needed as several are served"
        )
        raise ModelNotFound(f"{asked}. Available: {known}.", param="model")

    def find(self, name: str) -> ServedModel | None:
        """The model with exactly this name or alias."""
        return self._by_name.get(name)

    def list(self) -> tuple[ServedModel, ...]:
        """All models, in the order in which they were configured."""
        return self._models

    @property
    def readiness(self) -> Readiness:
        """The truth for probes: red while any model cannot answer, or the server drains."""
        health = {m.name: Health.DRAINING if self.is_draining else m.engine.health for m in self._models}
        return Readiness(all(h is Health.READY for h in health.values()), health)
