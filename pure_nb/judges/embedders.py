"""Embedders: networks that were trained for something else, and say how alike two pictures are.

Each turns pictures into vectors: CLIP through open_clip, DINOv2 and anything else through timm, any torch network up to
its last layer, raw pixels as the null, or a function of your own. Those with a text tower turn words into vectors as
well. Two small ones ship with the package, trained on the glyph world, so that the book needs no download.
"""

from __future__ import annotations

import json
import logging
import re
import socket
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from importlib import import_module, resources
from pathlib import Path
from pickle import UnpicklingError
from typing import Any, Literal
from urllib.error import URLError

import torch
from safetensors import SafetensorError
from torch import Tensor

from pure_nb._imports import needed
from pure_nb.errors import EmbedderError, ModelError, require_choice
from pure_nb.judges.vectors import Embedder as Embedder
from pure_nb.judges.vectors import encoder, fingerprint, from_network, pixels
from pure_nb.network import models
from pure_nb.network.layers import flatten_positions
from pure_nb.parameters import Run

Features = Literal["tokens", "pooled"]

PROMPTS = ("a photo of a {}.", "a cropped photo of a {}.", "a picture of a {}.")
"""What CLIP is asked; the vectors of the three are averaged, as in the paper of CLIP."""

SPECS = (
    "mini-clip, mini-dino, pixels, clip, dinov2, open_clip:MODEL/TAG, timm:NAME, torchvision:NAME or FILE.py:FUNCTION, "
    "each but the first three with @FILE for local weights"
)

BUNDLED = ("hf-hub:", "local-dir:")
"""How the names begin of models that have their weights with them."""


def clip(
    model: str = "ViT-B-32-quickgelu",
    pretrained: str | Path | None = "openai",
    *,
    features: Features = "tokens",
    run: Run = Run(),
    name: str = "CLIP",
    prompts: tuple[str, ...] = PROMPTS,
    tokenizer: Callable[[list[str]], Tensor] | None = None,
) -> Embedder:
    """CLIP, or any other model of open_clip.

    Parameters
    ----------
    model
        Of open_clip; the default is the one of Dreyer et al. (2024), OpenAI's ViT-B/32. Also ``hf-hub:ORG/NAME`` and
        ``local-dir:FOLDER``, which have their weights with them.
    pretrained
        A tag of open_clip, fetched from its hub, or a file of weights.
    features
        ``"tokens"``: mean over all tokens of the last hidden state, as the paper; ``"pooled"``: the vector that CLIP
        compares with text.
    run
        Where it runs: on its local device.
    name, prompts
        See :class:`Embedder`.
    tokenizer
        From texts to numbers; open_clip's for the model by default.

    Raises
    ------
    EmbedderError
        If the model is not known, or its weights can't be fetched or do not fit.
    """
    _check_features(features)
    network, prepare, read = open_clip_model(model, pretrained, tokenizer, run)

    def tokens(images: Tensor) -> Tensor:
        found = network.visual.forward_intermediates(
            images, indices=1, normalize_intermediates=False, intermediates_only=True, output_extra_tokens=True
        )
        grid = flatten_positions(found["image_intermediates"][-1])
        first = found.get("image_intermediates_prefix")
        every = [grid] if not first else [first[-1].transpose(1, 2), grid]
        return torch.cat(every, dim=2).mean(dim=2)

    @torch.inference_mode()
    def encode_text(texts: list[str]) -> Tensor:
        network.to(run.local_device)  # where it is not yet, on a worker
        found: Tensor = network.encode_text(read(texts).to(run.local_device))
        return found

    joint = encoder(network.encode_image, prepare, run, network)
    encode = joint if features == "pooled" else encoder(tokens, prepare, run, network)
    shown = name if features == "tokens" else f"{name} pooled"
    return Embedder(shown, fingerprint(network, prepare, features), encode, encode_text, joint, prompts)


