"""Our nodes in one graph with Lightricks' own pack, ComfyUI-LTXVideo."""

from __future__ import annotations

import os
import shutil
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import av
import pytest
import torch
from host_graphs import TEXTS, Prompt, loader, node, save_latent
from safetensors.torch import load_file
from torch import Tensor

pytestmark = [pytest.mark.host, pytest.mark.xdist_group("host")]

OURS, THEIRS = "ltx2-two-stage", "ComfyUI-LTXVideo"
FRAMES, FPS, SEED = 17, 24.0, 7  # 3 frames of latents
Latents = dict[str, Tensor]

# The host's own transformer with the weights of a tiny checkpoint, whose sound has fewer channels than the host expects
SMALL_MODEL = """
import comfy.sd
import folder_paths

class SmallModel:
    RETURN_TYPES, FUNCTION, CATEGORY = ("MODEL",), "load", "testing"

    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {"name": ("STRING",), "channels": ("INT",)}}

    def load(self, name, channels):
        model = comfy.sd.load_diffusion_model(folder_paths.get_full_path_or_raise("checkpoints", name))
        model.model.diffusion_model.num_audio_channels = channels
        return (model,)

NODE_CLASS_MAPPINGS = {"SmallModel": SmallModel}
"""


@pytest.fixture(scope="module")
def pack(comfyui: Any) -> Path:
    """Their pack; without one the test is skipped with a warning."""
    named = os.environ.get("LTXVIDEO_PACK")
    folder = Path(named) if named else comfyui.folder / "custom_nodes" / THEIRS
    if (folder / "__init__.py").is_file():
        return folder
    problem = f"there is no {THEIRS} in {folder}: set LTXVIDEO_PACK to a checkout of it"
    warnings.warn(f"the tests beside {THEIRS} did NOT run: {problem}", stacklevel=1)
    pytest.skip(problem)


@pytest.fixture(scope="module")
def both(
    pack: Path,
    host: Any,  # noqa: ARG001 - is started first
    start_host: Callable[..., Any],
    tmp_path_factory: pytest.TempPathFactory,
) -> Any:
    """A ComfyUI with both packs; ``host`` has ours alone."""
    packages = os.environ.get("LTXVIDEO_SITE")
    small = tmp_path_factory.mktemp("node") / "small_model.py"
    small.write_text(SMALL_MODEL)
    packs = {THEIRS: pack, small.name: small}
    running = start_host(packs=packs, **({"PYTHONPATH": packages} if packages else {}))
    running.wait_until_up()
    failed = [line for line in running.start_log.splitlines() if "Cannot import" in line or "IMPORT FAILED" in line]
    assert not failed, "\n".join(failed)
    return running


CLIP = {"preset": "two-stage", "width": 128, "height": 128, "frames": FRAMES, "fps": FPS, "seed": SEED, "steps": 2}
TEXT: Prompt = {"loader": loader(), "text": node("LTX2TwoStageTextEncode", pipeline=["loader", 0], **TEXTS)}
STAGE_1: Prompt = {
    **TEXT,
    "stage1": node("LTX2TwoStageDenoise", pipeline=["loader", 0], positive=["text", 0], negative=["text", 1], **CLIP),
    "parts": node("LTXVSeparateAVLatent", av_latent=["stage1", 1]),
}


def load(name: str) -> Prompt:
    """What was saved under a name, as a latent that knows nothing of us."""
    return {
        f"{name}_v": node("LoadLatent", latent=f"{name}_video.latent"),
        f"{name}_a": node("LoadLatent", latent=f"{name}_audio.latent"),
        name: node("LTXVConcatAVLatent", video_latent=[f"{name}_v", 0], audio_latent=[f"{name}_a", 0]),
    }


def upsample(latent: list[Any]) -> Prompt:
    return {"up": node("LTX2TwoStageUpsample", pipeline=["loader", 0], latent=latent)}


