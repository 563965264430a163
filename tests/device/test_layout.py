"""Flat memory for a module's tensors: what shares a storage keeps sharing it, nothing overlaps, no value is lost."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise

import pytest
import torch
from ltx2_two_stage.device_manager.layout import ALIGNMENT, Layout, members, unique_tensors
from ltx2_two_stage.device_manager.weights import WeightSet, assign, bind, plain_tensors, share
from torch import Tensor, nn

CPU, META = torch.device("cpu"), torch.device("meta")


class Block(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.linear = nn.Linear(width, 3)
        self.register_buffer("offset", torch.ones(5, dtype=torch.float64))
        self.register_buffer("absent", None)


class Model(nn.Module):
    """Layers of different sizes, a tied weight, buffers, a None, tensors of several dtypes, modules without tensors."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(4, 4, bias=False)
        self.layers = nn.ModuleList(Block(width) for width in (2, 300, 1))
        self.last = nn.Linear(4, 4, bias=False)
        self.last.weight = self.first.weight
        self.silent = nn.Sequential(nn.ReLU(), nn.Identity())
        self.register_parameter("absent", None)
        self.register_buffer("scalar", torch.tensor(2.5, dtype=torch.bfloat16))
        self.register_buffer("empty", torch.empty(0, 3))
        self.register_buffer("flags", torch.tensor([True, False, True]), persistent=False)


class Views(nn.Module):
    """Parameters that are parts of one storage, one of them transposed."""

    def __init__(self) -> None:
        super().__init__()
        whole = torch.arange(64, dtype=torch.float32).view(8, 8)
        self.top = nn.Parameter(whole[2:4])
        self.bottom = nn.Parameter(whole[4:])
        self.turned = nn.Parameter(whole[2:6].T)


