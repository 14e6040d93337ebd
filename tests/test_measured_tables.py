"""What the chapters tell of measurements is what lies in benchmarks/results: pages must not need that folder to run."""

import json
from collections.abc import Sequence
from pathlib import Path

import pandas as pd
import pytest

ROOT = Path(__file__).parents[1]
SCORES = ["ari", "ari_dominant", "ami", "accuracy", "difference", "p"]
JUDGED = ["PURE", "PURE at maximum", "PURE close", "PURE close, shortcuts open", "activation", "activation at maximum"]
JUDGED += ["lower activation"]
IMAGENET = [*JUDGED, "combined"]
SPARSE, LAST = ["SAE BatchTopK, 4x, k=8", "SAE top-k, 4x, k=8"], ["random", "oracle: PURE"]
SHORTCUTS = ["PURE", "PURE close, shortcuts open", "maximum, nearest (PURE close)"]
SHORTCUTS += ["oracle: PURE", "oracle: PURE close"]


def measured(name: str, **options: object) -> pd.DataFrame:
    return pd.read_csv(ROOT / "benchmarks" / "results" / f"{name}.csv", **options)  # type: ignore[call-overload]


def number(value: object, digits: int = 2) -> str:
    if not isinstance(value, float):
        return f"{value:,}" if isinstance(value, int) and value >= 10_000 else str(value)
    shown = f"{value:.{digits}f}"
    return "" if pd.isna(value) else shown.removeprefix("-") if float(shown) == 0 else shown


def chance(value: float) -> str:
    return "< 0.001" if value < 0.001 else number(value, 3)


def written(table: pd.DataFrame, digits: int = 2) -> pd.DataFrame:
    """A table as text: numbers rounded, empty where there are none."""
    text = {column: [number(value, digits) for value in table[column]] for column in table.columns}
    return pd.DataFrame(text | ({"p": [chance(value) for value in table["p"]]} if "p" in table else {}))


def markdown(table: pd.DataFrame, digits: int = 2) -> str:
    sides = ["---" if isinstance(table[column].iloc[0], str) else "---:" for column in table.columns]
    rows = [list(table.columns), sides, *written(table, digits).to_numpy().tolist()]
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def board(name: str, methods: Sequence[str], columns: Sequence[str]) -> str:
    return markdown(measured(name, index_col="method").loc[list(methods), list(columns)].reset_index())


HEAPS = {"one heap": "the test", "entries shuffled": "shuffles alone"}
FAULTS = {"trials": "number", "times": "runs"}
"""What the columns are called in the chapter: 240 kills are no trials, but were spread over 90 runs."""


def recipes(rows: Sequence[str] | None = None) -> str:
    table = measured("recipes", index_col="recipe")
    table.columns = ["objects", "planted", "L3", "similar", "k\u00a0=\u00a03", "L2", "L3.0", "conv", "mean"]
    single = [name for name in table.index if not name.startswith(("PURE close", "oracle", "maximum"))]
    return markdown(table.loc[list(rows or single)].reset_index())


def imagenet() -> pd.DataFrame:
    layers = {layer: measured(f"bench-imagenet-{layer}", index_col="method") for layer in ("layer2", "layer4")}
    return pd.concat(layers, names=["layer"]).reset_index()


def drawn_bars() -> str:
    table = imagenet()
    table = table[table["method"].isin([*IMAGENET, "random", "oracle: PURE"])]
    table = table.set_index("method").loc[[*IMAGENET, "random", "oracle: PURE"]].reset_index()
    table["method"] = table["method"].str.replace(",", ";")
    columns = ["layer", "method", "ari", "low", "high"]
    return written(table.sort_values("layer", kind="stable")[columns]).to_csv(index=False)


def judged() -> str:
    table = imagenet().set_index("method").loc[[*IMAGENET, SPARSE[1]]].reset_index().sort_values("layer", kind="stable")
    return markdown(table[["layer", "method", "ari", "low", "high", "ari_dominant", "correlation", "difference", "p"]])


