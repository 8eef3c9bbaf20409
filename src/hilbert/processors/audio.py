"""A sound file to what CLAP's audio tower reads: decode, mix down, resample, log-mel spectrogram.

soundfile and soxr decode and resample (wav, flac, ogg, mp3); the spectrogram is numpy's. Its numbers equal
those of transformers' ClapFeatureExtractor, but for one thing: of a sound longer than the tower hears, the
extractor takes parts at random, and we take always the same, so that a sound has one vector.
"""

from __future__ import annotations

import io
from functools import cache, lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt

from hilbert.core import AudioProcessing
from hilbert.core.request import FloatArray
from hilbert.errors import MediaError, MissingDependency

DoubleArray = npt.NDArray[np.float64]

MAX_SECONDS = 600
# Ten minutes of stereo at 48 kHz are 230 MB decoded; silence at 655 kHz has a thousandth of that as a file.
MAX_SAMPLES = 57_600_000
# Of all sounds of a request together: they are decoded in ten seconds.
MAX_REQUEST_SAMPLES = 8 * MAX_SAMPLES
MAX_CHANNELS = 16
FORMATS = ("WAV", "WAVEX", "FLAC", "OGG", "MP3", "MPEG")

# Frames whose spectrum is computed together: 16 MB at CLAP's window.
_FRAMES_TOGETHER = 1024
_FLOOR = 1e-10


def count_samples(data: bytes) -> int:
    """Samples in all channels as the file's header says; 0 for what `decode_audio` refuses anyway."""
    soundfile, _ = _libraries()
    try:
        with soundfile.SoundFile(io.BytesIO(data)) as file:
            return int(file.frames * file.channels)
    except soundfile.LibsndfileError:
        return 0


def decode_audio(data: bytes, sampling_rate: int, index: int, max_seconds: float = MAX_SECONDS) -> FloatArray:
    """One channel at the wanted rate, ``[samples]`` float32 in -1 to 1.

    Args:
        data: the file.
        sampling_rate: samples per second of the result.
        index: of the input, for messages.
        max_seconds: what is longer is refused, unread.

    Raises:
        MediaError: it is no sound, a broken one, empty or too long.
        MissingDependency: soundfile or soxr is not installed.
    """
    soundfile, soxr = _libraries()
    try:
        with soundfile.SoundFile(io.BytesIO(data)) as file:
            if file.format not in FORMATS:
                raise _refused(index, f"a sound of format {file.format}", _KNOWN)
            rate, channels, frames = file.samplerate, file.channels, file.frames
            if channels > MAX_CHANNELS:
                raise _refused(index, f"a sound of {channels} channels", f"At most {MAX_CHANNELS} are taken.")
            if frames > max_seconds * rate:
                what = f"a sound of {frames / rate:,.0f} s; at most {max_seconds:g} s are taken"
                raise _refused(index, what, "Cut it.")
            if frames * channels > MAX_SAMPLES:
                what = f"a sound of {frames * channels:,} samples in all its channels at {rate:,} Hz"
                limit = f"At most {MAX_SAMPLES:,} are decoded: cut it, or take a lower rate."
                raise _refused(index, what, limit)
            samples = file.read(frames, dtype="float32", always_2d=True)
    except soundfile.LibsndfileError as error:
        what = f"{len(data):,} bytes that cannot be read as a sound ({error.error_string})"
        raise _refused(index, what, _KNOWN) from None
    mono: FloatArray = samples.mean(axis=1, dtype=np.float32)
    if rate != sampling_rate and len(mono):
        mono = soxr.resample(mono, rate, sampling_rate)
    if not len(mono):
        raise _refused(index, "a sound without a sample", "Send one that lasts.")
    if not np.isfinite(mono).all():
        raise _refused(index, "a sound whose samples are not all finite numbers", "Encode it again.")
    return mono


