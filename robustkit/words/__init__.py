"""What somebody meant who wrote a name that is not there: the field's other words for it, or the nearest spelling."""

from collections.abc import Iterable

from robustkit.words.meant import MEANT


def nearest(given: str, known: Iterable[str], most: int = 2) -> list[str]:
    """The names that somebody who wrote `given` may have meant, the likeliest first; at most `most`, maybe none."""
    names = sorted(known)
    bare = _bare(given)
    if same := [name for name in names if _bare(name) == bare and bare]:
        return same[:most]
    if (meant := MEANT.get(bare)) in names:
        return [str(meant)]
    allowed = max(1, (len(given) + 1) // 3)
    scored = []
    for name in names:
        apart = distance(given.lower(), name.lower())
        if apart <= allowed and apart < min(len(given), len(name)):
            scored.append((apart, -_shared(given.lower(), name.lower()), len(name), name))
        elif len(bare) > 2 and (bare in _bare(name) or (len(_bare(name)) > 3 and _bare(name) in bare)):
            scored.append((allowed + 1, -_shared(given.lower(), name.lower()), len(name), name))
    best = sorted(scored)[:most]
    return [name for *_, name in best]


def distance(a: str, b: str) -> int:
    """How many letters must be added, dropped, changed or swapped with their neighbour to turn one text into the other.

    Source: the restricted edit distance of Damerau 1964.
    """
    before: list[int] = []
    row = list(range(len(b) + 1))
    for i, one in enumerate(a, start=1):
        earlier, before, row = before, row, [i]
        for j, other in enumerate(b, start=1):
            best = min(before[j] + 1, row[j - 1] + 1, before[j - 1] + (one != other))
            if i > 1 and j > 1 and one == b[j - 2] and a[i - 2] == other:
                best = min(best, earlier[j - 2] + 1)
            row.append(best)
    return row[-1]


def _bare(text: str) -> str:
    return "".join(char for char in text.lower() if char.isalnum())


def _shared(a: str, b: str) -> int:
    """How many letters both begin with."""
    return next(
        (place for place, pair in enumerate(zip(a, b, strict=False)) if pair[0] != pair[1]), min(len(a), len(b))
    )