def drawn_scaling() -> str:
    table = measured("scaling")
    table["value"] = [row[row["varied"]] for _, row in table.iterrows()]
    keys = ["varied", "value"]
    found = table.pivot_table(index=keys, columns="step", values="seconds", sort=False)
    found["MiB"] = table.groupby(keys, sort=False)["peak MiB"].max()
    return found.reset_index()[[*keys, "sweep", "circuits", "crops", "MiB"]].to_csv(index=False, float_format="%.4g")


def steps() -> str:
    columns = ["step", "per", "pairs/image", "goal", "ours", "limit", "peer", "peer/ours", "limit GFLOP"]
    return markdown(measured("table")[columns])


def rounding() -> str:
    columns = ["variant", "references", "circuits", "parts", "sweep", "circuits, time"]
    return markdown(measured("precision")[columns].astype(dict.fromkeys(columns[1:], float)), 3)


def one_heaps() -> str:
    table = measured("null").pivot_table(index="heap", columns="test", values="0.05", sort=False)
    return markdown(
        table.rename_axis(columns=None)[["one heap", "entries shuffled"]].reset_index().rename(columns=HEAPS), 3
    )


def detection() -> str:
    table = measured("null-detection").rename(columns={"planted called": "found", "single called": "false"})
    shuffled = {"auc shuffled": "auc, shuffled", "planted called shuffled": "found, shuffled"}
    shuffled["single called shuffled"] = "false, shuffled"
    columns = ["task", "auc", "found", "false", *shuffled, "low", "high"]
    return markdown(table[columns].rename(columns=shuffled))


def networks() -> str:
    table = measured("networks", keep_default_na=False)
    columns = ["network", "library", "target", "lower", "conserved", "boxes"]
    return markdown(table.loc[table["references"] == "yes", columns])


def refused_names() -> str:
    table = measured("networks", keep_default_na=False)
    return markdown(table.loc[table["references"] != "yes", ["network", "library", "target", "references"]])


def networks_in_short() -> str:
    """The sentence above the table: how many there are, what holds in all of them, and by which versions."""
    table = measured("networks", keep_default_na=False)
    found, counts = table[table["references"] == "yes"], table.drop_duplicates(["network", "library"])["library"]
    assert (found[["circuits", "virtual neurons"]] == "yes").all(axis=None)
    assert ((found["pictures"] == "relevance") == (found["LRP"] == "yes")).all()
    made = json.loads((ROOT / "benchmarks" / "results" / "networks.json").read_text(encoding="utf-8"))
    own = [f"{(counts == library).sum()} {name}" for library, name in LIBRARIES.items()]
    kept, placed = found["conserved"], found["boxes"]
    asked = placed.str.startswith(("yes", "no:"))
    versions = ", ".join(f"{name} {number}" for name, number in made.items() if name != "made")
    without = found[found["LRP"] != "yes"]
    ruled = len(found) - len(without)
    why = " and ".join(f"{name} ({why.removeprefix('no: ')})" for name, why in zip(without["network"], without["LRP"]))
    whole, rules, right = (kept == "yes").sum(), kept.str.startswith("but").sum(), placed.str.startswith("yes").sum()
    return (
        f"{len(counts)} networks ({', '.join(own)}) at {len(found)} pairs of layers, on {made['made']},\n"
        f"with {versions}.\n"
        f"References, circuits and virtual neurons work in all of them, LRP and crops by it in {ruled}.\n"
        f"LRP refuses {why}.\n"
        f"Relevance is conserved to 1e-4 in {whole}, and in {rules} but for what the rules themselves let go. Where\n"
        f"there is a grid to tell by, a bright patch is where the heatmap says it is in {right} of {asked.sum()}.\n"
    )


LIBRARIES = {
    "torchvision": "of torchvision",
    "timm": "of timm",
    "open_clip": "of open_clip",
    "transformers": "of Hugging Face",
    "torch": "of our own",
}


def many_machines() -> str:
    columns = ["images", "cores", "hours", "of which references", "read, TB", "dollars"]
    return markdown(measured("cluster-costs")[columns])


def simulated() -> str:
    columns = ["workers", "tasks", "sleep", "scheduler", "client", "worker", "predicted", "wall"]
    table = measured("cluster-simulated")
    return markdown(table.assign(**{own: 1000 * table[own] for own in columns[3:6]})[columns], 1)


