"""The one place that touches ComfyUI's internals: model folders, device, progress, interrupts, latents, models."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Awaitable, Callable, Hashable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import Any

import comfy.latent_formats
import comfy.model_base
import comfy.model_management as management
import comfy.model_patcher
import comfy.patcher_extension
import comfy.supported_models
import comfy.utils
import folder_paths
import latent_preview
import torch
from comfy.cli_args import LatentPreviewMethod, args
from comfy.nested_tensor import NestedTensor
from comfy_execution.utils import get_executing_context
from torch import Tensor, nn

from ..ltx2_core.errors import LTX2Error, SettingError
from ..ltx2_core.files.header import SUFFIXES
from ..ltx2_core.plain_text import plain
from .residency import HostMemory

_FOLDER_MARK = "config.json"  # a folder that holds one is a model in transformers' layout


class FileNames(list[str]):
    """Names to choose from; one with the other system's separators is among them, as a saved workflow may have it.

    The host asks whether a chosen name is in the list that a node offers.
    """

    def __contains__(self, name: object) -> bool:
        if not isinstance(name, str):
            return False
        return super().__contains__(name) or _slashed(name) in {_slashed(own) for own in self}


def _slashed(name: str) -> str:
    return name.replace("\\", "/")


def model_files(folders: Sequence[str]) -> FileNames:
    """Names of the safetensors files in ComfyUI's model folders of these kinds, without doubles."""
    names: dict[str, None] = {}
    for folder in _known(folders):
        names.update(dict.fromkeys(n for n in folder_paths.get_filename_list(folder) if n.lower().endswith(SUFFIXES)))
    return FileNames(names)


def model_folders_and_files(folders: Sequence[str]) -> FileNames:
    """Folders in transformers' layout first, then single files that do not lie in one of these."""
    inside = [name for root in _roots(folders) for name in _layout_folders(root)]
    single = [name for name in model_files(folders) if not any(Path(name).is_relative_to(parent) for parent in inside)]
    return FileNames([*dict.fromkeys(inside), *single])


def find_model(name: str, folders: Sequence[str]) -> Path | None:
    """Where a file or folder of :func:`model_folders_and_files` lies; None when it is not there any more.

    A workflow that was saved on another system has names with that one's separators.
    """
    for spelling in dict.fromkeys((name, _slashed(name))):
        if (found := _find_as_spelt(spelling, folders)) is not None:
            return found
    return None


def _find_as_spelt(name: str, folders: Sequence[str]) -> Path | None:
    for folder in _known(folders):
        if (found := folder_paths.get_full_path(folder, name)) is not None:
            return Path(found)
    for root in _roots(folders):
        if name in _layout_folders(root):
            return root / name
    return None


def default_folder(kind: str) -> Path:
    """Where new files of one kind go: the first of ComfyUI's folders for it, made when it is not there.

    Raises:
        SettingError: this host has no such kind.
    """
    if not _known([kind]):
        raise SettingError("folder", kind, "is not known to this ComfyUI", "Update ComfyUI, or place the file by hand.")
    folder = _roots([kind])[0]
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def _known(folders: Sequence[str]) -> list[str]:
    # Older hosts lack some kinds of folder
    return [folder for folder in folders if folder in folder_paths.folder_names_and_paths]


def _roots(folders: Sequence[str]) -> list[Path]:
    return [Path(root) for folder in _known(folders) for root in folder_paths.get_folder_paths(folder)]


def _layout_folders(root: Path) -> list[str]:
    found = []
    above: dict[str, tuple[str, ...]] = {
        str(root): (os.path.realpath(root),)
    }  # real paths of a folder and of those that the walk came through
    for folder, inner, files in os.walk(root, followlinks=True):
        chain = above.pop(folder)
        if _FOLDER_MARK in files and Path(folder) != root:
            found.append(Path(folder).relative_to(root).as_posix())
            inner.clear()
        for name in list(inner):
            path = os.path.join(folder, name)  # noqa: PTH118 - as os.walk spells it
            real = os.path.realpath(path)
            if real in chain:
                inner.remove(name)  # a link back to where the walk came from
            else:
                above[path] = (*chain, real)
    return sorted(found)


