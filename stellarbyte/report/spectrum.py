"""The effective rank of a matrix: exactly where that is quick, else by a randomised estimate."""

import math

import numpy as np

# Up to this smaller side all singular values are computed.
EXACT_SIDE = 1024

# The estimate: random vectors, and steps of Lanczos' iteration for each.
_VECTORS, _STEPS = 8, 24
# So many of the largest singular values are computed, after so many products with the matrix and its transpose.
_LARGE, _POWERS = 128, 3
# float32 resolves no smaller singular value, as a share of the largest.
_SMALLEST = 1e-5


def effective_rank(matrix: np.ndarray, exact_side: int = EXACT_SIDE) -> tuple[float, bool]:
    """(effective rank, whether it is estimated) of a float32 matrix [M, N] whose numbers are finite.

    It is exp(H), where H is the entropy of the singular values, taken as shares of their sum (Roy & Vetterli 2007). A
    matrix of zeros has 0. Beyond `exact_side` it is estimated by stochastic Lanczos quadrature (Ubaru, Chen & Saad
    2017, doi:10.1137/16M1104974), with singular values below 1e-5 of the largest taken for 0.
    """
    tall = matrix if matrix.shape[0] >= matrix.shape[1] else matrix.T
    largest = float(np.abs(tall).max(initial=0.0))
    if largest == 0:
        return 0.0, False
    if tall.shape[1] <= exact_side:
        values = np.sqrt(np.maximum(np.linalg.eigvalsh(_gram(tall, largest)), 0))
        total, logs = float(values.sum()), float((values * np.log(np.maximum(values, 1e-300))).sum())
        return math.exp(math.log(total) - logs / total), False
    total, logs = _spectral_sums(tall, largest)
    return min(math.exp(math.log(total) - logs / total), tall.shape[1]), True


def _gram(tall: np.ndarray, scale: float) -> np.ndarray:
    """tall.T @ tall, float64, a block of rows at a time."""
    rows = max(1, (4 << 20) // tall.shape[1])
    gram: np.ndarray = np.zeros((tall.shape[1],) * 2)
    for start in range(0, len(tall), rows):
        block = tall[start : start + rows].astype(np.float64) / scale
        gram += block.T @ block
    return gram


def _spectral_sums(tall: np.ndarray, scale: float) -> tuple[float, float]:
    """Estimates of Σ σ and Σ σ log σ over the singular values of tall / scale.

    The largest ones are computed and taken out, since random vectors meet few large values badly (as in Hutch++, Meyer
    et al. 2021, arXiv:2010.09649); the others are estimated.
    """
    N = tall.shape[1]
    draws = np.random.default_rng(0)
    top_NK: np.ndarray = draws.normal(size=(N, _LARGE))
    for _ in range(_POWERS):
        top_NK = np.linalg.qr(_product(tall, top_NK, scale))[0]
    top_K = np.sqrt(np.maximum(np.linalg.eigvalsh(top_NK.T @ _product(tall, top_NK, scale)), 0))
    v_NV: np.ndarray = draws.choice((-1.0, 1.0), (N, _VECTORS))
    v_NV -= top_NK @ (top_NK.T @ v_NV)
    squares_V = (v_NV * v_NV).sum(axis=0)
    v_NV /= np.sqrt(squares_V)
    basis: list[np.ndarray] = []
    alphas: list[np.ndarray] = []
    betas: list[np.ndarray] = []
    for _ in range(_STEPS):
        basis.append(v_NV)
        w_NV = _product(tall, v_NV, scale)
        w_NV -= top_NK @ (top_NK.T @ w_NV)
        alphas.append((w_NV * v_NV).sum(axis=0))
        for _twice in range(2):  # without it rounding lets the same values come again
            for each in basis:
                w_NV -= each * (each * w_NV).sum(axis=0)
        beta_V = np.sqrt((w_NV * w_NV).sum(axis=0))
        betas.append(beta_V)
        v_NV = w_NV / np.maximum(beta_V, 1e-30)
    smallest = _SMALLEST * float(top_K.max())
    sums = _sums(top_K, np.ones(_LARGE), smallest)
    for vector in range(_VECTORS):
        squares, weights = _quadrature([a[vector] for a in alphas], [b[vector] for b in betas])
        sums += _sums(np.sqrt(np.maximum(squares, 0)), weights * squares_V[vector] / _VECTORS, smallest)
    return float(sums[0]), float(sums[1])


def _sums(values: np.ndarray, weights: np.ndarray, smallest: float) -> np.ndarray:
    values = np.where(values < smallest, 0, values)
    return np.array([weights @ values, weights @ (values * np.log(np.maximum(values, 1e-300)))])


def _product(tall: np.ndarray, x_NV: np.ndarray, scale: float) -> np.ndarray:
    """tall.T @ (tall @ x) / scale², float64 but for the products."""
    inner_MV = (tall @ x_NV.astype(np.float32)) / np.float32(scale)
    return np.asarray(tall.T @ inner_MV, np.float64) / scale


def _quadrature(alphas: list[float], betas: list[float]) -> tuple[np.ndarray, np.ndarray]:
    """Nodes and weights of Gauss' quadrature from Lanczos' three-term recurrence."""
    # The space is used up where a beta vanishes; what comes after it is rounding.
    end = next((i + 1 for i, beta in enumerate(betas) if beta < 1e-6 * max(abs(alphas[0]), max(betas))), len(alphas))
    matrix = np.diag(alphas[:end]) + np.diag(betas[: end - 1], 1) + np.diag(betas[: end - 1], -1)
    values, vectors = np.linalg.eigh(matrix)
    return values, vectors[0] ** 2