def audio_features(samples: FloatArray, processing: AudioProcessing) -> FloatArray:
    """``[1, frames, mels]`` float32, or four spectrograms where the tower fuses them.

    Args:
        samples: mono, at the processing's rate, at least one.
    """
    limit = processing.max_samples
    if not processing.is_fused:
        return _log_mel(_filled(samples[:limit], limit, processing.padding), processing)[None]
    mel = _log_mel(_filled(samples, limit, processing.padding), processing)
    frames = limit // processing.hop + 1
    if len(mel) == frames:
        return np.ascontiguousarray(np.broadcast_to(mel, (4, *mel.shape)))
    starts = [int(part[len(part) // 2]) if len(part) else 0 for part in _thirds(len(mel) - frames + 1)]
    parts = [_shrunk(mel, frames), *(mel[start : start + frames] for start in starts)]
    return np.stack(parts)


def _thirds(num_starts: int) -> list[npt.NDArray[np.int64]]:
    return np.array_split(np.arange(num_starts), 3)


def _filled(samples: FloatArray, length: int, padding: str) -> FloatArray:
    """At least so many samples: the sound again and again, or silence, as the model was trained."""
    missing = length - len(samples)
    if missing <= 0:
        return samples
    if padding == "repeat":
        repeated: FloatArray = np.tile(samples, length // len(samples) + 1)[:length]
        return repeated
    if padding == "repeatpad":
        samples = np.tile(samples, length // len(samples))
    return np.pad(samples, (0, length - len(samples)))


def _shrunk(mel: FloatArray, frames: int) -> FloatArray:
    """A spectrogram squeezed in time, linearly between the two nearest frames (half-pixel centres)."""
    place = np.maximum((np.arange(frames) + 0.5) * (len(mel) / frames) - 0.5, 0)
    before = place.astype(np.int64)
    after = np.minimum(before + 1, len(mel) - 1)
    share = (place - before).astype(np.float32)[:, None]
    squeezed: FloatArray = mel[before] * (1 - share) + mel[after] * share
    return squeezed


def _log_mel(samples: FloatArray, processing: AudioProcessing) -> FloatArray:
    """Decibels of each mel band, ``[frames, mels]`` float32."""
    window, hop = processing.window, processing.hop
    padded = np.pad(samples, window // 2, mode="reflect").astype(np.float64)
    frames = np.lib.stride_tricks.sliding_window_view(padded, window)[::hop]
    taper = np.hanning(window + 1)[:-1]
    bank = _filters(processing)
    rows = []
    for start in range(0, len(frames), _FRAMES_TOGETHER):
        # Rounded to 32 bits as the feature extractor does: the logarithm of nearly nothing shows it.
        spectrum = np.fft.rfft(frames[start : start + _FRAMES_TOGETHER] * taper).astype(np.complex64)
        power = np.abs(spectrum).astype(np.float64) ** 2
        rows.append(10 * np.log10(np.maximum(_FLOOR, power @ bank)))
    return np.concatenate(rows).astype(np.float32)


@lru_cache(maxsize=8)
def _filters(processing: AudioProcessing) -> DoubleArray:
    """Triangular mel filters, ``[window // 2 + 1, mels]``.

    The fused models use HTK's scale as it is, the others Slaney's with equal energy per band.
    """
    to_mel, to_hertz = (_htk, _htk_hertz) if processing.is_fused else (_slaney, _slaney_hertz)
    ends = to_mel(np.array([processing.min_hertz, processing.max_hertz], np.float64))
    edges = to_hertz(np.linspace(ends[0], ends[1], processing.num_mels + 2))
    bins = np.linspace(0, processing.sampling_rate // 2, processing.window // 2 + 1)
    widths = np.diff(edges)
    distance = edges[None, :] - bins[:, None]
    bank = np.maximum(0, np.minimum(-distance[:, :-2] / widths[:-1], distance[:, 2:] / widths[1:]))
    if not processing.is_fused:
        bank *= 2.0 / (edges[2:] - edges[:-2])
    return bank


def _htk(hertz: DoubleArray) -> DoubleArray:
    return 2595.0 * np.log10(1 + hertz / 700.0)


def _htk_hertz(mels: DoubleArray) -> DoubleArray:
    return 700.0 * (10.0 ** (mels / 2595.0) - 1)


# Slaney's scale: linear to 1000 Hz (15 mel), logarithmic above, 27 mel to a factor of 6.4.
_STEP = np.log(6.4) / 27.0


def _slaney(hertz: DoubleArray) -> DoubleArray:
    return np.where(hertz < 1000, hertz * 3 / 200, 15 + np.log(np.maximum(hertz, 1000) / 1000) / _STEP)


def _slaney_hertz(mels: DoubleArray) -> DoubleArray:
    return np.where(mels < 15, mels * 200 / 3, 1000 * np.exp(_STEP * (mels - 15)))


_KNOWN = "Send wav, flac, ogg or mp3."


@cache
def _libraries() -> tuple[Any, Any]:
    try:
        import soundfile
        import soxr
    except (ImportError, OSError) as error:  # soundfile raises OSError where its library is missing
        raise MissingDependency(
            f"sounds need soundfile and soxr ({error}): pip install 'hilbert[audio]'"
        ) from error
    return soundfile, soxr


def _refused(index: int, what: str, remedy: str) -> MediaError:
    return MediaError(f"input[{index}] is {what}. {remedy}", param="input", index=index)
