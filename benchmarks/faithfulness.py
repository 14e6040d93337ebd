"""Do explanations by parts predict the network better than those by channels, at the same number of units?

    python benchmarks/faithfulness.py --target layer4 --lower layer3 --threads 1 --clock cpu
    python benchmarks/faithfulness.py --target layer3 --lower layer2 --threads 1 --clock cpu
    python benchmarks/faithfulness.py --study imagenet-resnet50 --data FOLDER --weights FILE --images FOLDER

For each class the parts that carry it over half of its images are switched off, and on alone, in the other half, and in
images of other classes; against whole channels by the same relevance, and random units. The last needs photographs of
ImageNet's classes to find references in, and others of some of these classes, in folders named by WordNet ids, to
check on. A row for each number of units, ablation, way and unit: ``Faithfulness.table``; where ``units`` is ``area``,
by the mean height of the curves.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from common import arguments, clock_of, report, start

from pure_nb import load_study


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--study", default="glyphs", help="a study that ships")
    parser.add_argument("--target", default="layer4")
    parser.add_argument("--lower", default="layer3")
    parser.add_argument("--k", type=int, default=0, help="parts of each channel; 0: chosen")
    parser.add_argument("--n", type=int, help="references of each channel")
    parser.add_argument("--data", type=Path, help="folder of the study's images")
    parser.add_argument("--weights", type=Path, help="file of its weights")
    parser.add_argument("--images", type=Path, help="folder of labelled images to check on; else the study's")
    parser.add_argument("--each", type=int, default=16, help="images of each class, half of which choose its units")
    parser.add_argument("--others", type=int, default=24, help="images of other classes")
    args = start(parser)
    how: dict[str, Any] = {"target": args.target, "lower": args.lower, "n_clusters": args.k, "progress": False}
    if args.n:
        how["n_references"] = args.n
    study = load_study(args.study, data=args.data, weights=args.weights, **how)
    clock = clock_of(args)
    begin = clock()
    found = study.classes.faithfulness(images=args.images, each=args.each, others=args.others)
    seconds = clock() - begin
    same = {"study": args.study, "target": args.target, "lower": args.lower, "k": args.k}
    same |= {"classes": len(found.images), "parts a class": found.images["parts"].mean()}
    same |= {f"images {name}": int(found.images[name].sum()) for name in ("chose", "own", "others")}
    same |= {"seconds": seconds}
    rows = []
    for units in (None, 1, 2, 4, 8, 16):
        table = found.table(units).to_dict("records")
        rows += [same | {"units": units or "area"} | {str(name): value for name, value in row.items()} for row in table]
    report(rows, args)


if __name__ == "__main__":
    main()