def open_clip_model(
    model: str,
    pretrained: str | Path | None,
    tokenizer: Callable[[list[str]], Tensor] | None = None,
    run: Run = Run(),
) -> tuple[Any, Any, Callable[[list[str]], Tensor]]:
    """A model of open_clip at rest, what it needs done to pictures, and what it needs done to texts.

    Parameters
    ----------
    model, pretrained, tokenizer, run
        As for :func:`clip`.
    """
    library = _open_clip()
    own = model.startswith(BUNDLED)
    with _explained(f"open_clip:{model}" if own else f"open_clip:{model}/{pretrained}", _clip_file(model, pretrained)):
        network, prepare = library.create_model_from_pretrained(
            model, pretrained=None if own else str(pretrained), device=run.local_device, weights_only=True
        )
        return network.eval(), prepare, tokenizer or library.get_tokenizer(model)


def from_timm(
    model: str = "vit_base_patch14_dinov2.lvd142m",
    weights: str | Path | None = None,
    *,
    features: Features = "tokens",
    run: Run = Run(),
    name: str | None = None,
    **options: Any,
) -> Embedder:
    """DINOv2, or any other model of timm.

    Parameters
    ----------
    model
        Of timm; the default is DINOv2's ViT-B/14 of Dreyer et al. (2024), at 224 pixels as there.
    weights
        A file, safetensors or a ``.pth`` of plain tensors; None fetches the published ones from the hub.
    features
        ``"tokens"``: mean over all tokens of the last hidden state, as the paper; of a network without tokens its
        pooled features. ``"pooled"``: what the network itself would hand to a classifier.
    run
        Where it runs: on its local device.
    name
        What to call it; the model's name by default.
    options
        Passed on to timm, such as ``img_size=224``.

    Raises
    ------
    EmbedderError
        If the model is not known, or its weights can't be fetched or do not fit.
    """
    _check_features(features)
    with needed("timm", f"{name or model} needs", EmbedderError):  # late: timm takes a second to import
        import timm
        from timm.data.config import resolve_data_config
        from timm.data.transforms_factory import create_transform
    if model.startswith("vit_base_patch14_dinov2") and "img_size" not in options:
        options["img_size"] = 224
    with _explained(f"timm:{model}", f"model.safetensors of timm/{model}"):
        if weights is not None:  # timm knows how to read others' names, and gets the tensors from a safe reader
            state = models.read_weights(weights)
            own = timm.get_pretrained_cfg(model)
            headless = not any(name.startswith(f"{own.classifier}.") for name in state) if own else True
            # As many classes as the file has, or timm would not mind what else is missing in it.
            classes = {"num_classes": 0} if headless else {}
            options |= {"pretrained_cfg_overlay": {"state_dict": state, **classes}, **classes}
        network: Any = timm.create_model(model, pretrained=True, **options)
        network.reset_classifier(0)
    network.to(run.local_device).eval()
    size = {"img_size": options["img_size"]} if "img_size" in options else {}
    config = resolve_data_config(size, model=network)  # type: ignore[no-untyped-call]
    # A crop is square and shows what it should: all of it is used.
    prepare = create_transform(**{**config, "crop_pct": 1.0, "is_training": False})

    def forward(images: Tensor) -> Tensor:
        hidden: Tensor = network.forward_features(images)
        if features == "tokens" and hidden.ndim == 3:
            return hidden.mean(dim=1)
        found: Tensor = network.forward_head(hidden, pre_logits=True)
        return found

    encode = encoder(forward, prepare, run, network)
    shown = (name or model) + ("" if features == "tokens" else " pooled")
    return Embedder(shown, fingerprint(network, prepare, features), encode)


class WordTokenizer:
    """Texts as rows of numbers, one for each word of a small vocabulary; articles and punctuation count for nothing.

    Parameters
    ----------
    words
        All that can be said.
    context_length
        Numbers in a row.
    """

    def __init__(self, words: Sequence[str], context_length: int) -> None:
        self.numbers = {word: 2 + place for place, word in enumerate(words)}  # 0 is padding, 1 the start
        self.end = 2 + len(words)  # the largest, since open_clip takes the features where the largest number is
        self.context_length = context_length

    def __call__(self, texts: Sequence[str]) -> Tensor:
        """int64 ``[texts, context_length]``.

        Raises
        ------
        EmbedderError
            If a word is not in the vocabulary, or a text is too long.
        """
        rows = torch.zeros(len(texts), self.context_length, dtype=torch.long)
        for row, text in zip(rows, texts):
            words = [word for word in re.findall(r"[a-z]+", text.lower()) if word not in ("a", "an")]
            unknown = [word for word in words if word not in self.numbers]
            if unknown:
                raise EmbedderError(
                    f"mini-CLIP does not know the word {unknown[0]!r} (in {text!r}); it knows "
                    f"{', '.join(self.numbers)}. Take CLIP for other words"
                )
            numbers = [1, *(self.numbers[word] for word in words), self.end]
            if len(numbers) > self.context_length:
                most = self.context_length - 2
                raise EmbedderError(f"{text!r} is too long for mini-CLIP: {len(words)} words, at most {most}")
            row[: len(numbers)] = torch.tensor(numbers)
        return rows


