"""Tiny files: official names, types and metadata; weights under which every part of a run has an effect."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from ltx2_two_stage.ltx2_core.files.safetensors_file import SafetensorsFile
from ltx2_two_stage.ltx2_core.loading.keymaps import component_keys
from ltx2_two_stage.ltx2_core.loading.synthetic import (
    TinyFiles,
    Variant,
    fill_random_,
    full_size_config,
    full_size_upsampler_config,
    tiny_config,
    write_tiny,
)
from ltx2_two_stage.ltx2_core.models.audio_vae.config import AudioVAEConfig
from ltx2_two_stage.ltx2_core.models.audio_vae.decoder import AudioDecoder
from ltx2_two_stage.ltx2_core.models.audio_vae.encoder import AudioEncoder
from ltx2_two_stage.ltx2_core.models.text.config import TextConfig
from ltx2_two_stage.ltx2_core.models.text.connector import TextConnector
from ltx2_two_stage.ltx2_core.models.transformer.config import TransformerConfig
from ltx2_two_stage.ltx2_core.models.transformer.model import LTXTransformer
from ltx2_two_stage.ltx2_core.models.upsampler import LatentUpsampler, UpsamplerConfig, UpsamplerKind
from ltx2_two_stage.ltx2_core.models.video_vae.config import VideoVAEConfig
from ltx2_two_stage.ltx2_core.models.video_vae.decoder import VideoDecoder
from ltx2_two_stage.ltx2_core.models.video_vae.encoder import VideoEncoder
from ltx2_two_stage.ltx2_core.models.vocoder import VocoderConfig, build_vocoder
from ltx2_two_stage.ltx2_core.types import Component, ScaleFactors
from safetensors import safe_open
from torch import Tensor, nn

VARIANTS: tuple[Variant, ...] = ("2.3", "2.0")
TOP_LEVEL = {"model.diffusion_model", "text_embedding_projection", "vae", "audio_vae", "vocoder"}


@pytest.fixture(scope="module", params=VARIANTS)
def variant(request: pytest.FixtureRequest) -> Variant:
    chosen: Variant = request.param
    return chosen


@pytest.fixture(scope="module")
def files(variant: Variant, tmp_path_factory: pytest.TempPathFactory) -> TinyFiles:
    return write_tiny(tmp_path_factory.mktemp(f"tiny-{variant}"), variant)


def read(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    with safe_open(path, "pt") as file:
        return {key: file.get_tensor(key) for key in file.keys()}, file.metadata()  # noqa: SIM118 - not a mapping


def load(files: TinyFiles, component: Component) -> Any:
    """The component's module with the file's weights, strictly."""
    file = SafetensorsFile.open(files.checkpoint, "checkpoint")
    assert file.config is not None
    with torch.device("meta"):
        module = BUILDERS[component](file.config)
    names = component_keys(component, file.tensors)
    tensors = file.read(names.values(), dtype=torch.float32)
    module.load_state_dict({name: tensors[key] for name, key in names.items()}, strict=True, assign=True)
    return module.eval()


BUILDERS: Mapping[Component, Callable[[Mapping[str, Any]], nn.Module]] = {
    Component.TRANSFORMER: lambda config: LTXTransformer(TransformerConfig.from_metadata(config)),
    Component.TEXT_CONNECTOR: lambda config: TextConnector(TextConfig.from_metadata(config, 48 * 5)),
    Component.VIDEO_ENCODER: lambda config: VideoEncoder(VideoVAEConfig.from_metadata(config)),
    Component.VIDEO_DECODER: lambda config: VideoDecoder(VideoVAEConfig.from_metadata(config)),
    Component.AUDIO_ENCODER: lambda config: AudioEncoder(AudioVAEConfig.from_metadata(config)),
    Component.AUDIO_DECODER: lambda config: AudioDecoder(AudioVAEConfig.from_metadata(config)),
    Component.VOCODER: lambda config: build_vocoder(VocoderConfig.from_metadata(config)),
}


@pytest.mark.parametrize("component", BUILDERS)
def test_every_component_loads_strictly(files: TinyFiles, component: Component) -> None:
    module = load(files, component)
    assert not any(tensor.is_meta for tensor in (*module.parameters(), *module.buffers()))


def test_nothing_in_the_file_is_without_an_owner(files: TinyFiles) -> None:
    tensors = SafetensorsFile.open(files.checkpoint, "checkpoint").tensors
    owned = {key for component in BUILDERS for key in component_keys(component, tensors).values()}
    unread = {"vae.per_channel_statistics.channel", "vae.per_channel_statistics.mean-of-stds"}  # as in official files
    assert tensors.keys() - owned == unread


def test_upsampler_loads_strictly(files: TinyFiles, variant: Variant) -> None:
    file = SafetensorsFile.open(files.upsampler, "upsampler")
    config = UpsamplerConfig.from_metadata(file.config, {name: info.shape for name, info in file.tensors.items()})
    assert config.kind == {"2.3": UpsamplerKind.X2, "2.0": UpsamplerKind.X2_RATIONAL}[variant]
    with torch.device("meta"):
        upsampler = LatentUpsampler(config)
    upsampler.load_state_dict(file.read(file.tensors, dtype=torch.float32), strict=True, assign=True)
    latent = torch.randn(1, 16, 2, 3, 4, generator=torch.Generator().manual_seed(7))
    with torch.no_grad():
        larger = upsampler(latent)
    assert larger.shape == (1, 16, 2, 6, 8)
    assert 0.2 < larger.std() < 5  # of the order of what went in


def test_names_are_those_of_the_release(files: TinyFiles, variant: Variant) -> None:
    tag = {"2.3": "ltx-2.3", "2.0": "ltx-2"}[variant]
    assert files.checkpoint.name.startswith(f"{tag}-") and files.checkpoint.name.endswith("-dev.safetensors")
    assert files.upsampler.name.startswith(f"{tag}-spatial-upscaler-x2-1.")
    assert "distilled-lora-384" in files.distilled_lora.name
    written = {entry for entry in files.folder.iterdir() if entry.is_file()}
    assert written == {files.checkpoint, files.upsampler, files.distilled_lora, files.lora}
    assert (files.gemma / "config.json").is_file() and (files.gemma / "tokenizer_config.json").is_file()


def test_size(files: TinyFiles) -> None:
    total = sum(entry.stat().st_size for entry in files.folder.rglob("*") if entry.is_file())
    assert total < 20e6


def test_header(files: TinyFiles, variant: Variant) -> None:
    tensors, metadata = read(files.checkpoint)
    config = json.loads(metadata["config"])
    assert metadata["model_version"].startswith(variant)
    assert config == tiny_config(variant)
    assert {key.split(".")[0] for key in tensors} == {name.split(".")[0] for name in TOP_LEVEL}
    official = full_size_config(variant)
    for section in official:
        assert set(official[section]) <= set(config[section])  # nothing that official files state is left out


def test_tables_are_float32_and_the_rest_bfloat16(files: TinyFiles, variant: Variant) -> None:
    tensors, _ = read(files.checkpoint)
    full = {key for key, tensor in tensors.items() if tensor.dtype == torch.float32}
    assert full == {key for key in tensors if "scale_shift_table" in key.split(".")[-1]}
    per_block = {"2.3": 6, "2.0": 4}[variant]  # docs/model.md 1.4 and 2.2
    assert len(full) == per_block * 3 + 2
    assert {tensor.dtype for key, tensor in tensors.items() if key not in full} == {torch.bfloat16}


def test_no_tensor_is_constant(files: TinyFiles) -> None:
    for path in (files.checkpoint, files.upsampler, files.distilled_lora, files.lora):
        for key, tensor in read(path)[0].items():
            assert tensor.isfinite().all(), key
            assert tensor.numel() == 1 or tensor.float().std() > 0, key


def test_same_seed_same_files(files: TinyFiles, variant: Variant, tmp_path: Path) -> None:
    again, other = write_tiny(tmp_path / "again", variant), write_tiny(tmp_path / "other", variant, seed=1)
    for name in ("checkpoint", "upsampler", "distilled_lora", "lora"):
        (tensors, metadata), (repeated, same_metadata), (others, _) = (
            read(getattr(f, name)) for f in (files, again, other)
        )
        assert metadata == same_metadata and tensors.keys() == repeated.keys() == others.keys()
        assert all(torch.equal(tensor, repeated[key]) for key, tensor in tensors.items())
        changed = [not torch.equal(tensor, others[key]) for key, tensor in tensors.items()]
        assert sum(changed) > 0.5 * len(changed)  # the constants of a vocoder do not depend on the seed
    for path in files.gemma.iterdir():
        if path.suffix == ".json":
            assert path.read_bytes() == (again.gemma / path.name).read_bytes()


def test_lora_covers_every_linear_layer_with_capped_rank(files: TinyFiles, variant: Variant) -> None:
    with torch.device("meta"):
        model = LTXTransformer(TransformerConfig.from_metadata(tiny_config(variant)))
    layers = {name: layer for name, layer in model.named_modules() if isinstance(layer, nn.Linear)}
    base, _ = read(files.checkpoint)
    for path, effect in ((files.distilled_lora, 0.15), (files.lora, 0.3)):
        tensors, _ = read(path)
        assert {key.rsplit(".", 2)[0] for key in tensors} == {f"diffusion_model.{name}" for name in layers}
        assert len(tensors) == 2 * len(layers)
        for name, layer in layers.items():
            down, up = (tensors[f"diffusion_model.{name}.lora_{side}.weight"].float() for side in "AB")
            assert down.shape == (min(16, layer.in_features, layer.out_features), layer.in_features)
            assert up.shape == (layer.out_features, down.shape[0])
            change = (up @ down).std() / base[f"model.diffusion_model.{name}.weight"].float().std()
            # Random factors of rank 4 to 16 scatter by about 1 / sqrt(rank * out)
            assert 0.5 * effect < change < 1.7 * effect


@pytest.fixture(scope="module")
def video(files: TinyFiles) -> Tensor:
    decoder = load(files, Component.VIDEO_DECODER)
    assert decoder.config.scale == ScaleFactors(8, 32, 32)
    latent = torch.randn(1, decoder.config.latent_channels, 2, 4, 6, generator=torch.Generator().manual_seed(7))
    with torch.no_grad():
        pixels: Tensor = decoder.decode(latent)
    return pixels


def test_picture_is_visible(video: Tensor) -> None:
    assert video.shape == (1, 3, 9, 128, 192)
    assert 0.2 < video.std() < 0.7
    assert (video.abs() > 1).float().mean() < 0.1  # clipped
    assert video.mean((0, 2, 3, 4)).abs().max() < 0.5


def test_picture_has_shapes(video: Tensor) -> None:
    """White noise would have a correlation of 0 between neighbours."""
    centred = video - video.mean((2, 3, 4), keepdim=True)
    across = (centred[..., 1:] * centred[..., :-1]).mean() / centred.square().mean()
    down = (centred[..., 1:, :] * centred[..., :-1, :]).mean() / centred.square().mean()
    assert min(across, down) > 0.5


def test_sound_is_audible(files: TinyFiles) -> None:
    decoder, vocoder = load(files, Component.AUDIO_DECODER), load(files, Component.VOCODER)
    audio: AudioVAEConfig = decoder.config
    assert audio.latent_channels * audio.latent_mel_bins == audio.base_channels  # as official code, docs/model.md 7.2
    latent = torch.randn(
        1, audio.latent_channels, 25, audio.latent_mel_bins, generator=torch.Generator().manual_seed(7)
    )
    with torch.no_grad():
        waveform = vocoder(decoder.decode(latent))
    assert 0.03 < waveform.std() < 0.35
    assert (waveform.abs() >= 0.99).float().mean() < 0.01
    assert waveform.mean().abs() < 0.1 * waveform.std() + 0.02  # no constant offset


@pytest.mark.parametrize("variant", VARIANTS)
def test_released_sizes(variant: Variant) -> None:
    """Parameter and tensor counts of the released transformers (docs/model.md 10)."""
    with torch.device("meta"):
        model = LTXTransformer(TransformerConfig.from_metadata(full_size_config(variant)))
    counts = {"2.3": (18_988_838_144, 4_186), "2.0": (18_876_174_592, 3_510)}
    assert (sum(p.numel() for p in model.parameters()), len(model.state_dict())) == counts[variant]


def test_descriptions_are_fresh_copies() -> None:
    full_size_config("2.3")["vae"]["encoder_blocks"][0][1]["num_layers"] = 99
    assert full_size_config("2.3")["vae"]["encoder_blocks"][0] == ["res_x", {"num_layers": 4}]
    assert tiny_config("2.3")["vae"]["encoder_blocks"][0] == ["res_x", {"num_layers": 1}]


def test_upsampler_kind_by_generation() -> None:
    assert full_size_upsampler_config("2.0")["rational_resampler"]
    assert not full_size_upsampler_config("2.3")["rational_resampler"]


class Sample(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(400, 300)
        self.tied = nn.Linear(400, 300, bias=False)
        self.tied.weight = self.linear.weight
        self.up = nn.ConvTranspose1d(64, 32, 8, stride=4)
        self.norm = nn.GroupNorm(32, 1024)
        self.scale_shift_table = nn.Parameter(torch.empty(6, 500))
        self.register_buffer("mel_basis", torch.empty(64, 129))
        self.register_buffer("forward_basis", torch.empty(258, 1, 256))
        self.register_buffer("filter", torch.empty(1, 1, 12))


def test_fill_follows_the_recipe() -> None:
    with torch.device("meta"):
        module = Sample()
    fill_random_(module, torch.Generator().manual_seed(0))
    assert not any(tensor.is_meta for tensor in (*module.parameters(), *module.buffers()))
    # 120,000 draws: the sample deviation is within 1% of the true one
    assert module.linear.weight.std().item() == pytest.approx(0.8 / 20, rel=0.01)
    assert module.up.weight.std().item() == pytest.approx(0.8 / math.sqrt(64 * 8 / 4), rel=0.05)
    assert module.norm.weight.mean().item() == pytest.approx(1, abs=0.03)
    assert module.norm.weight.std().item() == pytest.approx(0.2, rel=0.1)
    for table in (module.linear.bias, module.norm.bias, module.scale_shift_table):
        assert table.std().item() == pytest.approx(0.3, rel=0.15)


def test_fill_gives_constants_their_true_values() -> None:
    with torch.device("meta"):
        module = Sample()
    fill_random_(module, torch.Generator().manual_seed(0))
    half = module.filter.flatten()[:6].tolist()
    assert half == pytest.approx([0.0020290, 0.0093895, -0.0255435, -0.0576574, 0.1285726, 0.4432098], abs=1e-6)
    assert module.mel_basis.min() == 0 and (module.mel_basis.sum(1) > 0).all()
    signal = torch.randn(256, generator=torch.Generator().manual_seed(1))
    spectrum = torch.fft.rfft(signal * torch.hann_window(256))
    expected = torch.cat([spectrum.real, spectrum.imag])
    # float32 sums over 256 products of order 1
    torch.testing.assert_close(module.forward_basis.squeeze(1) @ signal, expected, atol=2e-4, rtol=0)


def test_fill_draws_the_same_for_the_same_seed() -> None:
    first, second = (fill_random_(Sample(), torch.Generator().manual_seed(3)) for _ in range(2))
    for a, b in zip(first.state_dict().values(), second.state_dict().values(), strict=True):
        assert torch.equal(a, b)
