"""Weights of others: how they are fetched, and what to do where that fails."""

from __future__ import annotations

import logging
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from pickle import UnpicklingError
from typing import Any
from urllib.error import URLError

from safetensors import SafetensorError

from pure_nb._imports import needed
from pure_nb.errors import EmbedderError, ModelError


def open_clip() -> Any:
    """The library, which takes a second to import, and which not everyone has."""
    with needed("clip", "CLIP needs", EmbedderError):
        return import_module("open_clip")


def clip_file(model: str, pretrained: str | Path | None) -> str:
    """Where the weights of a tag are, for whoever has to fetch them by hand."""
    known = open_clip().get_pretrained_cfg(model, str(pretrained)) if ":" not in model else {}
    repository = str(known.get("hf_hub") or model.partition(":")[2]).strip("/")
    # The hub's file, and not OpenAI's own, which is a program and would have to be run to be read.
    return f"open_clip_model.safetensors of {repository}"


@contextmanager
def explained(spec: str, where: str) -> Iterator[None]:
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


def _causes(problem: BaseException | None) -> list[BaseException]:
    """An error and all that led to it."""
    found: list[BaseException] = []
    while problem is not None and problem not in found:
        found.append(problem)
        problem = problem.__cause__ or problem.__context__
    return found
