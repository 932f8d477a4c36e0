"""`irtool.verify`: the chain of equality again, from the files."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from irtool.archive import load
from irtool.commit import restore
from irtool.engines import OnnxSession
from irtool.engines.agreement import sample_inputs
from irtool.engines.engine import Engine
from irtool.engines.table import ENGINES, OTHERS, REFERENCE, by_suffix, engine
from irtool.errors import DataError, FileError, OptionError
from irtool.hosts.onnx.files.load import load_onnx
from irtool.ir import Graph
from irtool.passes import fold_batchnorm, prune, reconstruct
from irtool.progress import Reporter
from irtool.pruning import Plan
from irtool.workflows.compress.built import FILES
from irtool.workflows.compress.engine_files import FILES as ENGINE_FILES
from irtool.workflows.compress.smaller import calibration_batches
from irtool.workflows.equality.chain import (
    Chain,
    Link,
    engine_link,
    files_link,
    folded_links,
    masked_links,
    onnx_link,
)
from irtool.workflows.equality.chain_inputs import chain_inputs, fitting_inputs
from irtool.workflows.folders.record import read_record
from irtool.workflows.folders.recorded import Recorded, require_harmless
from irtool.workflows.folders.steps import require_finished
from irtool.workflows.loading.data import DataOptions
from irtool.workflows.loading.models import fingerprint, graph_of, onnx_file, saved_model
from irtool.workflows.loading.spec import ModelSpec
from irtool.workflows.loading.unlabelled import load_any


def verify(
    *paths: str | Path,
    model: str | None = None,
    weights: str | Path | None = None,
    seed: int = 1,
    engines: Sequence[str] = (),
    progress: Reporter | None = None,
) -> Chain:
    """Check the chain of equality from files: masked = sliced = folded = ONNX = each engine's file.

    Args:
        *paths: a compress run's folder; an .onnx file; or two or three of a saved model, an .onnx file and an engine's file of it.
        model: the original; by default what the folder's report names.
        weights: its state dict.
        seed: of the inputs, which are normal noise.
        engines: names of engines that read ONNX files as they are, which are to run the .onnx file too. None by default, since an engine that
            a report did not ask for should not meet a stranger's file.
        progress: is told what is being done.

    Returns:
        The links with their errors and what is allowed. `require` raises if one is broken.

    Raises:
        IrtoolError: a file is missing, damaged or belongs elsewhere.
    """
    files, reporter = [Path(path) for path in paths], progress or Reporter()
    readers = _readers(engines)
    _require_all(files, model, None if weights is None else Path(weights))
    _read_first(files)
    if len(files) == 1 and files[0].is_dir():
        chain = _folder(files[0], model, None if weights is None else Path(weights), seed, reporter)
        written = files[0] / FILES["onnx"]
    else:
        chain = _files(files, seed, reporter)
        written = next((path for path in files if path.suffix == REFERENCE.suffix), files[0])
    return Chain((*chain.links, *_read_by(readers, written, reporter)))


def _require_all(paths: list[Path], model: str | None, weights: Path | None) -> None:
    """Refuse what is not there before anything takes its time."""
    for path in paths:
        if not path.exists():
            raise FileError("no such file or folder", where=str(path), remedy="Give what irtool wrote.")
    if weights is not None and not weights.is_file():
        raise FileError("no such file", where=str(weights), remedy="Give the state dict of the original.")
    if model is not None and saved_model(model) is None:
        place = ModelSpec.parse(model).place
        if place.endswith(".py") and not Path(place).is_file():
            raise FileError("no such file", where=place, remedy="Give the file that makes the original.")


def _readers(names: Sequence[str]) -> list[Engine]:
    """Engines by name that read ONNX files as they are."""
    rows = [engine(name) for name in names]
    for row in rows:
        if row.convert is not None or row is REFERENCE:
            raise OptionError(
                f"{row.name} has files of its own, or is what others are compared with", where="engines", remedy="Give its file."
            )
    return rows


def _read_by(rows: Sequence[Engine], onnx: Path, progress: Reporter) -> list[Link]:
    """An ONNX file in onnxruntime against engines that read it as it is."""
    inputs = tuple(sample_inputs(OnnxSession(onnx).inputs)) if rows else ()
    with progress.stage("check ONNX in other engines") if rows else nullcontext():
        return [engine_link(row, onnx, onnx, inputs) for row in rows]


def _read_first(paths: list[Path]) -> None:
    """Finish what was being moved; read files before an engine does.

    Of an .onnx file what asks for too much is refused; an engine would try it. An engine that a damaged file may end runs it in a
    process of its own first.
    """
    for folder in {path if path.is_dir() else path.parent for path in paths}:
        restore(folder)
        require_finished(folder)
    if len(paths) == 1 and paths[0].is_dir():
        record = read_record(paths[0] / FILES["report"])  # a folder of another kind is told as such
        _require_written(paths[0], Recorded.of(record, paths[0] / FILES["report"]))
    probes = {row.suffix: row.probe for row in ENGINES.values() if row is REFERENCE or row.convert is not None}
    for path in (file for one in paths for file in ([one / name for name in ENGINE_FILES.values()] if one.is_dir() else [one])):
        if path.suffix in probes and path.is_file():
            probes[path.suffix](path)


def _require_written(folder: Path, record: Recorded) -> None:
    """Refuse a run's folder that lacks what is compared there."""
    kinds = ("model", "plan", *ENGINE_FILES)
    names = [FILES[kind] for kind in kinds if kind in record.files]
    names += [path.name for row in _rows(record) for path in row.files_of(folder / FILES[row.kind])[1:]]
    lost = [name for name in names if not (folder / name).is_file()]
    if lost:
        raise FileError(
            f"{', '.join(lost)} {'is' if len(lost) == 1 else 'are'} gone", where=str(folder), remedy="Run irtool compress again."
        )


