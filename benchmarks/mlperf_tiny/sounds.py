"""Sounds of our own for models whose data is not here, as the features that MLPerf Tiny's models take.

They are made by formula from a seed: voiced syllables for keyword spotting, machines that hum for anomaly detection.
They show that a quantized model computes what its float original does on inputs of the right kind and range. They say
nothing of accuracy.
"""

from __future__ import annotations

import numpy as np

RATE = 16000


def spoken(count: int, seed: int) -> np.ndarray:
    """Return `[count, 49, 10, 1]` float32: mel cepstral coefficients of one second, frames of 30 ms every 20 ms."""
    random = np.random.default_rng(seed)
    return np.stack([_cepstrum(_utterance(random)) for _ in range(count)]).astype(np.float32)[..., None]


def machines(count: int, seed: int) -> np.ndarray:
    """Return `[count, 640]` float32: 5 neighbouring frames of 128 mel energies in dB, frames of 64 ms every 32 ms."""
    random = np.random.default_rng(seed)
    rows = []
    for _ in range(count):
        frames = _mel_energies(_machine(random), 1024, 512, 128, 0.0, RATE / 2, power=2)
        start = random.integers(0, len(frames) - 5)
        rows.append(10 * np.log10(frames[start : start + 5] + np.finfo(np.float32).eps).reshape(-1))
    return np.stack(rows).astype(np.float32)


def _utterance(random: np.random.Generator) -> np.ndarray:
    """Return a second of sound: two syllables of harmonics under three formants, a hiss between them, and a room."""
    time = np.arange(RATE) / RATE
    pitch = random.uniform(90, 260) * (1 + 0.1 * np.sin(2 * np.pi * random.uniform(0.5, 3) * time))
    phase = 2 * np.pi * np.cumsum(pitch) / RATE
    sound = np.zeros(RATE)
    for _ in range(2):
        formants = random.uniform((250, 800, 2000), (850, 2200, 3300))
        voice = np.zeros(RATE)
        for harmonic in range(1, 30):
            distance = (harmonic * pitch[:, None] - formants) / (80 + 0.06 * formants)
            voice += (1 / (1 + distance**2)).sum(1) * np.sin(harmonic * phase) / harmonic**0.5
        middle, width = random.uniform(0.2, 0.8), random.uniform(0.04, 0.14)
        sound += voice * np.exp(-(((time - middle) / width) ** 2))
        hiss = np.diff(random.standard_normal(RATE + 1)) * np.exp(-(((time - middle - width) / 0.04) ** 2))
        sound += random.uniform(0, 0.6) * hiss
    sound /= np.abs(sound).max()
    return sound + 10 ** random.uniform(-4, -1.5) * random.standard_normal(RATE)


def _machine(random: np.random.Generator) -> np.ndarray:
    """Return two seconds of sound: a motor's harmonics, their slow beat, and coloured noise."""
    time = np.arange(2 * RATE) / RATE
    turns = random.uniform(30, 120)
    loudness = random.uniform(0, 1, 40) / np.arange(1, 41) ** random.uniform(0.4, 1.4)
    hum = (loudness * np.sin(2 * np.pi * turns * np.outer(time, np.arange(1, 41)) + random.uniform(0, 6, 40))).sum(1)
    hum *= 1 + random.uniform(0, 0.4) * np.sin(2 * np.pi * random.uniform(0.5, 9) * time)
    white = random.standard_normal(len(time))
    spectrum = np.fft.rfft(white) / np.maximum(np.fft.rfftfreq(len(time), 1 / RATE), 20) ** random.uniform(0, 0.7)
    noise = np.fft.irfft(spectrum, len(time))
    return random.uniform(0.003, 0.1) * hum + random.uniform(0.003, 0.03) * noise / noise.std()


def _cepstrum(sound: np.ndarray) -> np.ndarray:
    energies = _mel_energies(sound, 480, 320, 40, 20.0, 4000.0, power=1, fft=512)
    logarithm = np.log(energies[:49] + 1e-6)
    turn = np.pi / 40 * np.outer(np.arange(40) + 0.5, np.arange(10))
    return logarithm @ np.cos(turn) * np.sqrt(2 / 40)


def _mel_energies(
    sound: np.ndarray, size: int, step: int, bands: int, lowest: float, highest: float, *, power: int, fft: int = 0
) -> np.ndarray:
    """Return `[frames, bands]`: triangular bands, evenly spaced by mel, over the spectrum of Hann-windowed frames."""
    fft = fft or size
    starts = np.arange(0, len(sound) - size + 1, step)
    frames = sound[starts[:, None] + np.arange(size)] * np.hanning(size + 1)[:-1]
    spectrum = np.abs(np.fft.rfft(frames, fft)) ** power
    edges = np.linspace(_mel(lowest), _mel(highest), bands + 2)
    bins = _mel(np.fft.rfftfreq(fft, 1 / RATE))
    rising = (bins[:, None] - edges[:-2]) / (edges[1:-1] - edges[:-2])
    falling = (edges[2:] - bins[:, None]) / (edges[2:] - edges[1:-1])
    return spectrum @ np.clip(np.minimum(rising, falling), 0, None)


def _mel(hertz: np.ndarray | float) -> np.ndarray:
    return 1127 * np.log1p(np.asarray(hertz) / 700)