def compute_device() -> torch.device:
    """The device that ComfyUI computes on."""
    device: torch.device = management.get_torch_device()
    return device


def memory(device: torch.device) -> HostMemory | None:
    """ComfyUI's memory manager, where others use the device too; host memory is nothing to ask it for."""
    return None if device.type == "cpu" else HostMemory(management)


def current_run() -> Hashable:
    """Names the workflow run that the calling node belongs to; None outside of any."""
    context = get_executing_context()
    return context.prompt_id if context is not None else None


def outgoing(tensor: Tensor) -> Tensor:
    """As ComfyUI's nodes pass latents and conditioning on: float32 on the intermediate device.

    Exact for float32 and bfloat16, so that handing a latent from node to node changes no bit of it.
    """
    return tensor.to(device=management.intermediate_device(), dtype=torch.float32)


def nested(streams: Sequence[Tensor]) -> Any:
    """Tensors of several streams as ComfyUI's one nested latent."""
    return NestedTensor(streams)


class NodeSurface:
    """The running node on the page that queued it (see :class:`.progress.Surface`)."""

    def __init__(self) -> None:
        context = get_executing_context()
        self._node = context.node_id if context is not None else None
        self._bar: Any = None
        self._previewer: Any = None

    def check(self) -> None:
        management.throw_exception_if_processing_interrupted()

    def bar(self, value: float, total: float, picture: Any = None) -> None:
        if self._bar is None:
            self._bar = comfy.utils.ProgressBar(total)
        self._bar.update_absolute(value, total, picture)

    def write(self, text: str) -> None:
        server = _server()
        if server is not None and self._node is not None and hasattr(server, "send_progress_text"):
            server.send_progress_text(for_page(text), self._node, server.client_id)

    @property
    def wants_pictures(self) -> bool:
        # Read for every node: the host changes it with each run to what the user's settings say
        return bool(args.preview_method != LatentPreviewMethod.NoPreviews)

    def picture(self, latent: Tensor) -> Any:
        """As the host shows it: its own colours, or its own small decoder where the user has chosen that."""
        if self._previewer is None:
            layout = comfy.latent_formats.LTXAV()
            fits = layout.latent_channels == latent.shape[1]
            self._previewer = latent_preview.get_previewer(latent.device, layout) if fits else None
        if self._previewer is None:
            return None
        return self._previewer.decode_latent_to_preview_image("JPEG", latent.float())


def for_page(text: object) -> str:
    """The text as a page may show it: cleaned, and with paths below the host's folders without what is above them."""
    shown = str(text)
    for above in _above_folders():
        for spelled in dict.fromkeys((above, repr(above)[1:-1])):
            shown = shown.replace(spelled, "")
    return plain(shown)


def _above_folders() -> list[str]:
    """What paths of the host's files begin with, the longest first, each with its last separator."""
    known = [Path(folder_paths.base_path, "models"), *map(Path, _all_model_folders())]
    known += [Path(folder_paths.get_directory_by_type(kind) or "") for kind in ("input", "output", "temp")]
    # A root of the file system stands in every path
    above = {f"{folder.parent}{os.sep}" for folder in known if folder.is_absolute() and folder.parent.name}
    return sorted(above, key=len, reverse=True)


def _all_model_folders() -> list[str]:
    return [folder for folders, *_ in list(folder_paths.folder_names_and_paths.values()) for folder in folders]


@contextmanager
def told_on_the_node() -> Iterator[None]:
    """An error of ours is also written on the running node, where the page only says that it failed."""
    try:
        yield
    except LTX2Error as error:
        NodeSurface().write(str(error))
        raise


def tell(lines: Sequence[str]) -> None:
    """Writes on the running node, where there is something to say."""
    if lines:
        NodeSurface().write("\n".join(lines))


Answer = tuple[int, Mapping[str, Any]]
"""Status and JSON of an answer."""