def _folder(folder: Path, model: str | None, weights: Path | None, seed: int, progress: Reporter) -> Chain:
    place = folder / FILES["report"]
    record = Recorded.of(read_record(place), place)
    from_onnx = "model" not in record.files
    return Chain((_onnx_folder if from_onnx else _torch_folder)(folder, record, model, weights, seed, progress))


def _torch_folder(
    folder: Path, record: Recorded, model: str | None, weights: Path | None, seed: int, progress: Reporter
) -> tuple[Link, ...]:
    sliced = load(folder / FILES["model"])
    inputs = fitting_inputs(sliced, chain_inputs(sliced.example_inputs, seed=seed))
    plan = Plan.from_json(folder / FILES["plan"])
    links: list[Link] = []
    with progress.stage("check masked = sliced"):
        found = _original(record, model, weights, progress)
        if found is not None:
            links += masked_links(found[0], plan, sliced, inputs, record.constants, found[1])
    folded = fold_batchnorm(sliced)
    with progress.stage("check sliced = folded = ONNX = engines"):
        links += folded_links(sliced, folded, inputs)
        links.append(onnx_link(folded, folder / FILES["onnx"], inputs))
        links += _engine_links(folder, record, inputs)
    return tuple(links)


def _onnx_folder(
    folder: Path, record: Recorded, model: str | None, weights: Path | None, seed: int, progress: Reporter
) -> tuple[Link, ...]:
    """A run that began with an .onnx file: what it wrote is replayed from the original, and compared."""
    written = folder / FILES["onnx"]
    inputs: tuple[Any, ...] = tuple(sample_inputs(OnnxSession(written).inputs))
    links: list[Link] = []
    with progress.stage("check masked = sliced = folded = ONNX"):
        found = _original(record, model, weights, progress)
        if found is not None:
            graph, plan, constants = found[0], Plan.from_json(folder / FILES["plan"]), record.constants
            inputs = fitting_inputs(graph, chain_inputs(graph.example_inputs, seed=seed))
            sliced = reconstruct(graph, plan, found[1]) if record.refits else prune(graph, plan, constants, found[1])
            folded = fold_batchnorm(sliced)
            links += [*masked_links(graph, plan, sliced, inputs, constants, found[1]), *folded_links(sliced, folded, inputs)]
            links.append(onnx_link(folded, written, inputs))
    with progress.stage("check ONNX = engines"):
        links += _engine_links(folder, record, inputs)
    if not links:
        raise OptionError("nothing is left to compare", where=str(folder), remedy="Give --model FILE: the .onnx file it was made from.")
    return tuple(links)


def _engine_links(folder: Path, record: Recorded, inputs: tuple[Any, ...]) -> list[Link]:
    """The ONNX file of a run against each engine's own file that the run wrote."""
    return [engine_link(row, folder / FILES["onnx"], folder / FILES[row.kind], inputs) for row in _rows(record)]


