"""Records without a model: what each sample ended as is written down, not computed."""

import hashlib

import numpy as np

from robustkit import spec
from robustkit.records.run import RunRecord

LETTERS = {"W": "WRONG", "B": "BROKEN", "R": "ROBUST", "U": "UNKNOWN"}
JOB = {
    "model": "net", "model_sha256": "aa", "probe_sha256": "p", "data": "toy", "data_sha256": "", "attack": "fgsm",
    "attacks": ["fgsm"], "attack_sources": {"fgsm": "s"}, "norm": "linf", "eps": 0.1, "target": "", "seed": 0,
    "outputs": "logits", "quantize": "", "device": "cpu", "threads": 1, "tile": 64, "precision": "float32",
    "versions": {"torch": "2.6"},
}  # fmt: skip


def identified(job, samples):
    """The job of these samples, with the identity that its content makes."""
    images = spec.digest([samples["sha256"].tolist(), samples["label"].tolist()])
    made = {**job, "data_sha256": job["data_sha256"] or images, "indices": samples["index"].tolist()}
    return {**made, "id": spec.digest(made)}


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
    samples = {
        "index": index,
        "label": index % 10,
        "status": status,
        "broken_by": by,
        "distance": np.full(n, np.nan),
        "sha256": np.array([hashlib.sha256(f"{images}{i}".encode()).hexdigest() for i in index]),
    }
    return RunRecord(
        job=identified(job, samples),
        environment={"device": "x86"},
        samples=samples,
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


AUDIT = {
    "schema": "robustkit/audit/1",
    "verdict": "invalid",
    "reasons": ["noise breaks what gradients do not", "40 steps break 3 points more than 20"],
    "checks": [
        {
            "name": "steps", "outcome": "suspect", "text": "40 steps break 3 points more than 20",
            "value": 0.03, "limit": 0.01,
            "series": {"x": [1, 10, 20, 40], "y": [0.9, 0.62, 0.55, 0.52], "x_label": "steps",
                       "y_label": "robust accuracy"},
        },
        {"name": "gradients", "outcome": "fine", "text": "no gradient is zero", "value": 0.0, "limit": 0.01,
         "series": None},
        {"name": "transfer", "outcome": "skipped", "text": "no surrogate", "value": None, "limit": None,
         "series": None},
        {
            "name": "noise", "outcome": "invalid", "text": "noise breaks what gradients do not",
            "value": 0.2, "limit": 0.0,
            "series": {"x": [0, 1, None], "y": [0.0, 0.2, 0.3], "x_label": "draws", "y_label": "broken"},
        },
    ],
}  # fmt: skip


def random_record(n, attacks=("apgd", "fab"), *, classes=10, shape=(1, 8, 8), images=False, audit=None, seed=0, **job):
    """A whole record of random facts, as today's engine stores them: the last attack seeks the nearest adversarial."""
    rng = np.random.default_rng(seed)
    job = {**JOB, "attack": "+".join(f"({name})" for name in attacks), "attacks": list(attacks), "eps": 8 / 255,
           "attack_sources": dict.fromkeys(attacks, "s"), "tile": 64, **job}  # fmt: skip
    index, label = np.arange(n), rng.integers(0, classes, n)
    prediction = np.where(rng.random(n) < 0.9, label, (label + 1) % classes)
    wrong = prediction != label
    status, by = np.where(wrong, "WRONG", "ROBUST").astype("<U7"), np.full(n, "", dtype=f"<U{max(map(len, attacks))}")
    distance = np.full(n, np.nan)
    parts = []
    standing = ~wrong
    for place, name in enumerate(attacks):
        at = np.flatnonzero(standing)
        breaks = rng.random(len(at)) < 0.3 / (place + 1)
        minimal = place == len(attacks) - 1
        away = np.where(breaks, job["eps"] * rng.random(len(at)), job["eps"] * (1.1 + rng.random(len(at))))
        parts.append(
            {
                "index": at,
                "attack": np.full(len(at), name),
                "outcome": np.where(breaks, "broken", "survived"),  # both as wide as "violated"
                "distance": away if minimal else np.where(breaks, job["eps"], 0.9 * job["eps"]),
                "margin": np.where(breaks, -1.0, 1.0),
                "forwards": rng.integers(1, 100, len(at)),
                "backwards": rng.integers(1, 100, len(at)),
                "prediction": np.where(breaks | minimal, (label[at] + 3) % classes, label[at]),
            }
        )
        hit = at[breaks]
        status[hit], by[hit], standing[hit] = "BROKEN", name, False
        distance[hit] = parts[-1]["distance"][breaks]
    broken = np.flatnonzero(status == "BROKEN")
    kept = None
    if images:
        clean = rng.random((len(broken), *shape), dtype=np.float32)
        moved = rng.choice(np.float32([-1, 1]), size=clean.shape) * np.float32(job["eps"])
        kept = {"index": broken, "adv": np.clip(clean + moved, 0, 1), "clean": clean}
    samples = {
        "index": index, "label": label, "status": status, "broken_by": by, "distance": distance,
        "sha256": np.array([hashlib.sha256(f"{i}".encode()).hexdigest() for i in index]), "prediction": prediction,
        "margin": np.where(wrong, -1.0, 1.0), "target": np.full(n, -1), "broken_at": np.full(n, np.nan),
    }  # fmt: skip
    return RunRecord(
        job=identified(job, samples),
        environment={"device": "x86"},
        samples=samples,
        attacks={name: np.concatenate([part[name] for part in parts]) for name in parts[0]},
        seconds={name: 1.5 * (place + 1) for place, name in enumerate(attacks)},
        goals={name: "minimal" if name == attacks[-1] else "bounded" for name in attacks},
        predicted={"forwards": 10 * n, "backwards": 10 * n, "seconds": 5.0},
        audit=audit,
        adversarial=kept,
    )  # fmt: skip
