#!/usr/bin/env python3
"""Makes golden.json: averages of LoRA adapters, computed densely with numpy.

Independent of the Rust code: it forms every d x k product, adds them up in float64 and calls
numpy.linalg.svd on the sum; there is no stack, no QR and no small core here.

    pip install numpy==2.4.6 && python3 make.py > golden.json

The library versions that made a file are inside it. Inputs are float32 values, written with enough
digits to be read back exactly; matrices are lists of rows.
"""

import json
import sys

import numpy as np


def matrix(rng, rows, columns):
    return rng.normal(0.0, 0.5, (rows, columns)).astype(np.float32)


def adapter(rng, d, k, rank, head):
    return {"lora_a": matrix(rng, rank, k), "lora_b": matrix(rng, d, rank), "head": matrix(rng, 1, head)}


def product(alpha, pair):
    a, b = pair["lora_a"].astype(np.float64), pair["lora_b"].astype(np.float64)
    return alpha / a.shape[0] * (b @ a)


def case(seed, name, alpha, rank, d, k, members, fresh=False):
    """members: (weight, rank, rank of its own older base or None when it trained from global)."""
    rng = np.random.default_rng(seed)
    start = adapter(rng, d, k, rank, 3)
    if fresh:
        start["lora_b"][:] = 0.0
    total = product(alpha, start)
    head = start["head"].astype(np.float64)
    out = []
    for weight, member_rank, base_rank in members:
        member = adapter(rng, d, k, member_rank, 3)
        base = start if base_rank is None else adapter(rng, d, k, base_rank, 3)
        total = total + weight * (product(alpha, member) - product(alpha, base))
        head = head + weight * (member["head"].astype(np.float64) - base["head"].astype(np.float64))
        out.append({"weight": weight, "adapter": member, "base": None if base_rank is None else base})
    u, s, vt = np.linalg.svd(total, full_matrices=False)
    signs = np.sign(u[np.abs(u).argmax(axis=0), np.arange(u.shape[1])])
    u, vt = u * signs, vt * signs[:, None]
    expected = {
        "product": total,
        "lora_b": u[:, :rank] * s[:rank] / (alpha / rank),
        "lora_a": vt[:rank],
        "head": head,
        "discarded_energy": float(1.0 - (s[:rank] ** 2).sum() / (s**2).sum()),
    }
    return {"name": name, "alpha": alpha, "rank": rank, "global": start, "members": out, "expected": expected}


def plain(value):
    if isinstance(value, dict):
        return {key: plain(item) for key, item in value.items()}
    if isinstance(value, list):
        return [plain(item) for item in value]
    if isinstance(value, np.ndarray):
        return [[float(x) for x in row] for row in value]
    return value


golden = {
    "made_by": {"python": sys.version.split()[0], "numpy": np.__version__},
    "cases": [
        case(1, "two members, same rank", 16.0, 2, 6, 5, [(0.5, 2, None), (0.5, 2, None)]),
        case(2, "mixed ranks", 16.0, 3, 7, 9, [(0.5, 1, None), (0.25, 3, None), (0.25, 4, None)]),
        case(3, "from a fresh adapter", 8.0, 2, 5, 8, [(0.375, 2, None), (0.625, 2, None)], fresh=True),
        case(4, "one late member", 16.0, 4, 9, 6, [(0.5, 4, None), (0.25, 4, 4), (0.25, 2, 3)]),
    ],
}
json.dump(plain(golden), sys.stdout, indent=None, separators=(",", ":"))
print()
