# Licensed under the Apache License, Version 2.0.
"""Soft edges, coordinates and smooth noise that both kinds of drawings are made of."""

from functools import lru_cache

import numpy as np
from threadpoolctl import ThreadpoolController


def edge(depth: np.ndarray, softness: float) -> np.ndarray:
    """0 outside, 1 inside, with a linear ramp of four times `softness` around depth 0."""
    return np.clip(depth * np.float32(0.25 / softness) + np.float32(0.5), 0, 1)


def rotate(x: np.ndarray, y: np.ndarray, angle: float) -> tuple[np.ndarray, np.ndarray]:
    cosine, sine = np.float32(np.cos(angle)), np.float32(np.sin(angle))
    return cosine * x + sine * y, cosine * y - sine * x


@lru_cache(maxsize=8)
def grid(size: int) -> tuple[np.ndarray, np.ndarray]:
    """Centres of the pixels in the unit square."""
    centres = (np.arange(size, dtype=np.float32) + np.float32(0.5)) / np.float32(size)
    return np.broadcast_to(centres, (size, size)), np.broadcast_to(centres[:, None], (size, size))


@lru_cache(maxsize=32)
def _interpolation(size: int, cells: int) -> np.ndarray:
    """(size, cells) matrix that interpolates linearly from cells to pixels."""
    position = np.clip((np.arange(size) + 0.5) / size * cells - 0.5, 0, cells - 1.0001)
    left = position.astype(int)
    matrix = np.zeros((size, cells), np.float32)
    matrix[np.arange(size), left] = 1 - (position - left)
    matrix[np.arange(size), left + 1] += position - left
    return matrix


def texture(rng: np.random.Generator, size: int, cells: int) -> np.ndarray:
    """Smooth noise with `cells` random values along each side."""
    matrix, noise = _interpolation(size, cells), rng.standard_normal((cells, cells), dtype=np.float32)
    # For products so small, threads spend more on waiting than they save.
    with _blas().limit(limits=1, user_api="blas"):
        return matrix @ noise @ matrix.T


@lru_cache(maxsize=1)
def _blas() -> ThreadpoolController:
    return ThreadpoolController()