def mini_clip(features: Features = "tokens", run: Run = Run()) -> Embedder:
    """The small CLIP that ships, trained on the glyph world and its captions; see its model card beside the weights."""
    name, tokenizer = mini_clip_parts()
    how: dict[str, Any] = {"name": "mini-CLIP", "prompts": ("a {}",), "tokenizer": tokenizer}
    return replace(clip(name, None, features=features, run=run, **how), glyphs=True)


def mini_clip_parts() -> tuple[str, WordTokenizer]:
    """What open_clip calls the small CLIP that ships, and what reads its words."""
    folder = _asset("mini-clip")
    config = json.loads((folder / "open_clip_config.json").read_text(encoding="utf-8"))
    return f"local-dir:{folder}", WordTokenizer(config["words"], config["model_cfg"]["text_cfg"]["context_length"])


def mini_dino(features: Features = "tokens", run: Run = Run()) -> Embedder:
    """The small vision transformer that ships, trained on the glyph world without labels; see its model card."""
    made = from_timm(f"local-dir:{_asset('mini-dino')}", features=features, run=run, name="mini-DINO")
    return replace(made, glyphs=True)


def load_embedder(spec: str, *, features: Features = "tokens", run: Run = Run(), folder: Path = Path()) -> Embedder:
    """An embedder by its name, as the command line has it.

    Parameters
    ----------
    spec
        ``"mini-clip"``, ``"mini-dino"``, ``"pixels"``; ``"clip"`` and ``"dinov2"``, those of the paper;
        ``"open_clip:ViT-L-14/laion2b_s32b_b82k"``; ``"timm:NAME"``; ``"torchvision:NAME"``, the features that enter
        the last layer; or ``"my_file.py:my_function"``, see :meth:`Embedder.of`. ``@FILE`` takes weights from a file.
    features
        Of CLIP and of timm's; see :func:`clip` and :func:`from_timm`.
    run
        Where it runs: on its local device.
    folder
        What relative paths start from.

    Raises
    ------
    EmbedderError
        If the spec is not of these forms, or the embedder is not available.

    Examples
    --------
    >>> load_embedder("pixels").images(study.crops.of(3, [0, 1])).shape
    (2, 768)
    """
    kind, _, file = spec.partition("@")
    # A drive of Windows has a colon, too.
    source, _, name = kind.rpartition(":") if ".py:" in kind else kind.partition(":")
    weights = folder / file if file else None
    if weights is not None and not weights.is_file():
        raise EmbedderError(f"there is no file of weights {str(weights)!r}, named in {spec!r}")
    if weights is not None and name.startswith(BUNDLED):
        raise EmbedderError(f"{spec!r} names weights twice: {name!r} has its own; leave out @{file}")
    how: dict[str, Any] = {"features": features, "run": run}
    known: dict[str, Callable[[], Embedder]] = {
        "clip": lambda: clip(pretrained=weights or "openai", **how),
        "dinov2": lambda: from_timm(weights=weights, name="DINOv2", **how),
        "open_clip:NAME": lambda: _of_open_clip(name, weights, **how),
        "timm:NAME": lambda: from_timm(name, weights, **how),
        "torchvision:NAME": lambda: from_network(models.load_model(kind, weights), name=f"features of {name}", run=run),
        ".py:NAME": lambda: Embedder.of(name, models.function_in(folder / source, name)),
    }
    if weights is None:
        known |= {"mini-clip": lambda: mini_clip(**how), "mini-dino": lambda: mini_dino(**how), "pixels": pixels}
    make = known.get(f"{'.py' if source.endswith('.py') else source}:NAME" if name else kind)
    if make is None:
        raise EmbedderError(f"can't tell what embedder {spec!r} is; expected {SPECS}")
    try:
        return make()
    except ModelError as problem:
        raise EmbedderError(str(problem)) from problem


