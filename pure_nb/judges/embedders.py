"""Embedders: networks that were trained for something else, and say how alike two pictures are.

Each turns pictures into vectors: CLIP through open_clip, DINOv2 and anything else through timm, any torch network up to
its last layer, raw pixels as the null, or a function of your own. Those with a text tower turn words into vectors as
well. Two small ones ship with the package, trained on the glyph world, so that the book needs no download.

    >>> from pure_nb.judges.embedders import load_embedder
    >>> clip = load_embedder("clip")                                # doctest: +SKIP
    >>> clip.images([picture]).shape                                # doctest: +SKIP
    (1, 768)
"""

from __future__ import annotations

import hashlib
import inspect
import json
import logging
import re
import socket
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from functools import partial
from importlib import resources
from pathlib import Path
from pickle import UnpicklingError
from typing import Any, Literal, get_args
from urllib.error import URLError

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from safetensors import SafetensorError
from torch import Tensor, nn
from torchvision import transforms

from pure_nb._imports import needed
from pure_nb.errors import EmbedderError, ModelError, PureError
from pure_nb.images.data import MEAN, STD
from pure_nb.network import models
from pure_nb.network.layers import INPUT, activations, by_position, resting

Picture = NDArray[np.uint8]
Encode = Callable[[Sequence[Picture]], Any]
Features = Literal["tokens", "pooled"]

PROMPTS = ("a photo of a {}.", "a cropped photo of a {}.", "a picture of a {}.")
"""What CLIP is asked; the vectors of the three are averaged, as in the paper of CLIP."""

SPECS = (
    "mini-clip, mini-dino, pixels, clip, dinov2, open_clip:MODEL/TAG, timm:NAME, torchvision:NAME or FILE.py:FUNCTION, "
    "each but the first three with @FILE for local weights"
)