def local_workers() -> str:
    table = measured("cluster-local").dropna()
    return markdown(table[["step", "workers", "predicted wall", "wall", "wall/predicted", "busiest/predicted"]])


LARGE = "ImageNet ResNet-50"


def tried() -> pd.DataFrame:
    """What scores say of planted channels, of those with enough answers to say anything."""
    table = measured("trial").query("kind != 'natural' and n >= 20").dropna(subset="auc")
    table["cell"] = [f"{row.auc:.2f} ({row.low:.2f} to {row.high:.2f})" for row in table.itertuples()]
    return table


def wide(table: pd.DataFrame, columns: str) -> str:
    """A row for each score and judge, the best in the large network first."""
    large = table[table["network"] == LARGE].groupby(["score", "judge"])["auc"].mean()
    order = large.sort_values(ascending=False, kind="stable").index
    rows = [*order, *sorted(set(zip(table["score"], table["judge"])) - set(order))]
    found = table.pivot(index=["score", "judge"], columns=columns, values="cell").loc[rows].fillna("")
    return markdown(found.reset_index().rename_axis(columns=None))


def trials() -> str:
    """Scores against two sources of one strength, drawn at random: a column for each network."""
    return wide(tried().query("kind == 'random' and sources == 2"), "network")


def kinds() -> str:
    """Scores in the large network: a column for each kind of merged channels."""
    table = tried().query(f"network == '{LARGE}'")
    table["kind"] = [f"{row.kind}, {row.sources} sources" for row in table.itertuples()]
    return wide(table, "kind")


def autoencoders() -> str:
    """The two questions to sparse autoencoders; of other contestants the best part takes the place of a feature."""
    table = measured("dictionaries").dropna(subset="ari")
    best = table["feature_f1"].fillna(table["part_f1"])
    ari = [f"{row.ari:.2f} ({row.low:.2f} to {row.high:.2f})" for row in table.itertuples()]
    seconds = [f"{own:.0f}" for own in table["seconds"]]
    found = {"world": table["world"], "method": table["who"], "ari": ari, "best F1": best, "seconds": seconds}
    return markdown(pd.DataFrame(found))


def widths() -> str:
    table = measured("widths")
    table["cell"] = [
        f"{row.value:.2f}" + (f" ({row.low:.2f} to {row.high:.2f})" if row.low == row.low else "")
        for row in table.itertuples()
    ]
    some = ["objects named", "objects", "polysemantic", "clarity", *(f"rank correlation, {own}" for own in RANKED)]
    some += [f"ARI, {task}: {own}" for task in ("objects", "planted, k = 2, random") for own in WIDE]
    found = table.pivot(index="measure", columns="width", values="cell").loc[some]
    return markdown(found.rename(columns=str).reset_index().rename_axis(columns=None))


RANKED = ["score by circuits", "clarity by mini-DINO"]
WIDE = ["PURE", "activation at maximum", "oracle: PURE"]


def faithful() -> str:
    """What is lost without parts and channels: by the class's own images and by others."""
    table = measured("faithfulness").query("study == 'glyphs' and way == 'off' and ablation != 'resample'")
    rows = []
    for key, own in table[table["units"].isin(["1", "4"])].groupby(["target", "units", "ablation"], sort=False):
        of = own.set_index("unit")
        cells = {kind: f"{of.own[kind]:.2f}, {of.others[kind]:.3f}" for kind in ("parts", "channels", "shuffled parts")}
        gain = [number(float(of[f"gain{end}"]["channels"])) for end in ("", "_low", "_high")]
        keys = dict(zip(("layer", "units", "ablation"), key))
        rows.append(keys | cells | {"parts less channels": f"{gain[0]} ({gain[1]} to {gain[2]})"})
    return markdown(pd.DataFrame(rows))


