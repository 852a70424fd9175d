"""Records without a model: what each sample ended as is written down, not computed."""

import hashlib

import numpy as np

from robustkit.record import RunRecord

LETTERS = {"W": "WRONG", "B": "BROKEN", "R": "ROBUST", "U": "UNKNOWN"}
JOB = {
    "model": "net", "model_sha256": "aa", "probe_sha256": "p", "data": "toy", "data_sha256": "d", "attack": "fgsm",
    "attacks": ["fgsm"], "attack_sources": {"fgsm": "s"}, "norm": "linf", "eps": 0.1, "target": "", "seed": 0,
    "outputs": "logits", "quantize": "", "device": "cpu", "threads": 1, "tile": 64, "precision": "float32",
    "versions": {"torch": "2.6"},
}  # fmt: skip


def record(letters, *, first=0, images="", by=None, cost=2, seconds=1.0, flags=(), **job):
    """A record of one letter a sample, W B R or U; `by` names the attack that broke each."""
    job = {**JOB, **job}
    n = len(letters)
    index = np.arange(first, first + n)
    status = np.array([LETTERS[letter] for letter in letters])
    by = np.array(by or [job["attacks"][0] if s == "BROKEN" else "" for s in status])
    met = [(i, name, s, b) for name in job["attacks"] for i, s, b in zip(index, status, by, strict=True)
           if s != "WRONG" and not (b and job["attacks"].index(b) < job["attacks"].index(name))]  # fmt: skip
    outcome = ["broken" if b == name else "violated" if s == "UNKNOWN" else "survived" for _, name, s, b in met]
    return RunRecord(
        job={**job, "indices": index.tolist(), "id": "0"},
        environment={"device": "x86"},
        samples={
            "index": index,
            "label": index % 10,
            "status": status,
            "broken_by": by,
            "distance": np.full(n, np.nan),
            "sha256": np.array([hashlib.sha256(f"{images}{i}".encode()).hexdigest() for i in index]),
        },
        attacks={
            "index": np.array([row[0] for row in met], dtype=np.int64),
            "attack": np.array([row[1] for row in met]),
            "outcome": np.array(outcome),
            "distance": np.full(len(met), np.nan),
            "margin": np.full(len(met), np.nan),
            "forwards": np.full(len(met), cost),
            "backwards": np.full(len(met), cost),
        },
        seconds=dict.fromkeys(job["attacks"], seconds),
        flags=flags,
    )


def flipped(rng, n, discordance, drop):
    """Whether each of n samples was robust before, and is after: a share of flips, the worse ahead by `drop`."""
    flips = rng.choice(3, size=n, p=[1 - discordance, (discordance + drop) / 2, (discordance - drop) / 2])
    before = np.where(flips == 0, rng.random(n) < 0.5, flips == 1)
    return before, np.where(flips == 0, before, flips == 2)