def finish(latent: list[Any], **refine: Any) -> Prompt:
    """From an upsampled latent to a video."""
    inputs = {"positive": ["text", 0], "latent": latent, "audio_source": "preset", **refine}
    return {
        "stage2": node("LTX2TwoStageRefine", pipeline=["loader", 0], **inputs),
        **save_latent(["stage2", 1], "final_"),
        "decode": node("LTX2TwoStageDecode", pipeline=["stage2", 0], latent=["stage2", 1], fps=0.0),
        "film": node("SaveVideo", video=["decode", 2], filename_prefix="film", format="auto", codec="auto"),
    }


WHOLE: Prompt = {
    **STAGE_1,
    **save_latent(["stage1", 1], "first_"),
    **upsample(["stage1", 1]),
    **save_latent(["up", 0], "up_"),
    **finish(["up", 0]),
}
FOREIGN = {"preset": "two-stage", "fps": FPS, "seed": SEED}  # what Refine needs for a latent of other nodes


def run(host: Any, prompt: Prompt, keep: str = "") -> Latents:
    """Saved latents by node; a film must have all frames.

    Args:
        keep: name of the latent that :func:`load` is to find.
    """
    files = host.run(prompt)
    if "film" in files:
        with av.open(str(files["film"][0])) as container:
            assert len(list(container.decode(video=0))) == FRAMES
            assert len(container.streams.audio) == 1
    latents = {name: path for name, paths in files.items() for path in paths if path.suffix == ".latent"}
    for stream in ("video", "audio") if keep else ():
        shutil.copy(latents[f"{keep}_{stream}"], host.base / "input" / f"{keep}_{stream}.latent")
    return {name: load_file(path)["latent_tensor"] for name, path in latents.items()}


def same(found: Latents, expected: Latents, name: str) -> bool:
    """Whether both streams of a latent are the same bits, and no constants."""
    keys = (f"{name}_video", f"{name}_audio")
    assert all(expected[key].std() > 0.05 for key in keys)
    return all(torch.equal(found[key], expected[key]) for key in keys)


def distances(found: Latents, expected: Latents, name: str) -> list[float]:
    """Largest difference in each stream of a latent."""
    return [float((found[key] - expected[key]).abs().max()) for key in (f"{name}_video", f"{name}_audio")]


@pytest.fixture(scope="module")
def alone(both: Any, host: Any) -> Latents:  # noqa: ARG001 - is started first
    """A whole run of ours without their pack; its latents of stage 1 are in the input folder."""
    return run(host, WHOLE, keep="first")


def test_no_node_of_either_pack_takes_the_place_of_another(both: Any, host: Any) -> None:
    def ids(running: Any, name: str) -> set[str]:
        nodes = running.get("/object_info")
        return {key for key, info in nodes.items() if info["python_module"] == f"custom_nodes.{name}"}

    assert ids(both, OURS) == ids(host, OURS)
    assert all(key.startswith("LTX2TwoStage") for key in ids(both, OURS))
    assert {"MultimodalGuider", "LTXVAdainLatent"} <= ids(both, THEIRS)
    assert not any(key.startswith("LTX2TwoStage") for key in ids(both, THEIRS))


def test_our_nodes_give_the_same_bits_with_and_without_their_pack(both: Any, alone: Latents) -> None:
    found = run(both, WHOLE)
    assert all(same(found, alone, name) for name in ("first", "up", "final"))


def with_adain(factor: float) -> Prompt:
    """Their colour transfer between our stages: the upsampled picture gets the statistics of stage 1."""
    return {
        **STAGE_1,
        **upsample(["stage1", 1]),
        "big": node("LTXVSeparateAVLatent", av_latent=["up", 0]),
        "adain": node("LTXVAdainLatent", latents=["big", 0], reference=["parts", 0], factor=factor, per_frame=False),
        "joined": node("LTXVConcatAVLatent", video_latent=["adain", 0], audio_latent=["big", 1]),
        **save_latent(["joined", 0], "joined_"),
        **finish(["joined", 0]),
    }


