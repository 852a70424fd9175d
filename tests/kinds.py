"""A record of each kind, made of random facts: what pages, listings and comparisons are tried on."""

import dataclasses
import math

import numpy as np

from robustkit.records.about import About
from robustkit.records.bounds import BoundsRecord, Proved
from robustkit.records.certificate import Certified, CertifiedRecord
from robustkit.records.corruption import Cell, CorruptionRecord
from robustkit.records.findings import Audit, Audited
from robustkit.records.sweep import Sweep
from robustkit.records.transfer import TransferRecord
from robustkit.study import grammar
from robustkit.study.results import Facts, Outcome, Results
from robustkit.study.tables import Tables
from tests import records

ABOUT = About("", "8/255", "2026-01-31T09:00:00Z", "2026-01-31T12:00:00Z")
VERSIONS = {"robustkit": "0.1.0", "torch": "2.6.0"}
ASKED = {
    "model": "net", "model_sha256": "a" * 64, "probe_sha256": "b" * 64, "data": "digits", "data_sha256": "c" * 64,
    "defense": "", "seed": 0, "device": "cpu", "threads": 2, "tile": 32, "versions": VERSIONS,
}  # fmt: skip
NAMES = ("plane", "car", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")


def run(n=100, **more):
    made = records.random_record(n, audit=records.AUDIT, **more)
    return dataclasses.replace(made, about=dataclasses.replace(ABOUT, classes=NAMES))


def sweep():
    rows = [records.random_record(60, eps=eps / 255) for eps in (4, 8)]
    texts = ("4/255", "8/255")
    about = [dataclasses.replace(ABOUT, eps=text) for text in texts]
    return Sweep(texts, tuple(dataclasses.replace(row, about=each) for row, each in zip(rows, about, strict=True)))


def transfer(n=80, sets=None, attacks=("mi", "vmi"), victims=("ViT-B/16", "ResNet-50"), seed=0):
    rng = np.random.default_rng(seed)
    sets = sets or {"one": ["a"], "both": ["a", "b"]}
    models = list(dict.fromkeys([*victims, *(name for members in sets.values() for name in members)]))
    index, label = np.arange(n), rng.integers(0, 10, n)
    clean = {name: np.where(rng.random(n) < 0.9, label, (label + 1) % 10) for name in models}
    samples = {"index": index, "label": label, "sha256": np.array([f"{i:064x}" for i in index])}
    rows, answers = [], []
    for group, members in sets.items():
        for place, attack in enumerate(attacks):
            key = {"index": index, "surrogates": np.full(n, group), "attack": np.full(n, attack)}
            rows.append({**key, "target": np.full(n, -1), "violated": np.zeros(n, bool), "distance": np.full(n, 0.03),
                         "forwards": rng.integers(1, 9, n), "backwards": rng.integers(1, 9, n)})  # fmt: skip
            for name in models:
                wrong = clean[name] != label
                hit = (rng.random(n) < (0.95 if name in members else 0.2 + 0.2 * place)) | wrong
                answers.append({**key, "victim": np.full(n, name), "outcome": np.where(hit, "success", "resisted"),
                                "clean_wrong": wrong, "prediction": np.where(hit, (label + 1) % 10, label),
                                "distance": np.full(n, 0.03)})  # fmt: skip
    job = {
        **{key: ASKED[key] for key in ("data", "defense", "seed", "device", "threads", "tile")}, "data_sha256": "",
        "norm": "linf", "eps": 8 / 255, "target": "", "draws": 0, "indices": index.tolist(),
        "surrogates": dict(sets), "victims": list(victims), "attacks": {name: f"{name}:steps=5" for name in attacks},
        "models": {name: {"spec": f"timm/{name}", "weights_sha256": f"{k:x}" * 64, "probe_sha256": f"p{k}",
                          "randomised": False} for k, name in enumerate(models)},
        "code": {"versions": VERSIONS},
    }  # fmt: skip
    samples |= {f"clean:{name}": value for name, value in clean.items()}
    return TransferRecord(
        records.identified(job, samples), {"device": "x86"}, samples, _joined(rows), _joined(answers),
        {group: dict.fromkeys(attacks, 1.5) for group in sets}, about=ABOUT,
    )  # fmt: skip


def _joined(rows):
    return {name: np.concatenate([row[name] for row in rows]) for name in rows[0]}


def corruptions(n=50):
    rng = np.random.default_rng(0)
    cells = tuple(
        Cell(kind, severity, tuple(np.flatnonzero(rng.random(n) < severity / 8).tolist()), f"{severity}")
        for kind in ("gaussian-noise", "jpeg-compression", "motion-blur")
        for severity in (1, 3, 5)
    )
    clean = Cell("", 0, (3,), "0")
    return CorruptionRecord(ASKED, {"device": "x86"}, tuple(range(n)), cells, clean, notes=("a note",), about=ABOUT)


def certificate(n=40):
    rng = np.random.default_rng(0)
    job = {**ASKED, "sigma": 0.25, "first": 10, "draws": 1000, "alpha": 0.001}
    images = tuple(
        Certified(i, i % 10, -1 if i % 9 == 0 else (i % 10 if i % 7 else 0), 0.0 if i % 9 == 0 else float(rng.random()))
        for i in range(n)
    )
    about = dataclasses.replace(ABOUT, classes=NAMES)
    return CertifiedRecord(job, {"device": "x86"}, images, (0.0, 0.25, 0.5), about)


def bounds(n=40):
    job = {**ASKED, "norm": "linf", "eps": 8 / 255, "method": "crown", "indices": list(range(n))}
    images = tuple(
        Proved(i, i % 10, i % 9 > 0, i % 3 == 1 and i % 9 > 0, ("ibp", "crown")[i % 2], i / 10 if i % 9 else math.nan)
        for i in range(n)
    )
    return BoundsRecord(job, {"device": "x86"}, images, dataclasses.replace(ABOUT, classes=NAMES))


def audit(checks=None):
    found = Audit.from_json({**records.AUDIT, "checks": checks or records.AUDIT["checks"]})
    job = {**ASKED, "norm": "linf", "eps": 8 / 255, "indices": list(range(64))}
    return Audited(job, {"device": "x86"}, found, ABOUT)


def study():
    asked = grammar.parse(
        {
            "title": "Two networks behind coarse pixels", "dataset": "digits", "eps": ["4/255", "8/255"],
            "models": {"plain": "digits-cnn", "trained": "digits-cnn-at"}, "attacks": {"PGD": "pgd", "FGSM": "fgsm"},
            "defenses": {"none": "none", "coarse": "bit-depth:bits=2"},
            "transfer": {"surrogate": ["a"], "victim": ["v"], "attack": ["mi"]},
        },
        "study",
    )  # fmt: skip
    cells = asked.cells()
    facts = {}
    for place, cell in enumerate(cells[:-1]):
        made = records.random_record(60, audit=records.AUDIT if place == 0 else None, seed=place)
        facts[cell] = Facts.of(dataclasses.replace(made, about=ABOUT))
    runs = {cell: transfer(attacks=("mi",)) for cell in asked.transfers()}
    outcomes = [Outcome(cell, f"runs/{place}", "") for place, cell in enumerate(cells[:-1])]
    outcomes += [Outcome(cells[-1], "", "the model is not there"), *(Outcome(cell, "runs/t", "") for cell in runs)]
    return Results(asked, outcomes, facts, runs)


def study_page():
    from robustkit.study import page

    return page.page(Tables(study()))


RECORDS = {"run": run, "sweep": sweep, "transfer": transfer, "corruptions": corruptions, "certificate": certificate,
           "bounds": bounds, "audit": audit}  # fmt: skip
