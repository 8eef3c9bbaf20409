"""What a model is, as read from its repository's own JSON: no weights, no torch.

A `ModelSpec` decides how text becomes token ids and which modules run after the transformer. It does
not know where or how the model runs. It is a msgspec Struct, because it crosses the process border
to the worker and is stored in every artifact.
"""

from __future__ import annotations

from enum import StrEnum
from typing import Any

import msgspec

from hilbert.core.media import Modality


class Task(StrEnum):
    """What a model is served for."""

    EMBED = "embed"
    SPARSE_EMBED = "sparse_embed"
    MULTI_EMBED = "multi_embed"
    RERANK = "rerank"
    CLASSIFY = "classify"
    IMAGE_EMBED = "image_embed"
    AUDIO_EMBED = "audio_embed"
    EXTRACT = "extract"


class PoolingMode(StrEnum):
    """How the token vectors of a sequence become one; names as in sentence-transformers."""

    CLS = "cls"
    MEAN = "mean"
    MAX = "max"
    LAST = "lasttoken"
    MEAN_SQRT = "mean_sqrt_len_tokens"
    WEIGHTED_MEAN = "weightedmean"


class PoolingModule(msgspec.Struct, frozen=True, tag="pooling"):
    """Pools ``[T, D]`` to ``[B, D * len(modes)]``, concatenated in the order of `modes`.

    `include_prompt` false leaves the prompt's tokens out of the pool (Instructor models).
    """

    modes: tuple[PoolingMode, ...]
    include_prompt: bool = True


class DenseModule(msgspec.Struct, frozen=True, tag="dense"):
    """A linear layer after pooling. `activation` is the dotted torch name; identity when empty."""

    folder: str
    in_features: int
    out_features: int
    bias: bool
    activation: str = ""


class LayerNormModule(msgspec.Struct, frozen=True, tag="layer_norm"):
    """A layer norm after pooling; its parameters lie in `folder`."""

    folder: str
    dimension: int


class NormalizeModule(msgspec.Struct, frozen=True, tag="normalize"):
    """L2 normalisation in the middle of the chain. A trailing one is `ModelSpec.normalize`."""


class SpladeModule(msgspec.Struct, frozen=True, tag="splade"):
    """Masked-LM logits ``[T, V]`` → one sparse vector ``[V]`` per sequence.

    `strategy` is ``"max"`` or ``"sum"`` over the tokens, `activation` ``"relu"`` or ``"log1p_relu"``
    (which takes the logarithm twice), as sentence-transformers' SpladePooling names them.
    """

    strategy: str = "max"
    activation: str = "relu"


class ClassifierModule(msgspec.Struct, frozen=True, tag="classifier"):
    """``[L]`` logits per sequence: the architecture's own ``ForSequenceClassification`` head.

    With `is_own` false they are what the pooling and the modules after it end in.
    """

    num_labels: int
    is_own: bool = True


class LogitScoreModule(msgspec.Struct, frozen=True, tag="logit_score"):
    """A causal language model as a reranker: one score from the logits of its next token.

    The logit of `true_id`, less that of `false_id` where there is one.
    """

    true_id: int
    false_id: int | None = None


class SparseCodeModule(msgspec.Struct, frozen=True, tag="sparse_code"):
    """The pooled vector ``[E]`` as a sparse code ``[dimension]``: of a linear map the best `k` are kept.

    sentence-transformers' SparseAutoEncoder; its parameters lie in `folder`. `normalize` standardises
    the vector first.
    """

    folder: str
    dimension: int
    k: int
    normalize: bool = False


class TokenWeightsModule(msgspec.Struct, frozen=True, tag="token_weights"):
    """bge-m3's ``sparse_linear.pt``: relu(w·h) per token, the maximum per token id, no special tokens."""

    file: str


class TokenVectorsModule(msgspec.Struct, frozen=True, tag="token_vectors"):
    """Token vectors ``[T, E]``: the hidden states, or a linear map of them.

    Attributes:
        file: ``colbert_linear.pt`` of bge-m3, or ``""``.
        folders: Dense modules in order (ColBERT, PyLate), or none.
        skip_first: leave the first token out (bge-m3 leaves out CLS).
    """

    dimension: int
    file: str = ""
    folders: tuple[str, ...] = ()
    skip_first: bool = False


class TextProjectionModule(msgspec.Struct, frozen=True, tag="text_projection"):
    """What a dual model itself puts between its pooled text and the space that it shares with the tower."""

    out_features: int


Module = (
    PoolingModule
    | DenseModule
    | LayerNormModule
    | NormalizeModule
    | SpladeModule
    | ClassifierModule
    | LogitScoreModule
    | SparseCodeModule
    | TokenWeightsModule
    | TokenVectorsModule
    | TextProjectionModule
)