def weighed() -> str:
    """Several descriptions at once in every planted world, and what they are weighed by."""
    found = {name: own.set_index("world") for name, own in measured("combined").groupby("method")}
    ours = found["combined"]
    table = pd.DataFrame({name: found[name]["ari"] for name in ("PURE", "plain sum", "combined")}).loc[ours.index]
    limits = ours.apply(lambda row: f"{number(row.difference_low)} to {number(row.difference_high)}", axis=1)
    table = table.assign(gain=ours["difference"], interval=limits, p=ours["p"], weights=ours["weights"])
    return markdown(table.drop("glyphs, objects").reset_index())


def learnt() -> str:
    """Worlds whose truth was made by training."""
    tables = {name: measured(f"bench-{name}", index_col="method")["ari"] for name in ("either", "wired")}
    return markdown(pd.DataFrame(tables).sort_values(["wired", "either"], ascending=False).reset_index())


ANSWERS = {"PURE": "PURE", "combined": "several descriptions", "activation at maximum": "activation at maximum"}
ANSWERS |= {
    "SAE BatchTopK, 4x, k=8": "sparse autoencoder of the layer, BatchTopK",
    "SAE top-k, 4x, k=8": "the same, top-k",
    "lower SAE top-k, 4x, k=8": "of the layer below",
}
ANSWERS |= {"oracle: PURE": "(oracle, on PURE's vectors)"}


def sure(row: pd.Series) -> str:
    """A number with its interval."""
    return f"{row['value']:.2f} ({row['low']:.2f} to {row['high']:.2f})"


def standing() -> str:
    """Where the field's answers stand among planted channels."""
    worlds = {
        "ResNet-50, `layer4`": "imagenet-layer4",
        "`layer2`": "imagenet-layer2",
        "CIFAR ResNet-20": "cifar-layer3",
    }
    found = pd.DataFrame({"method": list(ANSWERS.values())})
    for world, name in worlds.items():
        table = measured(f"bench-{name}", index_col="method").rename(columns={"ari": "value"})
        found[world] = [sure(table.loc[one]) if one in table.index else "not run" for one in ANSWERS]
    return markdown(found)


def detected() -> str:
    """Which scores tell two sources from one."""
    table = tried().query("kind == 'random' and sources == 2").rename(columns={"auc": "value"})
    asked = {
        "silhouette gain of circuits": ("silhouette_gain", "circuits"),
        "clarity by mini-DINO": ("clarity", "mini-DINO"),
    }
    asked |= {"MS by mini-DINO": ("ms", "mini-DINO"), "class purity": ("class_purity", "labels")}
    found = pd.DataFrame({"score": list(asked)})
    for network in (LARGE, "CIFAR ResNet-20", "glyphs"):
        own = table[table["network"] == network].set_index(["score", "judge"])
        found[network] = [sure(own.loc[one]) if one in own.index else "not defined" for one in asked.values()]
    return markdown(found)


def room() -> str:
    """What width does to the number of meanings."""
    table = measured("widths").set_index(["measure", "width"])
    some = {"objects a channel": "objects", "called polysemantic, p at most 0.05": "polysemantic"}
    found = pd.DataFrame({"": list(some)})
    for width in (16, 32, 64, 128):
        found[f"{width} channels"] = [sure(table.loc[own, width]) for own in some.values()]
    return markdown(found)


def drawn_widths() -> str:
    table = measured("widths").query("measure == 'objects'").rename(columns={"value": "objects"})
    table["named"] = measured("widths").query("measure == 'objects named'")["value"].to_numpy()
    return written(table[["width", "objects", "low", "high", "named"]]).to_csv(index=False)


def evaluated() -> pd.DataFrame:
    return measured("evaluation-imagenet")


def large_judged() -> str:
    """The paper's first evaluation of a large network, in three parts, with the second beside it."""
    own = evaluated().query("k == 3")
    found = own[["method", "intra", "inter"]].assign(
        gap=[f"{number(row.gap)} ± {row.gap_se:.2f}" for row in own.itertuples()],
        p=own["p"],
        correlation=[
            "" if pd.isna(row.pearson) else f"{row.pearson:.2f} ({row.low:.2f} to {row.high:.2f})"
            for row in own.itertuples()
        ],
    )
    return markdown(found)