def _rows(record: Recorded) -> list[Engine]:
    """The engines that a run wrote files of their own for."""
    return [row for row in OTHERS if row.convert is not None and row.kind in record.files]


def _original(record: Recorded, model: str | None, weights: Path | None, progress: Reporter) -> tuple[Graph, list[Any] | None] | None:
    """The graph before pruning, and the batches on which means were measured, if they were; None, said, if it is not there."""
    try:
        return _original_graph(record, model, weights, progress)
    except (FileError, OptionError, DataError) as error:
        if model is not None or weights is not None:
            raise
        progress.show(f"masked = sliced is left out, for want of the original: {error}\n")
        return None


def _original_graph(record: Recorded, model: str | None, weights: Path | None, progress: Reporter) -> tuple[Graph, list[Any] | None]:
    name = model or record.model
    if name is None:
        raise OptionError("the report names no model that can be built again", remedy="Give --model.")
    if model is None:
        require_harmless(name)
    graph = graph_of(name, weights or record.weights, record.inputs, values=record.values)
    if fingerprint(graph) != record.fingerprint:
        remedy = "Give --weights FILE: the checkpoint of that run."
        if onnx_file(name) is not None:
            remedy = "Give --model FILE: the .onnx file of that run."
        raise OptionError("its weights are not those that were compressed", where=name, remedy=remedy)
    if not record.calibrate or (record.refits and "model" in record.files):  # the archive has the refitted values
        return graph, None
    options = DataOptions(record.data, record.mean, record.std, record.limit, record.image_size)
    return graph, calibration_batches(graph, load_any(name, options, progress), record.calibrate)


def _files(paths: list[Path], seed: int, progress: Reporter) -> Chain:
    for path in paths:
        if not path.is_file():
            raise FileError("is no file", where=str(path), remedy="Give one folder, or files that irtool wrote.")
    links = _FILE_KINDS.get(tuple(sorted(_kind(path) for path in paths)))
    if links is None:
        raise OptionError(
            f"cannot compare {', '.join(map(str, paths))}",
            where="verify",
            remedy="Give a folder; an .onnx file; two of them; or one with a saved model, an engine's file (as .mnn), or both.",
        )
    with progress.stage("check"):
        return Chain(links(sorted(paths, key=_kind), seed))


def _read_onnx(paths: list[Path], seed: int) -> tuple[Link, ...]:
    """An .onnx file as irtool reads it, against the file."""
    graph = load_onnx(paths[0])
    return (onnx_link(graph, paths[0], fitting_inputs(graph, chain_inputs(graph.example_inputs, seed=seed)), "read"),)


def _two_onnx(paths: list[Path], seed: int) -> tuple[Link, ...]:
    first, second = paths
    return (files_link(first, second, tuple(sample_inputs(OnnxSession(first).inputs))),)


def _onnx_and_engine(paths: list[Path], seed: int) -> tuple[Link, ...]:
    file, onnx = paths
    return (_file_link(onnx, file, tuple(sample_inputs(OnnxSession(onnx).inputs))),)


def _saved_and_onnx(paths: list[Path], seed: int) -> tuple[Link, ...]:
    *files, onnx, saved = paths
    graph = load(saved)
    inputs = fitting_inputs(graph, chain_inputs(graph.example_inputs, seed=seed))
    return (onnx_link(fold_batchnorm(graph), onnx, inputs), *(_file_link(onnx, file, inputs) for file in files))


def _file_link(onnx: Path, file: Path, inputs: tuple[Any, ...]) -> Link:
    row = by_suffix(file.suffix)
    assert row is not None
    return engine_link(row, onnx, file, inputs)


def _kind(path: Path) -> str:
    """The kind of a file, so that kinds in order are: an engine's file, an ONNX file, a saved model; any other suffix stays."""
    kinds = {".onnx": "onnx", ".safetensors": "saved"}
    return "engine" if by_suffix(path.suffix) is not None else kinds.get(path.suffix, path.suffix)


_FILE_KINDS: Mapping[tuple[str, ...], Callable[[list[Path], int], tuple[Link, ...]]] = {
    ("onnx",): _read_onnx,
    ("onnx", "onnx"): _two_onnx,
    ("engine", "onnx"): _onnx_and_engine,
    ("onnx", "saved"): _saved_and_onnx,
    ("engine", "onnx", "saved"): _saved_and_onnx,
}
"""Comparisons by the kinds of the files in order."""