class MultivectorSpec(msgspec.Struct, frozen=True):
    """How a ColBERT-like model encodes the two sides.

    Attributes:
        query_len: tokens that a query may have, special tokens included; 0 for as many as the model takes.
        document_len: the same of a document.
        expansion_id: token that fills a query up to `expansion_len`; None for no expansion.
        attends_to_expansion: whether the other tokens see the filling.
        skip_ids: token ids whose vectors a document leaves out (punctuation).
        expansion_len: tokens that a query has at least, where it is filled.
        skips_queries: queries leave out `skip_ids`, too.
        markers: what stands before queries and documents and is one token where the vocabulary has it.
    """

    query_len: int
    document_len: int
    expansion_id: int | None = None
    attends_to_expansion: bool = False
    skip_ids: tuple[int, ...] = ()
    expansion_len: int = 0
    skips_queries: bool = False
    markers: tuple[str, ...] = ()


class ChatSpec(msgspec.Struct, frozen=True):
    """How a model's chat template turns texts into what is tokenized.

    Attributes:
        template: jinja2 source.
        is_structured: a message's content is a list of parts, not a plain text.
        variables: what the template sees beside the messages (special tokens, ``add_generation_prompt``).
        restores_suffix: the template's end is put back where truncation cut it off.
        is_framed: the tokenizer adds its special tokens to what the template writes.
    """

    template: str
    is_structured: bool = False
    variables: dict[str, Any] = {}
    restores_suffix: bool = True
    is_framed: bool = False


class StaticQueriesSpec(msgspec.Struct, frozen=True):
    """Sparse queries without inference: a fixed weight for each token id that a query holds.

    Attributes:
        folder: holds the weights and their tokenizer.
        max_len: tokens that a query may have; None for any number.
        is_default: an input whose side the request does not name is a query.
    """

    folder: str
    max_len: int | None = None
    is_default: bool = False


class ImageProcessing(msgspec.Struct, frozen=True, tag="image"):
    """How an image becomes a tower's ``[C, H, W]``, in the order of the fields.

    Attributes:
        shortest_edge: resize so that the shorter edge has so many pixels; 0 for not.
        height: resize to exactly this height and `width`; 0 for not.
        width: see `height`.
        resample: Pillow's number of the filter.
        crop_height: cut the middle out, or pad with black; 0 for not.
        crop_width: see `crop_height`.
        scale: factor on the 0 to 255 of a colour.
        mean: subtracted per channel; empty for none.
        std: divided by per channel.
        max_pixels: first scaled down to at most so many; 0 for not.
    """

    shortest_edge: int = 0
    height: int = 0
    width: int = 0
    resample: int = 3
    crop_height: int = 0
    crop_width: int = 0
    scale: float = 1 / 255
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()
    max_pixels: int = 0


class AudioProcessing(msgspec.Struct, frozen=True, tag="audio"):
    """How a sound becomes CLAP's log-mel spectrogram; the fields are ClapFeatureExtractor's.

    `is_fused`: four spectrograms, of the whole and of three parts, where a lone one is ``[1, frames, mels]``.
    """

    sampling_rate: int = 48_000
    num_mels: int = 64
    window: int = 1024
    hop: int = 480
    max_seconds: float = 10
    min_hertz: float = 0
    max_hertz: float = 14_000
    padding: str = "repeatpad"
    is_fused: bool = True

    @property
    def max_samples(self) -> int:
        """Samples that the tower hears."""
        return int(self.max_seconds * self.sampling_rate)


class Tower(msgspec.Struct, frozen=True):
    """The part of a dual model that reads another modality than text.

    Attributes:
        modality: what it reads.
        shape: of the features of one input; of the largest where `kind` is ``"other"``.
        num_tokens: what one input costs, in tokens of a transformer as wide as the tower's last layer.
        processing: how an input becomes features.
    """

    modality: Modality
    shape: tuple[int, ...]
    num_tokens: int
    processing: ImageProcessing | AudioProcessing


class TextTower(msgspec.Struct, frozen=True):
    """How a dual model wants its token ids.

    Attributes:
        length: pad to so many tokens, which the others then see (SigLIP); 0 for not.
        padding_id: what to pad with.
        pads_left: pad in front.
        end_id: nothing counts that follows the first token of this id (CLIP); -1 for the first of the
            highest id, None where everything counts.
        strips_punctuation: the tokenizer drops ASCII punctuation and repeated spaces (SigLIP).
    """

    length: int = 0
    padding_id: int = 0
    pads_left: bool = False
    end_id: int | None = None
    strips_punctuation: bool = False


class ExtractorSpec(msgspec.Struct, frozen=True):
    """How a model that finds spans reads a text and its labels (GLiNER).

    Attributes:
        max_words: words of a text that it reads; the rest is cut off.
        entity_token: stands before each label.
        separator_token: stands between the labels and the text.
    """

    max_words: int
    entity_token: str
    separator_token: str