def test_their_latent_node_works_between_our_stages(both: Any, host: Any, alone: Latents) -> None:
    found = run(both, with_adain(1.0), keep="joined")
    for statistic in (torch.mean, torch.std):
        wanted, before, after = (
            statistic(latent, dim=(2, 3, 4))
            for latent in (alone["first_video"], alone["up_video"], found["joined_video"])
        )
        assert not torch.allclose(before, wanted, atol=0.01)
        torch.testing.assert_close(after, wanted, rtol=0, atol=1e-5)  # float32 sums over up to 48 values
    # Ours alone, on what their node made
    expected = run(host, {**TEXT, **load("joined"), **finish(["joined", 0], **FOREIGN)})
    assert same(found, expected, "final")
    assert not torch.equal(found["final_video"], alone["final_video"])


def test_their_latent_node_without_effect_changes_no_bit_of_ours(both: Any, alone: Latents) -> None:
    assert same(run(both, with_adain(0.0)), alone, "final")


SELECTED: Prompt = {**STAGE_1, "some": node("LTXVSelectLatents", samples=["parts", 0], start_index=0, end_index=1)}


def test_a_part_of_our_latent_is_decoded(both: Any, alone: Latents) -> None:
    prompt = {
        **SELECTED,
        "some_video": node("SaveLatent", samples=["some", 0], filename_prefix="some"),
        "decode": node("LTX2TwoStageDecode", pipeline=["loader", 0], latent=["some", 0], fps=0.0),
        "frames": node("SaveImage", images=["decode", 0], filename_prefix="some"),
    }
    files = both.run(prompt)
    assert torch.equal(load_file(files["some_video"][0])["latent_tensor"], alone["first_video"][:, :, :2])
    assert len(files["frames"]) == 9


@pytest.mark.usefixtures("alone")
def test_a_part_of_our_latent_with_the_whole_sound_is_refused_by_refine(both: Any) -> None:
    joined = node("LTXVConcatAVLatent", video_latent=["some", 0], audio_latent=["parts", 1])
    prompt = {**SELECTED, "joined": joined, **upsample(["joined", 0]), **finish(["up", 0])}
    assert "video latent frames = 2: must be 3 for 17 frames at 24 frames per second" in both.failure(prompt)


def test_a_prompt_goes_through_their_files(both: Any) -> None:
    # Their files hold bfloat16, as the released models' text is
    bfloat16 = loader(dtype="bfloat16")
    names = ("positive", "negative")
    written = {
        name: node("LTXVSaveConditioning", conditioning=["text", index], filename=name, dtype="bfloat16")
        for index, name in enumerate(names)
    }
    direct = run(both, {**STAGE_1, "loader": bfloat16, **written, **save_latent(["stage1", 1], "first_")})
    read = {name: node("LTXVLoadConditioning", file_name=f"{name}.safetensors", device="cpu") for name in names}

    def with_texts(positive: str, negative: str) -> Latents:
        texts = {"positive": [positive, 0], "negative": [negative, 0]}
        stage1 = node("LTX2TwoStageDenoise", pipeline=["loader", 0], **texts, **CLIP)
        return run(both, {"loader": bfloat16, **read, "stage1": stage1, **save_latent(["stage1", 1], "first_")})

    assert same(with_texts("positive", "negative"), direct, "first")
    assert not same(with_texts("negative", "positive"), direct, "first")


def sampled(guider: dict[str, Any], latent: str = "first", **changes: Any) -> Prompt:
    """Two steps of the host's sampler with our transformer of stage 1."""
    return {
        **TEXT,
        **load("first"),
        "rate": node("LTXVConditioning", positive=["text", 0], negative=["text", 1], frame_rate=FPS),
        "model": node("LTX2TwoStageModel", pipeline=["loader", 0], stage="stage 1", preset="two-stage"),
        "guider": guider,
        "noise": node("RandomNoise", noise_seed=SEED),
        "euler": node("KSamplerSelect", sampler_name="euler"),
        "sigmas": node("BasicScheduler", model=["model", 0], scheduler="simple", steps=2, denoise=1.0),
        "sampled": node(
            "SamplerCustomAdvanced",
            noise=["noise", 0],
            guider=["guider", 0],
            sampler=["euler", 0],
            sigmas=["sigmas", 0],
            latent_image=[latent, 0],
        ),
        **save_latent(["sampled", 0], "sampled_"),
        **changes,
    }