def _of_open_clip(name: str, weights: Path | None, **how: Any) -> Embedder:
    """A model of open_clip as ``MODEL/TAG``, or ``MODEL`` where there is a file of weights."""
    if name.startswith(BUNDLED):
        return clip(name, None, name=name, **how)
    model, _, tag = name.partition("/")
    if not tag and weights is None:
        tags = ", ".join(_open_clip().list_pretrained_tags_by_model(model)) or "none known"
        raise EmbedderError(f"'open_clip:{name}' names no weights: add /TAG (there are: {tags}) or @FILE")
    return clip(model, weights or tag, name=name, **how)


def _open_clip() -> Any:
    """The library, which takes a second to import, and which not everyone has."""
    with needed("clip", "CLIP needs", EmbedderError):
        return import_module("open_clip")


def _clip_file(model: str, pretrained: str | Path | None) -> str:
    """Where the weights of a tag are, for whoever has to fetch them by hand."""
    known = _open_clip().get_pretrained_cfg(model, str(pretrained)) if ":" not in model else {}
    repository = str(known.get("hf_hub") or model.partition(":")[2]).strip("/")
    # The hub's file, and not OpenAI's own, which is a program and would have to be run to be read.
    return f"open_clip_model.safetensors of {repository}"


@contextmanager
def _explained(spec: str, where: str) -> Iterator[None]:
    """Turn the many errors of libraries and hubs into one that helps."""
    with needed("timm", f"{spec} needs", EmbedderError):  # through which open_clip and timm fetch; late as they are
        from huggingface_hub import constants, errors

    offline = (errors.LocalEntryNotFoundError, errors.OfflineModeIsEnabled)
    unreachable = (URLError, ConnectionError, TimeoutError, socket.gaierror, *offline)
    try:
        with _silent():
            yield
    except ModelError as problem:
        raise EmbedderError(f"{spec}: {problem}") from problem
    except (OSError, RuntimeError, ValueError, KeyError, ImportError, SafetensorError, UnpicklingError) as problem:
        if any(isinstance(cause, unreachable) for cause in _causes(problem)):
            raise EmbedderError(
                f"the weights of {spec!r} could not be fetched, and are not in the cache {constants.HF_HUB_CACHE} "
                f"({problem}). Without a network, {_how_to_bring(spec, where)}"
            ) from problem
        raise EmbedderError(f"{spec!r} can't be made: {type(problem).__name__}: {problem}") from problem


@contextmanager
def _silent() -> Iterator[None]:
    """Let the libraries log nothing: what goes wrong is raised as well, and said once is enough."""

    def of_others(record: logging.LogRecord) -> bool:
        return "open_clip" not in Path(record.pathname).parts  # which logs by the root logger, as others may

    with ExitStack() as after:
        logging.root.addFilter(of_others)
        after.callback(logging.root.removeFilter, of_others)
        for logger in map(logging.getLogger, ("huggingface_hub", "timm")):
            after.callback(logger.setLevel, logger.level)
            logger.setLevel(logging.CRITICAL)
        yield


def _how_to_bring(spec: str, where: str) -> str:
    source, _, name = spec.partition(":")
    if name.startswith("hf-hub:"):
        repository = name.removeprefix("hf-hub:")
        return f"bring the files of {repository} on the Hugging Face hub in a folder: {source}:local-dir:FOLDER"
    return f"bring the file ({where} on the Hugging Face hub) and name it: {spec.partition('/')[0]}@FILE"


def _causes(problem: BaseException | None) -> list[BaseException]:
    """An error and all that led to it."""
    found: list[BaseException] = []
    while problem is not None and problem not in found:
        found.append(problem)
        problem = problem.__cause__ or problem.__context__
    return found


def _check_features(features: str) -> None:
    require_choice("features", features, Features, EmbedderError)


def _asset(name: str) -> Path:
    return Path(str(resources.files(__package__) / name))