@dataclass(frozen=True, eq=False)
class Embedder:
    """Pictures to vectors, and perhaps words to vectors.

    Attributes
    ----------
    name
        What to call it in tables and figures.
    fingerprint
        Changes when the vectors change; stored results are found by it.
    encode
        From a list of pictures, uint8 ``[H, W, 3]`` of any sizes, to a tensor or array ``[pictures, d]``. What the
        network needs done to a picture first is done here.
    encode_text
        From a list of texts to ``[texts, d']``; None where there is no text tower.
    encode_joint
        From pictures to vectors that can be compared with those of texts. CLIP's are other ones than the mean of its
        tokens, by which the paper measures distances.
    prompts
        Sentences around a word, with ``{}`` in its place.
    """

    name: str
    fingerprint: str
    encode: Encode
    encode_text: Callable[[list[str]], Any] | None = None
    encode_joint: Encode | None = None
    prompts: tuple[str, ...] = ("{}",)

    @classmethod
    def of(cls, name: str, function: Encode) -> Embedder:
        """An embedder of your own.

        Parameters
        ----------
        name
            What to call it.
        function
            From a list of pictures, uint8 ``[H, W, 3]``, to a tensor or array ``[pictures, d]``. It is tried on three
            pictures now; what it makes of them is part of the fingerprint.

        Raises
        ------
        EmbedderError
            If it does not return a finite vector for each picture.
        """
        probe = [np.random.default_rng(size).integers(0, 256, (size, size, 3), dtype=np.uint8) for size in (24, 40, 64)]
        digest = hashlib.sha256(cls(name, "", function).images(probe).tobytes())
        with suppress(OSError, TypeError):
            digest.update(inspect.getsource(function).encode())
        return cls(name, digest.hexdigest()[:16], function)

    def images(self, pictures: Sequence[Picture], *, batch_size: int = 64) -> NDArray[np.float32]:
        """Vectors of pictures.

        Parameters
        ----------
        pictures
            uint8 ``[H, W, 3]`` each, of any sizes.
        batch_size
            Pictures encoded at once.

        Returns
        -------
        ndarray
            float32 ``[pictures, d]``.

        Raises
        ------
        EmbedderError
            If a vector is missing, or NaN or infinite.
        """
        return self._checked(self.encode, pictures, "pictures", batch_size)

    def text(self, words: Sequence[str], *, batch_size: int = 256) -> NDArray[np.float32]:
        """Vectors of words: the mean over the prompts of vectors of length 1, scaled to length 1 again.

        Parameters
        ----------
        words
            Nouns, as they fit into the prompts.
        batch_size
            Texts encoded at once.

        Returns
        -------
        ndarray
            float32 ``[words, d']``, to be compared with the images of :attr:`joint`.

        Raises
        ------
        EmbedderError
            If there is no text tower, no word, or a word that it can't read.
        """
        if self.encode_text is None:
            raise EmbedderError(f"{self.name} has no text tower and can't name anything; take CLIP or mini-CLIP")
        total = 0.0
        for prompt in self.prompts:
            texts = [prompt.format(word) for word in words]
            vectors = self._checked(self.encode_text, texts, "texts", batch_size)
            total = total + vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
        found = np.asarray(total / np.linalg.norm(total, axis=1, keepdims=True), dtype=np.float32)
        return found

    @property
    def joint(self) -> Embedder:
        """The same network, giving the vectors of pictures that can be compared with those of words."""
        if self.encode_text is None or self.encode_joint is None:
            raise EmbedderError(f"{self.name} has no text tower and can't name anything; take CLIP or mini-CLIP")
        network, _, _ = self.fingerprint.rpartition("-")
        return replace(self, encode=self.encode_joint, fingerprint=f"{network}-pooled")

    def _checked(
        self, encode: Callable[[Any], Any], items: Sequence[Any], what: str, batch_size: int
    ) -> NDArray[np.float32]:
        if not len(items):
            raise EmbedderError(f"there are no {what} to embed with {self.name}")
        parts = []
        for start in range(0, len(items), batch_size):
            some = list(items[start : start + batch_size])
            try:
                found = encode(some)
                array = found.detach().float().cpu().numpy() if isinstance(found, Tensor) else np.asarray(found)
                with np.errstate(over="ignore"):  # too large for float32 is infinite, and reported below
                    array = array.astype(np.float32)
            except PureError:
                raise
            except Exception as problem:  # anyone's function
                raise EmbedderError(
                    f"{self.name} gave no vectors of {len(some)} {what} ({type(problem).__name__}: {problem})"
                ) from problem
            if array.ndim != 2 or len(array) != len(some):
                raise EmbedderError(
                    f"{self.name} returned an array {list(array.shape)} for {len(some)} {what}; expected "
                    f"[{len(some)}, d], a vector for each"
                )
            finite = np.isfinite(array).all(axis=1)
            if not finite.all():
                raise EmbedderError(
                    f"{self.name} returned NaN or infinity for number {start + int(np.argmin(finite))} of the {what}; "
                    "check its weights, and whether half precision overflows"
                )
            parts.append(array)
        if len({part.shape[1] for part in parts}) > 1:
            raise EmbedderError(f"{self.name} returned vectors of several lengths, {[p.shape[1] for p in parts][:5]}")
        return np.concatenate(parts)


def pixels(size: int = 16) -> Embedder:
    """The null: the picture scaled to ``size`` x ``size`` pixels, and nothing else."""

    def encode(pictures: Sequence[Picture]) -> NDArray[np.float32]:
        small = [Image.fromarray(picture).resize((size, size), Image.Resampling.BILINEAR) for picture in pictures]
        return np.stack([np.asarray(picture, dtype=np.float32).ravel() / 255 for picture in small])

    return Embedder("pixels", f"pixels {size}", encode)