def guider(kind: str, model: str = "model", **settings: Any) -> dict[str, Any]:
    return node(kind, model=[model, 0], positive=["rate", 0], negative=["rate", 1], **settings)


def apg(eta: float) -> dict[str, Any]:
    return guider("APGGuider", cfg_scale=3.0, eta=eta, norm_threshold=0.0, momentum_coefficient=0.0)


CFG = guider("CFGGuider", cfg=3.0)


def patched(kind: str, **settings: Any) -> Prompt:
    """Plain guidance with our model behind one of their nodes."""
    return sampled(guider("CFGGuider", "patched", cfg=3.0), patched=node(kind, model=["model", 0], **settings))


@pytest.mark.usefixtures("alone")
def test_their_guider_samples_with_our_model(both: Any, host: Any) -> None:
    rest = {**upsample(["sampled", 0]), **finish(["up", 0], **FOREIGN)}
    found = run(both, {**sampled(apg(1.0)), **rest}, keep="sampled")
    # With eta 1 and no threshold theirs is plain guidance, which the host has too; one batch there, two calls here
    plain = run(host, sampled(CFG))
    assert max(distances(found, plain, "sampled")) < 2e-5
    for other in (apg(0.0), guider("CFGGuider", cfg=1.0)):
        assert min(distances(found, run(both, sampled(other)), "sampled")) > 5e-4
    assert same(found, run(host, {**TEXT, **load("sampled"), **rest}), "final")


@pytest.mark.usefixtures("alone")
def test_their_per_step_patch_of_our_model_is_followed(both: Any) -> None:
    settings = {"target_mean": 0.25, "target_std": 0.5, "percentile": 100.0, "clip_outliers": False}
    found = run(both, patched("LTXVPerStepStatNormPatcher", factors="1, 1", **settings))
    # The last step ends at what was predicted, which their node has normed over both streams
    values = torch.cat([found["sampled_video"].flatten(), found["sampled_audio"].flatten()])
    assert values.mean().item() == pytest.approx(0.25, abs=1e-4)
    assert values.std().item() == pytest.approx(0.5, abs=1e-4)


def test_frames_that_their_mask_keeps_stay(both: Any, alone: Latents) -> None:
    masks: Prompt = {
        "black": node("EmptyImage", width=64, height=64, batch_size=1, color=0),
        "white": node("EmptyImage", width=64, height=64, batch_size=1, color=0xFFFFFF),
        "gray": node("ImageBatch", image1=["black", 0], image2=["white", 0]),
        "masks": node("ImageToMask", image=["gray", 0], channel="red"),
        "masked": node("LTXVSetVideoLatentNoiseMasks", samples=["first_v", 0], masks=["masks", 0]),
        "joined": node("LTXVConcatAVLatent", video_latent=["masked", 0], audio_latent=["first_a", 0]),
    }
    found = run(both, sampled(CFG, latent="joined", **masks))["sampled_video"]
    changes = (found - alone["first_video"]).abs().amax((0, 1, 3, 4))
    assert changes[0] < 1e-5  # the host mixes it with noise and takes the noise out again, in float32
    assert (changes[1:] > 0.5).all()


PARAMETERS = {"cfg": 3.0, "stg": 1.0, "perturb_attn": True, "rescale": 0.0, "modality_scale": 1.0, "skip_step": 0}
MULTIMODAL = guider("MultimodalGuider", parameters=["parameters", 0], skip_blocks="1")


def parameters(modality: str, **changes: Any) -> dict[str, Any]:
    return node("GuiderParameters", modality=modality, cross_attn=True, **{**PARAMETERS, **changes})