def serve(
    readers: Mapping[str, Callable[[], Awaitable[Answer]]],
    actions: Mapping[str, Callable[[Mapping[str, Any]], Awaitable[Answer]]],
) -> None:
    """Adds routes to the host's server, by path: readers for GET, actions for POST with a JSON object.

    An action's body has the content type of JSON, which a page of another site cannot send, and 64 kB at most.
    """
    server = _server()
    if server is None:
        return
    from aiohttp import web

    def reading(read: Callable[[], Awaitable[Answer]]) -> Callable[[Any], Awaitable[Any]]:
        async def handle(_request: Any) -> Any:
            return answered(*await read())

        return handle

    def acting(act: Callable[[Mapping[str, Any]], Awaitable[Answer]]) -> Callable[[Any], Awaitable[Any]]:
        async def handle(request: Any) -> Any:
            # Pages of other sites may send anything else without asking first
            if request.content_type != "application/json":
                return answered(415, {"error": "The body must be JSON.", "fix": "Send it as application/json."})
            body = _json_object(await _beginning(request))
            if body is None:
                return answered(400, {"error": "The body must be a JSON object of at most 64 kB.", "fix": _EXAMPLE})
            try:
                return answered(*await act(body))
            except LTX2Error as error:
                return answered(409, {"error": str(error), "fix": ""})

        return handle

    def answered(status: int, body: Mapping[str, Any]) -> Any:
        return web.json_response(_page_json(body), status=status)

    for path, read in readers.items():
        server.routes.get(path)(reading(read))
    for path, act in actions.items():
        server.routes.post(path)(acting(act))


_LONGEST_BODY = 1 << 16
_EXAMPLE = 'Send {"mode": "auto"} to change the mode, {} for all else.'


async def _beginning(request: Any) -> bytes:
    """The body, or as much of it as shows that it is too long."""
    body = b""
    while len(body) <= _LONGEST_BODY and (piece := await request.content.read(_LONGEST_BODY + 1 - len(body))):
        body += piece
    return body


def _json_object(body: bytes) -> dict[str, Any] | None:
    """The object that a body holds, None where it is anything else."""
    if len(body) > _LONGEST_BODY:
        return None
    try:
        found = json.loads(body.decode("utf-8"))
    except (ValueError, RecursionError):
        return None
    return found if isinstance(found, dict) else None


def _page_json(value: Any) -> Any:
    """Data for a page: its texts as :func:`for_page` makes them, its field names cleaned."""
    if isinstance(value, str):
        return for_page(value)
    if isinstance(value, Mapping):
        return {plain(key): _page_json(item) for key, item in value.items()}
    return [_page_json(item) for item in value] if isinstance(value, (list, tuple)) else value


# Of the request that is being answered: its workflow, and that workflow's inputs as they were sent, by node
_SENT: ContextVar[Mapping[str, Mapping[str, Any]]] = ContextVar("ltx2_sent")
_QUEUED: ContextVar[Mapping[str, Any] | None] = ContextVar("ltx2_queued", default=None)


def follow_queue() -> None:
    """From now on :func:`queued_inputs` knows a workflow that is being queued."""

    def follow(request: dict[str, Any]) -> dict[str, Any]:
        graph = request.get("prompt")
        whole = isinstance(graph, dict) and all(isinstance(node, dict) for node in graph.values())
        _QUEUED.set(graph if whole else None)
        nodes = graph.items() if whole and isinstance(graph, dict) else ()
        # The host changes the inputs in place
        _SENT.set({key: dict(node["inputs"]) for key, node in nodes if isinstance(node.get("inputs"), dict)})
        return request

    server = _server()
    if server is not None and hasattr(server, "add_on_prompt_handler"):
        server.add_on_prompt_handler(follow)


def queued_inputs(kind: type) -> dict[str, Any]:
    """All inputs of a node that is being validated; what comes over a link is None. Empty where they are not known.

    The host makes one error for every input that ``validate_inputs`` takes, whichever is wrong: taking one, and
    reading the others here, gives one error.

    Args:
        kind: the node's class as the host calls it, its schema with the hidden input ``unique_id``.
    """
    inputs = (_QUEUED.get() or {}).get(_node_id(kind), {}).get("inputs")
    if not isinstance(inputs, dict):
        return {}
    return {name: None if isinstance(value, list) else value for name, value in inputs.items()}