def large_gaps() -> str:
    """The gaps by the number of parts, as a share of the mean distance of all pairs."""
    table = evaluated()
    table["share"] = 100 * table["gap"] / table["overall"]
    found = table.pivot(index="method", columns="k", values="share").loc[evaluated().query("k == 3")["method"]]
    return markdown(found.rename(columns=lambda k: f"k\u00a0=\u00a0{k}").reset_index().rename_axis(columns=None), 1)


TABLES = {
    "published: a large network": ("published", large_judged()),
    "published: its gaps": ("published", large_gaps()),
    "widths, drawn": ("why", drawn_widths()),
    "what is known: found": ("what-is-known", standing()),
    "what is known: detected": ("what-is-known", detected()),
    "what is known: room": ("what-is-known", room()),
    "recipes": ("bench", recipes()),
    "recipes, shortcuts": (
        "bench",
        recipes(SHORTCUTS),
    ),
    "ImageNet, drawn": ("bench", drawn_bars()),
    "ImageNet": ("bench", judged()),
    "CIFAR": (
        "bench",
        board("bench-cifar-layer3", [*SPARSE, "combined", *JUDGED[4:6], "PURE", "PURE close", *LAST], SCORES),
    ),
    "false alarms": ("virtual-neurons", one_heaps()),
    "planted or single": ("scores", detection()),
    "weights": (
        "bench",
        board(
            "bench-glyphs-conv2",
            ["PURE", "split by PURE's parts", "split by classes", "random"],
            ["ari", "difference", "p", "accuracy", "f1"],
        ),
    ),
    "steps": ("scale", steps()),
    "many machines": ("scale", many_machines()),
    "simulated workers": ("scale", simulated()),
    "local workers": ("scale", local_workers()),
    "scaling, drawn": ("scale", drawn_scaling()),
    "precision": ("scale", rounding()),
    "faults": ("scale", markdown(measured("faults")[["fault", "trials", "outcome", "times"]].rename(columns=FAULTS))),
    "networks": ("scale", networks()),
    "networks in short": ("scale", networks_in_short()),
    "networks refused": ("scale", refused_names()),
}
TABLES |= {
    "scores on trial": ("scores", trials()),
    "kinds of channels": ("scores", kinds()),
    "widths": ("scores", widths()),
    "autoencoders": ("bench", autoencoders()),
    "several descriptions": ("combined", weighed()),
    "trained truths": ("bench", learnt()),
    "faithfulness": ("reasons", faithful()),
}


@pytest.mark.parametrize("name", TABLES)
def test_a_chapter_tells_what_was_measured(name: str) -> None:
    chapter, expected = TABLES[name]
    text = (ROOT / "book" / f"{chapter}.md").read_text(encoding="utf-8")
    assert expected.strip() in text, f"book/{chapter}.md should have this table:\n{expected}"


def test_the_readme_tells_what_was_measured() -> None:
    """Its findings, with their intervals."""
    text = " ".join((ROOT / "README.md").read_text(encoding="utf-8").split())
    boards = {name: measured(f"bench-{name}", index_col="method") for name in ("imagenet-layer2", "imagenet-layer4")}
    cifar, width = (
        measured("bench-cifar-layer3", index_col="method"),
        measured("widths").set_index(["measure", "width"]),
    )
    told = [sure(board.rename(columns={"ari": "value"}).loc["PURE"]) for board in boards.values()]
    told += [sure(cifar.rename(columns={"ari": "value"}).loc[name]) for name in ("PURE", "SAE BatchTopK, 4x, k=8")]
    told += [sure(width.loc["objects", number]) for number in (16, 128)]
    asked = tried().query(f"network == '{LARGE}' and kind == 'random' and sources == 2").set_index("score")
    told.append(sure(asked.rename(columns={"auc": "value"}).loc["silhouette_gain"]))
    judges = asked[~asked["judge"].isin(["circuits", "labels"])]["auc"]
    told.append(f"{judges.min():.2f} to {judges.max():.2f}")
    steps = measured("table", index_col="step")["peer/ours"]
    told.append(f"{steps.loc['references']:.0f} times that")
    told.append(
        f"{steps.loc['circuits, 50,000 images']:.1f} to {steps.loc['circuits, 5,000 images']:.1f} times as long"
    )
    assert [one for one in told if one not in text] == []