MARKED = node("LTXVApplySTG", model=["model", 0], block_indices="1")
LEAVE_OUT = "Leave that node out, or load the checkpoint with ComfyUI's own loader for it."
BLOCKS = f"model = 'LTX-2 Model': does not support replaced blocks. {LEAVE_OUT}"
REFUSED: dict[str, tuple[Prompt, str]] = {
    "MultimodalGuider": (sampled(MULTIMODAL, parameters=parameters("VIDEO")), BLOCKS),
    "STGGuiderNode": (
        sampled(guider("STGGuiderNode", "marked", cfg=3.0, stg=1.0, rescale=0.7), marked=MARKED),
        BLOCKS,
    ),
    "LTXPerturbedAttention": (patched("LTXPerturbedAttention", scale=2.0, rescale=0.5, cfg=3.0), BLOCKS),
    "LTXVAudioOnlyModel": (
        patched("LTXVAudioOnlyModel"),
        f"does not support a stream that is left out. {LEAVE_OUT}",
    ),
    "LTXICLoRALoaderModelOnly": (
        patched("LTXICLoRALoaderModelOnly", lora_name="style.safetensors", strength_model=1.0),
        "a LoRA cannot be loaded into it. Use LTX-2 LoRA before LTX-2 Model.",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
@pytest.mark.usefixtures("alone")
def test_what_our_model_cannot_follow_is_refused_in_words(both: Any, name: str) -> None:
    prompt, message = REFUSED[name]
    assert message in both.failure(prompt)


@pytest.mark.usefixtures("alone")
def test_block_numbers_without_their_guider_change_no_bit(both: Any, host: Any) -> None:
    found = run(both, patched("LTXVApplySTG", block_indices="1"))
    assert same(found, run(host, sampled(CFG)), "sampled")


@pytest.mark.usefixtures("alone")
def test_their_nodes_work_on_latents_that_are_not_ours(both: Any) -> None:
    files = both.run(
        {
            "empty": node("EmptyLTXVLatentVideo", width=64, height=64, length=25, batch_size=1),
            "normed": node(
                "LTXVStatNormLatent",
                latents=["empty", 0],
                target_mean=0.5,
                target_std=1.0,
                percentile=95.0,
                factor=1.0,
                clip_outliers=False,
            ),
            "some": node("LTXVSelectLatents", samples=["normed", 0], start_index=1, end_index=-1),
            "longer": node("LTXVAddLatents", latents1=["some", 0], latents2=["empty", 0]),
            "save": node("SaveLatent", samples=["longer", 0], filename_prefix="theirs"),
        }
    )
    latent = load_file(files["save"][0])["latent_tensor"]
    assert latent.shape == (1, 128, 3 + 4, 2, 2)
    assert (latent[:, :, :3] == 0.5).all() and not latent[:, :, 3:].any()


def test_their_guider_still_works_on_the_hosts_model_and_leaves_ours_alone(
    both: Any, host: Any, alone: Latents
) -> None:
    own = node("SmallModel", name=loader()["inputs"]["checkpoint"], channels=alone["first_audio"].shape[1])

    def guided(stg: float) -> Latents:
        video, audio = parameters("VIDEO", stg=stg), parameters("AUDIO", stg=stg, parameters=["video", 0])
        return run(both, sampled(MULTIMODAL, model=own, video=video, parameters=audio))

    # Without STG theirs is plain guidance; float32 in other batches
    plain = run(both, sampled(CFG, model=own))
    assert max(distances(guided(0.0), plain, "sampled")) < 2e-5
    assert min(distances(guided(1.0), plain, "sampled")) > 0.1
    again = {**STAGE_1, **save_latent(["stage1", 1], "again_")}
    again["stage1"] = node("LTX2TwoStageDenoise", **{**STAGE_1["stage1"]["inputs"], "seed": SEED + 1})
    assert same(run(both, again), run(host, again), "again")