class ModelSpec(msgspec.Struct, frozen=True):
    """One model repository at one revision.

    Attributes:
        model_id: what the user typed: a hub id or a folder.
        path: the local snapshot folder.
        commit: the hub commit, or ``""`` for a local folder.
        digest: SHA-256 over the files that decide the vectors (a commit stands for its files).
        kind: ``"transformer"``, ``"static"`` (an embedding table and nothing else), ``"other"`` (only
            sentence-transformers itself can run it) or ``"extractor"`` (only gliner itself can).
        reason: why `kind` is ``"other"`` or ``"extractor"``, in words; else ``""``.
        family: `model_type` of config.json, ``""`` for static models.
        architecture: first entry of `architectures`, ``""`` where absent.
        config: config.json of the transformer, as read; only `programs` interprets it.
        transformer_folder: folder of the Transformer module in the snapshot, ``""`` for the root.
        modules: what runs after the transformer, in order, without a trailing Normalize.
        normalize: whether the model's own chain ends in an L2 normalisation.
        hidden_size: ``D``.
        dimensions: ``E``, the length of the dense vector.
        max_model_len: tokens per sequence, special tokens included, from `max_seq_length`, else the
            tokenizer, else the positions of the model; None means unbounded (static, T5).
        vocab_size: rows of the embedding table; a token id must be below it.
        lower_case: lower-case the text before the tokenizer (`do_lower_case`).
        prompts: prompt texts by name.
        default_prompt_name: the prompt that applies when the request names none.
        similarity: `similarity_fn_name`, ``"cosine"`` by default.
        weights: weight files relative to `transformer_folder`, in load order.
        graph_files: shipped graphs relative to `path` (``openvino/openvino_model.xml``,
            ``onnx/model.onnx``).
        remote_code: the repository asks for code of its own (`auto_map`).
        task: what it is served for when a request does not say.
        labels: names of the classes in the order of the logits; empty without a classifier.
        problem_type: `problem_type` of config.json, ``""`` where absent.
        activation: dotted torch name of the activation that sentence-transformers' CrossEncoder would
            apply to one-label scores, ``""`` for its default.
        truncate_dim: the length that sentence-transformers cuts vectors to by default; None for all.
        special_ids: token ids of the tokenizer's special tokens, which sparse vectors leave out.
        multivector: how queries and documents of a late-interaction model are encoded; None for others.
        modalities: what its inputs may be.
        towers: the parts that read other modalities than text.
        text_tower: how a dual model wants its token ids; None for other models.
        chat: the template that all its texts go through; None where they are tokenized as they are.
        static_queries: how a sparse model weighs queries without inference; None where it infers both sides.
        max_active_dims: weights that a sparse vector keeps, the largest; None for all.
        answer_ids: ids of ``yes`` and ``no`` of a bare causal language model, which can serve as a reranker.
        is_masked_lm: a bare masked language model, which can serve as SPLADE.
        loaded_as: the class of sentence-transformers that the repository is made for.
        extractor: how it reads what spans are looked for in; None for models of another kind.
    """

    model_id: str
    path: str
    commit: str
    digest: str
    kind: str
    family: str
    architecture: str
    config: dict[str, Any]
    modules: tuple[Module, ...]
    normalize: bool
    hidden_size: int
    dimensions: int
    max_model_len: int | None
    vocab_size: int
    reason: str = ""
    transformer_folder: str = ""
    lower_case: bool = False
    prompts: dict[str, str] = {}
    default_prompt_name: str | None = None
    similarity: str = "cosine"
    weights: tuple[str, ...] = ()
    graph_files: tuple[str, ...] = ()
    remote_code: bool = False
    task: Task = Task.EMBED
    labels: tuple[str, ...] = ()
    problem_type: str = ""
    activation: str = ""
    truncate_dim: int | None = None
    special_ids: tuple[int, ...] = ()
    multivector: MultivectorSpec | None = None
    modalities: tuple[Modality, ...] = (Modality.TEXT,)
    towers: tuple[Tower, ...] = ()
    text_tower: TextTower | None = None
    chat: ChatSpec | None = None
    static_queries: StaticQueriesSpec | None = None
    max_active_dims: int | None = None
    answer_ids: tuple[int, int] | None = None
    is_masked_lm: bool = False
    loaded_as: str = "SentenceTransformer"
    extractor: ExtractorSpec | None = None

    @property
    def sparse_dimensions(self) -> int:
        """Length of a sparse vector, its zeros counted."""
        codes = (m.dimension for m in self.modules if isinstance(m, SparseCodeModule))
        return next(codes, self.vocab_size)

    @property
    def pooling(self) -> PoolingModule | None:
        """The first pooling module, if the chain has one."""
        return next((m for m in self.modules if isinstance(m, PoolingModule)), None)
