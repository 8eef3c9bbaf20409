"""Images and sounds to `Sequence`: the features that a model's towers read.

Knows no device and no batching. Decoding takes milliseconds to seconds: a caller does it in a thread.
"""

from __future__ import annotations

import math
from collections.abc import Iterable

from hilbert.core import NO_IDS, ImageProcessing, Input, Media, MediaRef, Modality, ModelSpec, Sequence
from hilbert.errors import InvalidInput, MediaError, UnsupportedTask
from hilbert.processors.audio import MAX_REQUEST_SAMPLES, audio_features, count_samples, decode_audio
from hilbert.processors.images import MAX_REQUEST_PIXELS, count_pixels, decode_image, image_features

# Of features, per request: three quarters of a frame to the worker (worker/frames.py); 348 images of CLIP.
MAX_REQUEST_BYTES = 192 << 20


class MediaProcessor:
    """Turns the images and sounds of one model into sequences; immutable, for any number of threads."""

    def __init__(self, spec: ModelSpec) -> None:
        self._towers = {tower.modality: tower for tower in spec.towers}
        self._name = spec.model_id

    def num_tokens(self, media: Media | MediaRef) -> int:
        """What an input costs; 0 for a modality that the model does not read."""
        tower = self._towers.get(media.modality)
        return 0 if tower is None else tower.num_tokens

    def check_together(self, inputs: Iterable[Input]) -> None:
        """Refuse a request whose images and sounds are too much together, before any is decoded.

        Raises:
            InvalidInput: their features would not fit into one frame to the worker; the message says how many
                are taken.
            MediaError: the images have too many pixels in all, or the sounds too many samples.
        """
        inputs = list(inputs)
        self._check_decoded(inputs)
        num_bytes, given = 0, [x for x in inputs if isinstance(x, Media)]
        for media in given:
            tower = self._towers.get(media.modality)
            num_bytes += 0 if tower is None else 4 * math.prod(tower.shape)
        if num_bytes > MAX_REQUEST_BYTES:
            limit = MAX_REQUEST_BYTES * len(given) // num_bytes
            raise InvalidInput(
                f"The request has {len(given)} images or sounds, {num_bytes >> 20} MiB as the model reads "
                f"them; one request may have about {limit}. Send fewer at once.",
                param="input",
            )

    def _check_decoded(self, inputs: list[Input]) -> None:
        num_pixels = num_samples = 0
        for index, given in enumerate(inputs):
            pixels, samples = decoded_size(given)
            num_pixels += pixels
            num_samples += samples
            if num_pixels > MAX_REQUEST_PIXELS:
                raise _too_much(index, "images", f"{num_pixels:,} pixels", MAX_REQUEST_PIXELS)
            if num_samples > MAX_REQUEST_SAMPLES:
                raise _too_much(index, "sounds", f"{num_samples:,} samples", MAX_REQUEST_SAMPLES)

    def encode(self, media: Media, request_id: int, index: int) -> Sequence:
        """Decode one input.

        Raises:
            MediaError: it is broken, too large, or none of the known formats; the message names `index`.
            UnsupportedTask: the model has no tower for it.
            MissingDependency: the library that decodes it is not installed.
        """
        tower = self._towers.get(media.modality)
        if tower is None:
            raise UnsupportedTask(
                f"input[{index}] is {media.modality}; the model {self._name} has no tower for that.",
                param="input",
                index=index,
            )
        num_tokens = tower.num_tokens
        if isinstance(tower.processing, ImageProcessing):
            features = image_features(decode_image(media.data, index), tower.processing)
            if most := tower.processing.max_pixels:  # no fixed size: a small image costs less
                num_tokens = max(1, math.ceil(num_tokens * features[0].size / most))
        else:
            samples = decode_audio(media.data, tower.processing.sampling_rate, index)
            features = audio_features(samples, tower.processing)
        return Sequence(
            request_id,
            index,
            NO_IDS,
            features=features,
            modality=tower.modality,
            num_feature_tokens=num_tokens,
        )


def decoded_size(given: Input) -> tuple[int, int]:
    """Pixels of an image and samples of a sound, as the header says; 0 for what is not one."""
    if not isinstance(given, Media):
        return 0, 0
    if given.modality is Modality.IMAGE:
        return count_pixels(given.data), 0
    return 0, count_samples(given.data)


def _too_much(index: int, kind: str, size: str, limit: int) -> MediaError:
    return MediaError(
        f"input[{index}]: with it the {kind} of the request have {size}; at most {limit:,} are decoded at "
        "once. Send fewer or smaller ones.",
        param="input",
        index=index,
    )