def queued_literals(kind: type) -> dict[str, Any]:
    """The inputs of a node that is being validated as they were sent, without what comes over a link."""
    sent = _SENT.get({}).get(_node_id(kind), {})
    return {name: _unwrapped(value) for name, value in sent.items() if not isinstance(value, list)}


def _unwrapped(value: Any) -> Any:
    """The host's way to write a list that is no link."""
    return value["__value__"] if isinstance(value, dict) and "__value__" in value else value


def _node_id(kind: type) -> str:
    return str(getattr(getattr(kind, "hidden", None), "unique_id", None))


def announce(event: str, seconds: float, data: Callable[[], Mapping[str, Any]]) -> None:
    """Sends an event to every open page, from any thread, after so many seconds; ``data`` is asked then."""
    server = _server()
    if server is not None:
        loop = server.loop
        loop.call_soon_threadsafe(loop.call_later, seconds, lambda: server.send_sync(event, _page_json(data())))


def running_graphs() -> list[tuple[Hashable, Mapping[str, Any]]]:
    """Workflow runs in progress: the name that :func:`current_run` has for each, and its nodes as they were queued."""
    server = _server()
    if server is None:
        return []
    running, _ = server.prompt_queue.get_current_queue_volatile()
    return [(item[1], item[2]) for item in running]


def anything_queued() -> bool:
    """Whether a workflow runs or waits."""
    server = _server()
    return server is not None and server.prompt_queue.get_tasks_remaining() > 0


def _server() -> Any:
    """The host's server; None where its modules are used without one. Importing it would start half of the host."""
    module = sys.modules.get("server")
    return getattr(getattr(module, "PromptServer", None), "instance", None)


def model_around(network: nn.Module, device: torch.device, around_sampling: Callable[..., Any]) -> Any:
    """A MODEL of the host's LTX-AV class with ``network`` where its own would be.

    Args:
        network: without parameters, called as the host calls its ``LTXAVModel``.
        around_sampling: called with every whole sampling and its arguments.
    """
    config = comfy.supported_models.LTXAV({"image_model": "ltxav", "disable_unet_model_creation": True})
    model = comfy.model_base.LTXAV(config)
    model.diffusion_model = network
    patcher = WeightlessPatcher(model, device, torch.device("cpu"))
    kind = comfy.patcher_extension.WrappersMP.OUTER_SAMPLE
    patcher.add_wrapper_with_key(kind, "ltx2_two_stage", around_sampling)
    return patcher


def through_wrappers(call: Callable[..., Any], network: nn.Module, options: Mapping[str, Any]) -> Callable[..., Any]:
    """``call`` inside what other nodes have wrapped around the network."""
    kind = comfy.patcher_extension.WrappersMP.DIFFUSION_MODEL
    wrappers = comfy.patcher_extension.get_all_wrappers(kind, options)
    executor = comfy.patcher_extension.WrapperExecutor.new_class_executor(call, network, wrappers)
    run: Callable[..., Any] = executor.execute
    return run


class WeightlessPatcher(comfy.model_patcher.ModelPatcher):
    """The host's patcher, which has no weights to patch: whoever wants to is told where to do it instead."""

    def add_patches(self, *args: Any, **kwargs: Any) -> Any:
        raise _without_weights("a LoRA cannot be loaded into it", "Use LTX-2 LoRA before LTX-2 Model.")

    def add_hook_patches(self, *args: Any, **kwargs: Any) -> Any:
        raise _without_weights("a LoRA cannot be hooked to it", "Use LTX-2 LoRA before LTX-2 Model.")

    def get_key_patches(self, *args: Any, **kwargs: Any) -> Any:
        raise _without_weights("it cannot be merged or saved", "Load the checkpoint with ComfyUI's own loader.")

    def deepclone_multigpu(self, *args: Any, **kwargs: Any) -> Any:
        raise _without_weights("it cannot be copied to other GPUs", "Load the checkpoint with ComfyUI's own loader.")


def _without_weights(problem: str, fix: str) -> SettingError:
    return SettingError("model", "LTX-2 Model", f"its weights belong to the pipeline, {problem}", fix)
