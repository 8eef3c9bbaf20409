"""What is known of a served model while a request is planned: its spec, and what its runtime can return."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from hilbert.core import (
    ClassifierModule,
    Input,
    LogitScoreModule,
    Media,
    MediaRef,
    Modality,
    ModelSpec,
    OutputType,
    Task,
    TokenVectorsModule,
    tasks_of,
)
from hilbert.errors import InvalidInput, UnsupportedTask
from hilbert.processors import StaticQueries, TextProcessor
from hilbert.programs.choose import token_dimensions
from hilbert.runtimes import matrix
from hilbert.runtimes.base import RuntimeInfo

_TASK_OF = {
    OutputType.DENSE: Task.EMBED,
    OutputType.SPARSE: Task.SPARSE_EMBED,
    OutputType.MULTIVECTOR: Task.MULTI_EMBED,
    OutputType.LOGITS: Task.CLASSIFY,
}
# What a model would need for each.
_LACKING = {
    OutputType.DENSE: "no pooling to one vector",
    OutputType.SPARSE: "neither a SPLADE head nor bge-m3's sparse_linear.pt",
    OutputType.MULTIVECTOR: "no vector for each token",
    OutputType.LOGITS: "no classification head",
}
_ANSWERS_OF_LOGITS = ((Task.RERANK, "score"), (Task.CLASSIFY, "json"))


def outputs_of(spec: ModelSpec, info: RuntimeInfo | None) -> frozenset[OutputType]:
    """What one pass can return for an embedding, a score or a class.

    As the runtime says, else as the files let expect. A model that finds spans returns none of these.
    """
    if spec.extractor is not None:
        return frozenset()
    if info is not None:
        return info.outputs
    if any(isinstance(m, ClassifierModule | LogitScoreModule) for m in spec.modules):
        return frozenset({OutputType.LOGITS})
    if spec.kind == "other":
        return matrix.returned(spec, "torch")
    tasks = tasks_of(spec)
    return frozenset(output for output, task in _TASK_OF.items() if task in tasks)


def dimensions_of(spec: ModelSpec, info: RuntimeInfo | None) -> int:
    """Numbers in a dense vector, likewise."""
    return spec.dimensions if info is None else info.dimensions


def sizes_of(spec: ModelSpec, info: RuntimeInfo | None) -> dict[OutputType, int]:
    """Numbers in one vector of each kind that it returns, where nobody asks for fewer.

    What only a loaded model knows is left out until then.
    """
    is_own_affair = spec.kind == "other"
    if is_own_affair and info is None:
        return {}
    dense = dimensions_of(spec, info)
    sizes = {
        OutputType.DENSE: min(dense, spec.truncate_dim or dense),
        OutputType.SPARSE: dense if is_own_affair else spec.sparse_dimensions,
        OutputType.MULTIVECTOR: token_dimensions(spec) if info is None else info.token_dimensions,
    }
    returned = outputs_of(spec, info)
    return {output: size for output, size in sizes.items() if output in returned and size}


def answers_of(spec: ModelSpec, info: RuntimeInfo | None) -> tuple[str, ...]:
    """What clients are answered, in SIE's words: kinds of vector, `score` of rerankers, `json` of others."""
    if spec.extractor is not None:
        return ("json",)
    returned = outputs_of(spec, info)
    vectors = [
        o.value for o in (OutputType.DENSE, OutputType.SPARSE, OutputType.MULTIVECTOR) if o in returned
    ]
    if OutputType.LOGITS not in returned:
        return tuple(vectors)
    tasks = tasks_of(spec)
    return (*vectors, *(word for task, word in _ANSWERS_OF_LOGITS if task in tasks))


def usual_size(spec: ModelSpec, info: RuntimeInfo | None) -> int | None:
    """Numbers in the vector that it is there for: of its task, else the first; None where it makes none."""
    sizes = sizes_of(spec, info)
    usual = (size for output, size in sizes.items() if _TASK_OF[output] is spec.task)
    return next(usual, next(iter(sizes.values()), None))


def shape_text(spec: ModelSpec, info: RuntimeInfo | None) -> str:
    """Its answers in words, such as ``dense of 384 numbers, score``."""
    sizes = {output.value: size for output, size in sizes_of(spec, info).items()}
    return ", ".join(f"{a} of {sizes[a]} numbers" if a in sizes else a for a in answers_of(spec, info))