def clip(
    model: str = "ViT-B-32-quickgelu",
    pretrained: str | Path | None = "openai",
    *,
    features: Features = "tokens",
    device: str = "cpu",
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
    device
        Where it runs.
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
    open_clip = _open_clip()
    own = model.startswith(("hf-hub:", "local-dir:"))
    with _explained(f"open_clip:{model}" if own else f"open_clip:{model}/{pretrained}", _clip_file(model, pretrained)):
        network, prepare = open_clip.create_model_from_pretrained(
            model, pretrained=None if own else str(pretrained), device=device, weights_only=True
        )
        read = tokenizer or open_clip.get_tokenizer(model)
    network.eval()

    def tokens(images: Tensor) -> Tensor:
        found = network.visual.forward_intermediates(
            images, indices=1, normalize_intermediates=False, intermediates_only=True, output_extra_tokens=True
        )
        grid = by_position(found["image_intermediates"][-1])
        first = found.get("image_intermediates_prefix")
        every = [grid] if not first else [first[-1].transpose(1, 2), grid]
        return torch.cat(every, dim=2).mean(dim=2)

    @torch.inference_mode()
    def encode_text(texts: list[str]) -> Tensor:
        found: Tensor = network.encode_text(read(texts).to(device))
        return found

    joint = _encoder(network.encode_image, prepare, device)
    encode = joint if features == "pooled" else _encoder(tokens, prepare, device)
    fingerprint = _fingerprint(network, prepare, features)
    shown = name if features == "tokens" else f"{name} pooled"
    return Embedder(shown, fingerprint, encode, encode_text, joint, prompts)


def from_timm(
    model: str = "vit_base_patch14_dinov2.lvd142m",
    weights: str | Path | None = None,
    *,
    features: Features = "tokens",
    device: str = "cpu",
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
    device
        Where it runs.
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
            overlay = {"state_dict": state} | ({"num_classes": 0} if headless else {})
            options |= {"pretrained_cfg_overlay": overlay} | ({"num_classes": 0} if headless else {})
        network: Any = timm.create_model(model, pretrained=True, **options)
        network.reset_classifier(0)
    network.to(device).eval()
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

    encode = _encoder(forward, prepare, device)
    shown = (name or model) + ("" if features == "tokens" else " pooled")
    return Embedder(shown, _fingerprint(network, prepare, features), encode)


def from_network(
    model: nn.Module,
    layer: str | None = None,
    *,
    name: str = "network",
    size: int = 224,
    mean: tuple[float, ...] = MEAN,
    std: tuple[float, ...] = STD,
    device: str = "cpu",
) -> Embedder:
    """Any torch network, up to a layer: a stand-in for CLIP where none is at hand.

    To judge a network by its own features says nothing: take another one than that which is studied.

    Parameters
    ----------
    model
        Takes images ``[B, 3, size, size]``.
    layer
        Whose output is taken, averaged over its positions; ``input:LAYER`` takes what enters it. What enters the last
        linear layer by default.
    name
        What to call it.
    size, mean, std
        What its pictures are scaled to and normalised by.
    device
        Where it runs.

    Raises
    ------
    EmbedderError
        If no layer is named and there is no linear one.
    """
    if layer is None:
        linear = [label for label, module in model.named_modules() if isinstance(module, nn.Linear)]
        if not linear:
            raise EmbedderError(f"{type(model).__name__} has no linear layer; name the layer whose output to take")
        layer = INPUT + linear[-1]
    steps = [transforms.Resize((size, size)), transforms.ToTensor(), transforms.Normalize(list(mean), list(std))]
    prepare = transforms.Compose(steps)

    def forward(images: Tensor) -> Tensor:
        with resting(model, device):
            found = activations(model, images, [layer])[layer]
        return found if found.ndim == 2 else by_position(found).mean(dim=2)

    return Embedder(name, _fingerprint(model, prepare, layer), _encoder(forward, prepare, device))


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


def mini_clip(features: Features = "tokens", device: str = "cpu") -> Embedder:
    """The small CLIP that ships, trained on the glyph world and its captions; see its model card beside the weights."""
    folder = _asset("mini-clip")
    config = json.loads((folder / "open_clip_config.json").read_text(encoding="utf-8"))
    tokenizer = WordTokenizer(config["words"], config["model_cfg"]["text_cfg"]["context_length"])
    how: dict[str, Any] = {"name": "mini-CLIP", "prompts": ("a {}",), "tokenizer": tokenizer}
    return clip(f"local-dir:{folder}", None, features=features, device=device, **how)


def mini_dino(features: Features = "tokens", device: str = "cpu") -> Embedder:
    """The small vision transformer that ships, trained on the glyph world without labels; see its model card."""
    return from_timm(f"local-dir:{_asset('mini-dino')}", features=features, device=device, name="mini-DINO")


def load_embedder(spec: str, *, features: Features = "tokens", device: str = "cpu", folder: Path = Path()) -> Embedder:
    """An embedder by its name, as the command line has it.

    Parameters
    ----------
    spec
        ``"mini-clip"``, ``"mini-dino"``, ``"pixels"``; ``"clip"`` and ``"dinov2"``, those of the paper;
        ``"open_clip:ViT-L-14/laion2b_s32b_b82k"``; ``"timm:NAME"``; ``"torchvision:NAME"``, the features that enter
        the last layer; or ``"my_file.py:my_function"``, see :meth:`Embedder.of`. ``@FILE`` takes weights from a file.
    features
        Of CLIP and of timm's; see :func:`clip` and :func:`from_timm`.
    device
        Where it runs.
    folder
        What relative paths start from.

    Raises
    ------
    EmbedderError
        If the spec is not of these forms, or the embedder can't be had.
    """
    kind, _, file = spec.partition("@")
    weights = folder / file if file else None
    if weights is not None and not weights.is_file():
        raise EmbedderError(f"there is no file of weights {str(weights)!r}, named in {spec!r}")
    source, _, name = kind.partition(":")
    if weights is not None and name.startswith(("hf-hub:", "local-dir:")):
        raise EmbedderError(f"{spec!r} names weights twice: {name!r} has its own; leave out @{file}")
    shipped: dict[str, Callable[[], Embedder]] = {
        "mini-clip": partial(mini_clip, features, device),
        "mini-dino": partial(mini_dino, features, device),
        "pixels": pixels,
    }
    if kind in shipped and weights is None:
        return shipped[kind]()
    if kind == "clip":
        return clip(pretrained=weights or "openai", features=features, device=device)
    if kind == "dinov2":
        return from_timm(weights=weights, features=features, device=device, name="DINOv2")
    if source == "open_clip" and name:
        if name.startswith(("hf-hub:", "local-dir:")):
            return clip(name, None, features=features, device=device, name=name)
        model, _, tag = name.partition("/")
        if not tag and weights is None:
            tags = ", ".join(_open_clip().list_pretrained_tags_by_model(model)) or "none known"
            raise EmbedderError(f"{spec!r} names no weights: add /TAG (there are: {tags}) or @FILE")
        return clip(model, weights or tag, features=features, device=device, name=name)
    if source == "timm" and name:
        return from_timm(name, weights, features=features, device=device)
    if source == "torchvision" and name:
        try:
            network = models.load_model(kind, weights)
        except ModelError as problem:
            raise EmbedderError(str(problem)) from problem
        return from_network(network, name=f"features of {name}", device=device)
    own, _, function = kind.rpartition(":")  # a drive of Windows has a colon, too
    if own.endswith(".py") and function:
        try:
            return Embedder.of(function, models.function_in(folder / own, function))
        except ModelError as problem:
            raise EmbedderError(str(problem)) from problem
    raise EmbedderError(f"can't tell what embedder {spec!r} is; expected {SPECS}")


def _encoder(forward: Callable[[Tensor], Tensor], prepare: Callable[[Any], Any], device: str) -> Encode:
    """Pictures through a network's own preparation, and through the network."""

    @torch.inference_mode()
    def encode(pictures: Sequence[Picture]) -> Tensor:
        return forward(torch.stack([prepare(Image.fromarray(picture)) for picture in pictures]).to(device))

    return encode


def _fingerprint(model: nn.Module, prepare: object, features: str) -> str:
    made = re.sub(r" at 0x[0-9a-f]+", "", f"{models.fingerprint(model)} {prepare!r}")
    return f"{hashlib.sha256(made.encode()).hexdigest()[:16]}-{features}"


def _open_clip() -> Any:
    """The library, which takes a second to import, and which not everyone has."""
    with needed("clip", "CLIP needs", EmbedderError):
        import open_clip
    return open_clip


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

    loggers = [logging.getLogger(name) for name in ("huggingface_hub", "timm")]
    levels = [logger.level for logger in loggers]
    logging.root.addFilter(of_others)
    for logger in loggers:
        logger.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        logging.root.removeFilter(of_others)
        for logger, level in zip(loggers, levels):
            logger.setLevel(level)


def _how_to_bring(spec: str, where: str) -> str:
    source, _, name = spec.partition(":")
    if name.startswith("hf-hub:"):
        repository = name.removeprefix("hf-hub:")
        return f"bring the files of {repository} on the Hugging Face hub in a folder: {source}:local-dir:FOLDER"
    return f"bring the file ({where} on the Hugging Face hub) and name it: {spec.partition('/')[0]}@FILE"


def _check_features(features: str) -> None:
    if features not in get_args(Features):
        raise EmbedderError(f"features must be one of {', '.join(get_args(Features))}, got {features!r}")


def _causes(problem: BaseException | None) -> list[BaseException]:
    """An error and all that led to it."""
    found: list[BaseException] = []
    while problem is not None and problem not in found:
        found.append(problem)
        problem = problem.__cause__ or problem.__context__
    return found


def _asset(name: str) -> Path:
    return Path(str(resources.files(__package__) / name))
