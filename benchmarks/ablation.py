"""Ablation without a judge: how selective is it to switch a part off, and how near does it come to what is right?

    python benchmarks/ablation.py --threads 1 --out benchmarks/results/ablation.csv

Not a timing. *natural*: part A of the most polysemantic neurons of the shipped network, in images beyond the
references: selectivity by what is switched off and who tells which images are the part's, means over neurons with 95 %
intervals; and swapped patches, the share of swaps after which the channel is in the other part. *planted*: channels
merged from two; how far a part switched off is from its source switched off (0 is right, 1 no better than nothing),
means over channels. *score*: the AUC of selectivity between halves, of planted against self-merged channels.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pandas as pd
from common import arguments, report, start
from torch.utils.data import Subset

from pure_nb import Study, load_study
from pure_nb.benchmark.causal import MEASURES, board, compare_ablations, split_selectivity
from pure_nb.benchmark.contestants import PEAK, Contestant, circuits_of
from pure_nb.benchmark.tasks import Task, planted_task
from pure_nb.benchmark.trial import board as score_board
from pure_nb.methods.descriptions import PURE
from pure_nb.methods.statistics import interval
from pure_nb.swapping import swap_patches


def natural(study: Study, count: int) -> list[dict[str, Any]]:
    """Selectivity of part A, and swaps of patches, over the first neurons of a study."""
    tables, swapped = [], []
    for channel in study.most_polysemantic(count):
        table = study.ablate(channel).table()
        lower = [off for off in dict.fromkeys(table["off"]) if off.startswith("lower channel")]
        names = dict(zip(lower, ["strongest lower channel", "lower channel most its own"]))
        tables.append(table.replace({"off": names}))
        if len(lower) == 1:  # one channel is both
            tables.append(table[table["off"] == lower[0]].assign(off="lower channel most its own"))
        swapped.append(swap_patches(study, channel, "A", "B").assign(channel=channel))
        print(f"channel {channel}\n{table}\n{swapped[-1]}", flush=True)
    rows = []
    for (off, judge), own in pd.concat(tables).groupby(["off", "told_by"], sort=False):
        values = own["selectivity"].dropna()
        low, high = interval(values)
        row = {"world": study.name, "of": "natural", "what": off, "measure": f"selectivity, {judge}"}
        rows.append(row | {"mean": values.mean(), "low": low, "high": high, "channels": len(values)})
    for kind, own in pd.concat(swapped).groupby("patch", sort=False):
        low, high = interval(own["follows"])
        row = {"world": study.name, "of": "natural", "what": kind, "measure": "swaps that follow"}
        rows.append(row | {"mean": own["follows"].mean(), "low": low, "high": high, "channels": len(own)})
    return rows


def planted(task: Task, world: str) -> list[dict[str, Any]]:
    """Errors and selectivity by method, means over channels."""
    ways = [
        Contestant(PURE, circuits_of(rule="gradient", start="activation")),
        Contestant(PEAK, circuits_of(rule="gradient", start="peak")),
    ]
    table, rows = compare_ablations(task, ways), []
    for measure in MEASURES:
        for one in board(table, measure).to_dict("records"):
            row = {"world": world, "of": "planted", "what": one["method"], "measure": measure}
            rows.append(row | {name: one[name] for name in ("mean", "low", "high")})
            rows[-1]["channels"] = table["channel"].nunique()
    return rows


def score(task: Task, world: str) -> list[dict[str, Any]]:
    """How well selectivity between halves tells planted from self-merged channels."""
    assert task.planting is not None
    used = (task.k > 1) | task.planting.self_merged
    table = pd.DataFrame({"score": "selectivity", "judge": "own", "value": split_selectivity(task), "k": task.k})[used]
    (one,) = score_board(table).to_dict("records")
    row = {"world": world, "of": "score", "what": "selectivity between halves", "measure": "AUC", "mean": one["auc"]}
    return [row | {"low": one["low"], "high": one["high"], "channels": int(used.sum())}]


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--study", default="glyphs", help="a study that ships, or a .toml file")
    parser.add_argument("--data", help="folder of its images")
    parser.add_argument("--weights", help="file of its weights")
    parser.add_argument("--neurons", type=int, default=8, help="natural neurons; 0 leaves them out")
    parser.add_argument("--planted", type=int, default=16, help="planted channels, and as many merged with themselves")
    parser.add_argument("--n", type=int, default=50, help="references of planted channels")
    parser.add_argument("--images", type=int, help="only the first so many images, for planted channels")
    args = start(parser)
    study = load_study(args.study, data=args.data, weights=args.weights, progress=False)
    rows = natural(study, args.neurons) if args.neurons else []
    if args.planted:
        some = Subset(study.images.dataset, range(min(args.images or len(study.images), len(study.images))))
        base = study.replace(n_references=args.n, images=replace(study.images, dataset=some))
        task = planted_task(base, args.planted, self_merged=args.planted)
        rows += planted(task, study.name)
        print(pd.DataFrame(rows).to_string(), flush=True)
        rows += score(task, study.name)
    report(rows, args)


if __name__ == "__main__":
    main()
