"""The engines' files of one ONNX file: each is made, compared with it, and left out with the reason where its engine cannot run it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from irtool.engines.table import ENGINES, OTHERS
from irtool.errors import BackendError, ExportError
from irtool.workflows.equality.chain import Link, engine_link

FILES = {row.kind: f"model{row.suffix}" for row in ENGINES.values()}
"""Names of the files of a run, by kind."""
COMPANIONS = tuple(path.name for row in OTHERS for path in row.files_of(Path(FILES[row.kind]))[1:])
"""Names of the second files of engines that have two."""


@dataclass(frozen=True)
class EngineFiles:
    """The files and figures of an ONNX file in the engines beside the reference.

    Attributes:
        files: by the engine's name; an engine that reads ONNX files has the ONNX file itself.
        links: the ONNX file against each.
        left_out: by the engine's name, why it has none.
    """

    files: Mapping[str, Path] = field(default_factory=dict)
    links: tuple[Link, ...] = ()
    left_out: Mapping[str, str] = field(default_factory=dict)

    @property
    def notes(self) -> tuple[str, ...]:
        """A sentence for each engine that was left out."""
        return tuple(f"no {ENGINES[name].title} file: {reason}" for name, reason in self.left_out.items())

    def sizes(self) -> dict[str, int]:
        """Bytes of the files of their own, by kind."""
        own = {ENGINES[name]: path for name, path in self.files.items() if ENGINES[name].convert is not None}
        return {row.kind: sum(file.stat().st_size for file in row.files_of(path)) for row, path in own.items()}

    def without_wrong(self) -> EngineFiles:
        """Leave out the engines whose numbers differ, for that reason."""
        wrong = {link.right: link for link in self.links if not link.ok}
        files = {name: path for name, path in self.files.items() if ENGINES[name].title not in wrong}
        reasons = {
            name: f"{link.right}'s numbers differ from onnxruntime's by {link.relative:.0e} of the largest output"
            for name in self.files
            if (link := wrong.get(ENGINES[name].title)) is not None
        }
        return EngineFiles(files, tuple(link for link in self.links if link.ok), {**self.left_out, **reasons})


def engine_files(
    onnx: Path,
    inputs: tuple[Any, ...],
    left_out: Mapping[str, str] | None = None,
    *,
    folder: Path | None = None,
    require: bool = False,
) -> EngineFiles:
    """Make the files of all installed engines from an ONNX file, and compare each with it.

    Args:
        onnx: the ONNX file, which onnxruntime runs.
        inputs: what both are run on.
        left_out: engines that are not to be tried, by name, with the reason.
        folder: where they go; by default beside it.
        require: raise where an engine cannot run the file, rather than leave it out: it runs the original.

    Raises:
        ExportError, BackendError: with `require`, an engine cannot run it.
        CheckError: the model draws random numbers.
    """
    files: dict[str, Path] = {}
    links: list[Link] = []
    reasons = dict(left_out or {})
    for row in OTHERS:
        if not row.installed or row.name in reasons:
            continue
        try:
            path = row.written(onnx, folder, verify=False)  # the link says more about a difference
            links.append(engine_link(row, onnx, path, inputs))
            files[row.name] = path
        except (ExportError, BackendError) as error:
            if require:
                raise
            reasons[row.name] = error.what
    return EngineFiles(files, tuple(links), reasons)