class OnlyBuffers(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mean", torch.arange(3.0))
        self.register_buffer("std", torch.arange(3.0, 6.0))


def made(model: Callable[[], nn.Module], device: torch.device = CPU) -> nn.Module:
    with torch.device(device):
        module = model()
    generator = torch.Generator().manual_seed(0)
    for _, tensor in unique_tensors(module):
        if tensor.is_floating_point() and device == CPU:
            tensor.data.copy_(torch.randn(tensor.shape, generator=generator))
    return module


def extents(layout: Layout) -> dict[str, tuple[int, int, int]]:
    """Group, first byte and the byte after the last of each slot that has any."""
    found = {}
    for slot in layout.slots:
        if 0 not in slot.size:
            reach = sum((size - 1) * stride for size, stride in zip(slot.size, slot.stride, strict=True))
            found[slot.name] = (slot.group, slot.offset, slot.offset + (reach + 1) * slot.dtype.itemsize)
    return found


def moved_into_a_set(module: nn.Module, layers: str | None = None) -> WeightSet:
    weights = WeightSet(Layout.of(module, layers), CPU)
    with torch.no_grad():
        for view, (_, tensor) in zip(weights.views, unique_tensors(module), strict=True):
            view.copy_(tensor)
    return weights


def test_each_tensor_object_has_one_slot_under_its_first_name() -> None:
    module = made(Model)
    names = [slot.name for slot in Layout.of(module).slots]
    # parameters first, and "last.weight" is "first.weight"
    assert names == [
        "first.weight",
        *(f"layers.{index}.linear.{name}" for index in range(3) for name in ("weight", "bias")),
        "scalar",
        "empty",
        "flags",
        *(f"layers.{index}.offset" for index in range(3)),
    ]
    assert names == [name for name, _ in unique_tensors(module)]


@pytest.mark.parametrize("layers", [None, "layers"])
def test_slots_are_aligned_apart_and_inside_their_group(layers: str | None) -> None:
    layout = Layout.of(made(Model), layers)
    spans = extents(layout)
    assert len(spans) == len(layout.slots) - 1  # all but the empty one
    for group, nbytes in enumerate(layout.group_bytes):
        inside = sorted((first, last) for g, first, last in spans.values() if g == group)
        assert all(last <= first for (_, last), (first, _) in pairwise(inside))
        assert inside[-1][1] <= nbytes < inside[-1][1] + ALIGNMENT and nbytes % ALIGNMENT == 0
    assert all(slot.offset % ALIGNMENT == 0 for slot in layout.slots)
    assert layout.nbytes == sum(layout.group_bytes)


def test_layers_are_groups_of_their_own() -> None:
    module = made(Model)
    layout = Layout.of(module, "layers")
    assert len(layout.group_bytes) == 1 + len(members(module, "layers")) == 4
    for slot in layout.slots:
        assert slot.group == (1 + int(slot.name.split(".")[1]) if slot.name.startswith("layers.") else 0)
    # weight (36 * 100), bias and offset of the widest layer: 3600 bytes, 12 and 40, each on its own alignment
    assert layout.group_bytes[2] == 3840 + 256 + 256
    assert Layout.of(module).group_bytes == (layout.nbytes,)


def test_a_name_that_only_begins_like_the_layers_is_outside_them() -> None:
    module = nn.ModuleDict({"layers": nn.ModuleList([nn.Linear(2, 2)]), "layers_norm": nn.LayerNorm(2)})
    groups = {slot.name: slot.group for slot in Layout.of(module, "layers").slots}
    assert groups == {"layers.0.weight": 1, "layers.0.bias": 1, "layers_norm.weight": 0, "layers_norm.bias": 0}


def test_layers_may_lie_deep() -> None:
    module = nn.Sequential(nn.Linear(2, 2), nn.Sequential(nn.Identity(), nn.ModuleList([nn.Linear(2, 2)])))
    groups = {slot.name: slot.group for slot in Layout.of(module, "1.1").slots}
    assert groups == {"0.weight": 0, "0.bias": 0, "1.1.0.weight": 1, "1.1.0.bias": 1}


@pytest.mark.parametrize("model", [Model, OnlyBuffers, nn.Identity], ids=lambda model: model.__name__)
def test_the_meta_device_gives_the_same_layout(model: Callable[[], nn.Module]) -> None:
    layers = "layers" if model is Model else None
    assert Layout.of(made(model, META), layers) == Layout.of(made(model), layers)


def test_views_share_their_part_of_the_storage_once() -> None:
    module = Views()
    layout = Layout.of(module)
    top, bottom, turned = (slot.offset for slot in layout.slots)
    # rows 2 to 7 of 8, 32 bytes each: bottom is two rows below the others
    assert (bottom - top, turned - top) == (64, 0) and layout.nbytes == 256
    assert max(last for _, _, last in extents(layout).values()) - top == 192
    before = {name: tensor.detach().clone() for name, tensor in unique_tensors(module)}
    weights = moved_into_a_set(module)
    assert all(torch.equal(view, before[name]) for name, view in weights.named().items())
    weights.named()["turned"][0, 2] = -1.0  # row 4, column 0 of the whole
    assert weights.named()["bottom"][0, 0] == -1.0


def test_modules_without_parameters() -> None:
    assert Layout.of(nn.Sequential(nn.ReLU())) == Layout((), (0,))
    assert WeightSet(Layout.of(nn.ReLU()), CPU).nbytes == 0
    module = OnlyBuffers()
    assert [slot.name for slot in Layout.of(module).slots] == ["mean", "std"]
    assert moved_into_a_set(module).named()["std"].tolist() == [3.0, 4.0, 5.0]


def test_without_leaves_tensors_out_and_takes_no_room_for_them() -> None:
    module = made(Model)
    left_out = {id(module.first.weight), *(id(tensor) for tensor in module.layers.parameters())}
    layout = Layout.of(module, None, without=left_out)
    assert [slot.name for slot in layout.slots] == [
        "scalar",
        "empty",
        "flags",
        *(f"layers.{index}.offset" for index in range(3)),
    ]
    assert layout.nbytes == 5 * ALIGNMENT


def test_views_of_other_dtypes_in_one_storage_stay_where_they_are() -> None:
    memory = torch.arange(64, dtype=torch.uint8)
    module = nn.Module()
    module.register_buffer("narrow", memory[4:8])
    module.register_buffer("wide", memory[8:24].view(torch.int64))
    views = moved_into_a_set(module).named()
    assert torch.equal(views["narrow"], module.narrow) and torch.equal(views["wide"], module.wide)


@pytest.mark.parametrize("other", ["outside", "layer"])
def test_what_a_layer_shares_lies_outside_the_layers(other: str) -> None:
    module = nn.ModuleDict({"layers": nn.ModuleList(nn.Linear(2, 2) for _ in range(2)), "outside": nn.Linear(2, 2)})
    (module.outside if other == "outside" else module.layers[1]).weight = module.layers[0].weight
    assert {slot.name: slot.group for slot in Layout.of(module, "layers").slots}["layers.0.weight"] == 0


def test_a_copied_set_has_every_value_and_memory_of_its_own() -> None:
    module = made(Model)
    source = moved_into_a_set(module, "layers")
    target = WeightSet(source.layout, CPU)
    assert target.copy_from(source) == source.nbytes == target.nbytes
    for name, view in target.named().items():
        assert torch.equal(view, source.named()[name]) and view.dtype == source.named()[name].dtype
    target.memory[2].zero_()
    assert target.named()["layers.1.linear.weight"].abs().max() == 0
    assert source.named()["layers.1.linear.weight"].abs().max() > 0
    assert target.copy_group(source, 2) == source.memory[2].nbytes
    assert torch.equal(target.named()["layers.1.linear.weight"], source.named()["layers.1.linear.weight"])


def test_assign_gives_a_meta_module_its_weights_and_keeps_ties() -> None:
    real, module = made(Model), made(Model, META)
    x = torch.ones(2, 4)
    weights = moved_into_a_set(real, "layers")
    assign(module, weights.views)
    assert module.last.weight is module.first.weight
    assert isinstance(module.first.weight, nn.Parameter) and not any(p.requires_grad for p in module.parameters())
    assert not isinstance(module.scalar, nn.Parameter) and module.absent is None
    assert module.state_dict().keys() == real.state_dict().keys()  # what does not persist still does not
    for (name, ours), (_, theirs) in zip(unique_tensors(module), unique_tensors(real), strict=True):
        assert torch.equal(ours, theirs) and ours.dtype == theirs.dtype, name
    weights.named()["first.weight"].fill_(1.0)
    assert torch.equal(module.last(x), torch.full((2, 4), 4.0))


def test_assign_wants_as_many_views_as_tensors() -> None:
    with pytest.raises(ValueError):
        assign(nn.Linear(2, 2), [torch.zeros(2, 2)])


def test_bind_shows_other_memory_and_copies_nothing() -> None:
    module = made(Model)
    tensors = [tensor for _, tensor in unique_tensors(module)]
    one, two = moved_into_a_set(module), moved_into_a_set(module)
    two.named()["first.weight"].fill_(3.0)
    before = one.named()["first.weight"].clone()
    for weights, expected in ((one, before), (two, torch.full((4, 4), 3.0)), (one, before)):
        bind(tensors, weights.views)
        assert torch.equal(module.last.weight, expected)
        assert module.first.weight.data_ptr() == weights.named()["first.weight"].data_ptr()
    assert all(now is then for (_, now), then in zip(unique_tensors(module), tensors, strict=True))


def test_share_makes_two_modules_one() -> None:
    source, target = made(Model), made(Model, META)
    share(source, target)
    for (name, ours), (_, theirs) in zip(unique_tensors(target), unique_tensors(source), strict=True):
        assert ours is theirs, name
    bind([source.first.weight], [torch.full((4, 4), 7.0)])
    assert target.last.weight[0, 0] == 7.0


@pytest.mark.parametrize(
    "source",
    [
        pytest.param(nn.Sequential(nn.Linear(2, 2)), id="no-such-module"),
        pytest.param(nn.Sequential(nn.Linear(2, 2), nn.Identity()), id="no-such-tensor"),
    ],
)
def test_share_wants_everything_that_the_target_has(source: nn.Module) -> None:
    with pytest.raises(KeyError):
        share(source, nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2)))


def test_plain_tensors_can_be_rebound_when_the_caller_infers() -> None:
    with torch.inference_mode():
        module = nn.Linear(2, 2)
        assert module.weight.is_inference()
        with plain_tensors():
            module = nn.Linear(2, 2)
            outside = torch.zeros(2, 2)
        weights = WeightSet(Layout.of(module), CPU)
        assert not any(tensor.is_inference() for tensor in (module.weight, outside, *weights.views, *weights.memory))
        bind([module.weight, module.bias], weights.views)
    seen: Tensor = module.weight
    assert seen.data_ptr() == weights.views[0].data_ptr()