@dataclass(frozen=True)
class Facts:
    """One model. `info` is None until its runtime is loaded; then it wins over the spec."""

    name: str
    spec: ModelSpec
    processor: TextProcessor
    info: RuntimeInfo | None
    static_queries: StaticQueries | None = None

    @property
    def outputs(self) -> frozenset[OutputType]:
        """What one pass can return."""
        return outputs_of(self.spec, self.info)

    @property
    def num_labels(self) -> int:
        """``L``; 0 where there is no classifier."""
        if self.info is not None:
            return self.info.num_labels
        return len(self.spec.labels)

    @property
    def dimensions(self) -> int:
        """Numbers in a dense vector."""
        return dimensions_of(self.spec, self.info)

    @property
    def token_dimensions(self) -> int:
        """Numbers in a token vector; 0 where there are none, or none are known yet."""
        return token_dimensions(self.spec) if self.info is None else self.info.token_dimensions

    @property
    def skips_first(self) -> bool:
        """Whether the vector of the first token is left out (bge-m3)."""
        return any(isinstance(m, TokenVectorsModule) and m.skip_first for m in self.spec.modules)

    @property
    def modalities(self) -> tuple[Modality, ...]:
        """What its inputs may be."""
        return self.spec.modalities

    def check_modalities(self, inputs: Iterable[Input]) -> None:
        """Refuse images and sounds that the model has no tower for.

        Raises:
            UnsupportedTask: there is one; the message names it.
        """
        for index, given in enumerate(inputs):
            if isinstance(given, Media | MediaRef) and given.modality not in self.modalities:
                able = " and ".join(self.modalities)
                raise UnsupportedTask(
                    f"input[{index}] is {given.modality}; the model {self.name} takes {able} only.",
                    param="input",
                    index=index,
                )

    def require(self, outputs: frozenset[OutputType]) -> None:
        """Refuse what the model cannot return.

        Raises:
            UnsupportedTask: it lacks one of them; the message says what it can do.
        """
        missing = outputs - self.outputs
        if missing:
            raise self.cannot(_TASK_OF[min(missing)])

    def cannot(self, task: Task, why: str = "") -> UnsupportedTask:
        """The error that this model is not one for this task."""
        lacking = {t for output, t in _TASK_OF.items() if output not in self.outputs}
        able = [t for t in tasks_of(self.spec) if t is not task and t not in lacking]
        output = next((o for o, t in _TASK_OF.items() if t is task), None)
        if output is not None:
            why = why or self._lacks_by_engine(output) or self._lacks(output)
        reason, others = f": {why}" if why else "", ", ".join(able) or "nothing else"
        return UnsupportedTask(
            f"The model {self.name} does not support `{task}`{reason}. It can: {others}.",
            param="model",
        )

    def _lacks(self, output: OutputType) -> str:
        """Why the model itself does not return it."""
        if self.spec.extractor is not None:
            return "it finds spans of texts"
        own = f"it returns {' and '.join(sorted(self.outputs))} and has {_LACKING[output]}"
        if output is OutputType.SPARSE and self.spec.is_masked_lm:
            return f"{own}; with --task sparse_embed its masked-language head would serve as one"
        if self.spec.kind == "other":
            return f"{own}, as sentence-transformers' {self.spec.loaded_as} runs it"
        return own

    def _lacks_by_engine(self, output: OutputType) -> str:
        """Why the engine is at fault where another one would return it (docs/engines.md)."""
        if self.info is None or self.info.engine not in matrix.ENGINES:
            return ""
        engines = matrix.engines_for(self.spec, {output})
        if not engines or output in matrix.returned(self.spec, self.info.engine):
            return ""
        return f"engine {self.info.engine} does not return {output}; take --engine {' or '.join(engines)}"

    def check_dimensions(self, dimensions: int | None, outputs: frozenset[OutputType]) -> None:
        """Refuse a length that the model's vectors do not have.

        Raises:
            InvalidInput: it is not in 1..E.
        """
        if dimensions is None:
            return
        sizes = []
        if OutputType.DENSE in outputs:
            sizes.append(self.dimensions)
        if OutputType.MULTIVECTOR in outputs and self.token_dimensions:
            sizes.append(self.token_dimensions)
        largest = min(sizes, default=dimensions)
        if not 1 <= dimensions <= largest:
            raise InvalidInput(
                f"dimensions is {dimensions}; {self.name} takes 1 to {largest}.", param="dimensions"
            )
