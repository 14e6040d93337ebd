"""Compare the results in two stores, key by key: does a rebuild compute what was computed before?

    python tools/compare_stores.py BEFORE AFTER

Keys are those of the results without fingerprints of networks, images and references, and formats, which may differ.
Prints a line for each kind of result; ends with an error if one differs or is missing.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from safetensors.numpy import load_file

from pure_nb.parameters import renamed

COLUMNS = {
    "weights": "bootstrap_counts",
    "replicas": "bootstrap_sums",
    "clarity": "silhouette_gain",
    "said": "label",
    "kept": "retained",
}
"""Arrays and columns that were called otherwise before 0.1.0."""
WORDS = (
    ("ceiling: ", "oracle: "),
    ("PURE gradient", "PURE"),
    ("contestants", "virtual"),
    ("by_means", "kmeans"),
    ("by_mixture", "gaussian_mixture"),
    ("by_spectrum", "spectral"),
    ("by_density", "hdbscan"),
    ("by_factors", "nmf"),
)
"""What stands for methods in keys and tables, before and after: names, then the module and functions of clusterers."""
IGNORED = {"weights", "images", "references", "format", "how", "embedder", "study", "world", "task"}


def results(store: Path) -> dict[str, list[Path]]:
    """The files of a store, by what they are: of several networks or images there may be several."""
    found: dict[str, list[Path]] = defaultdict(list)
    for manifest in store.rglob("*.json"):
        told = json.loads(manifest.read_text(encoding="utf-8"))
        if isinstance(told, dict) and {"file", "key", "seal"} <= set(told):
            key = {renamed(name, value): value for name, value in told["key"].items() if name not in IGNORED}
            if isinstance(key.get("parameters"), dict):
                key["parameters"] = {renamed(name, value): value for name, value in key["parameters"].items()}
                key["parameters"].setdefault("allow_nondeterministic", False)
            file = manifest.with_name(told["file"])
            folder = file.parent.relative_to(store).parts[:1]
            told_of = json.dumps([*folder, file.name.partition("-")[0], key], sort_keys=True)
            for old, new in WORDS:
                told_of = told_of.replace(old, new)
            told_of = re.sub(r"pure_nb\.[\w.]*?(\w+)(?=\")", r"\1", told_of)  # modules may have moved
            found[json.dumps(json.loads(told_of), sort_keys=True)].append(file)
    return found


def arrays(file: Path) -> dict[str, Any]:
    """What is in a file."""
    if file.suffix == ".npy":
        return {"array": np.load(file, mmap_mode="r", allow_pickle=False)}
    if file.suffix == ".parquet":
        table = pd.read_parquet(file).drop(columns="seconds", errors="ignore")
        return dict(table.replace(dict(WORDS[:2]), regex=True).rename(columns=COLUMNS).items())
    return {COLUMNS.get(name, name): values for name, values in load_file(file).items()}


def difference(first: Path, second: Path) -> str:
    """How two files differ; "" if they hold the same, to the bit."""
    one, other = arrays(first), arrays(second)
    if one.keys() != other.keys():
        return f"{sorted(one)} and {sorted(other)}"
    for name, values in one.items():
        if isinstance(values, pd.Series) and values.dtype == object:
            if [str(one) for one in values] != [str(one) for one in other[name]]:
                return name
            continue
        a, b = np.asarray(values), np.asarray(other[name])
        if a.shape != b.shape or a.dtype != b.dtype:
            return f"{name}: {a.dtype} {a.shape} and {b.dtype} {b.shape}"
        if not np.array_equal(a, b, equal_nan=a.dtype.kind == "f"):
            return f"{name}: {np.mean(a != b):.2%} of the values" if a.size else name
    return ""


def main() -> int:
    """Compare."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("before", type=Path)
    parser.add_argument("after", type=Path)
    asked = parser.parse_args()
    before, after = results(asked.before), results(asked.after)
    same: dict[str, int] = defaultdict(int)
    wrong = [f"missing: {key}" for key in sorted(before.keys() - after.keys())]
    for key in sorted(before.keys() & after.keys()):
        for file in before[key]:
            differences = [difference(file, one) for one in after[key]]
            if "" in differences:
                same[json.loads(key)[-2]] += 1
            else:
                wrong.append(f"differs: {key}: {differences[0]}")
    for kind, count in sorted(same.items()):
        print(f"{kind:<14}{count:>4} equal to the bit")
    print(*wrong, sep="\n", end="\n" if wrong else "")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
