"""The example workflows as data: nodes, links and notes of each, column by column."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

HUB = "https://huggingface.co"


@dataclass(frozen=True)
class Node:
    """A node; widgets that ``values`` does not name have their declared default.

    Attributes:
        key: what links of the template call it.
        links: input to the key and the output's name of the node that fills it.
        files: what the page offers to download, as its template format has it.
    """

    key: str
    type: str
    values: Mapping[str, Any] = field(default_factory=dict)
    links: Mapping[str, tuple[str, str]] = field(default_factory=dict)
    files: tuple[Mapping[str, str], ...] = ()
    title: str = ""


@dataclass(frozen=True)
class Note:
    title: str
    text: str
    size: tuple[int, int] = (290, 160)

    @property
    def key(self) -> str:
        return self.title


@dataclass(frozen=True)
class Column:
    title: str
    items: tuple[Node | Note, ...]
    colour: str = "#3f789e"


@dataclass(frozen=True)
class Template:
    """One example workflow.

    Attributes:
        name: of its files, and what the template browser shows.
        heading: of its thumbnail.
        line: what it is for, under the heading.
        shown: frames of the clip, from 0 to 1, that come from images.
    """

    name: str
    heading: str
    line: str
    columns: tuple[Column, ...]
    shown: tuple[float, ...] = ()


def _file(repository: str, name: str, folder: str, path: str = "") -> Mapping[str, str]:
    return {"name": name, "url": f"{HUB}/{repository}/resolve/main/{path}{name}", "directory": folder}


GEMMA = _file("Comfy-Org/ltx-2", "gemma_3_12B_it.safetensors", "text_encoders", "split_files/text_encoders/")
CHECKPOINT = _file("Lightricks/LTX-2.3", "ltx-2.3-22b-dev.safetensors", "checkpoints")
DISTILLED = _file("Lightricks/LTX-2.3", "ltx-2.3-22b-distilled-1.1.safetensors", "checkpoints")
DISTILLED_LORA = _file("Lightricks/LTX-2.3", "ltx-2.3-22b-distilled-lora-384-1.1.safetensors", "loras")
UPSAMPLER = _file("Lightricks/LTX-2.3", "ltx-2.3-spatial-upscaler-x2-1.1.safetensors", "latent_upscale_models")
CHECKPOINT_2_0 = _file("Lightricks/LTX-2", "ltx-2-19b-dev.safetensors", "checkpoints")
DISTILLED_LORA_2_0 = _file("Lightricks/LTX-2", "ltx-2-19b-distilled-lora-384.safetensors", "loras")
UPSAMPLER_2_0 = _file("Lightricks/LTX-2", "ltx-2-spatial-upscaler-x2-1.0.safetensors", "latent_upscale_models")


def _camera_lora(move: str) -> Mapping[str, str]:
    name = f"ltx-2-19b-lora-camera-control-{move}.safetensors"
    return _file(f"Lightricks/LTX-2-19b-LoRA-Camera-Control-{move.title()}", name, "loras")


DOLLY_IN, JIB_UP = _camera_lora("dolly-in"), _camera_lora("jib-up")

LIGHTHOUSE = (
    "A lighthouse keeper in a yellow raincoat climbs the last steps to the lantern room at dusk, rain running down the "
    "glass. The camera follows close behind, then rises past his shoulder to the sea outside, where long waves break "
    'white against the rocks. He lays a hand on the brass rail and says calmly: "She will hold through the night." '
    "Wind howls around the tower, rain drums on the panes, and the great lamp hums as it begins to turn, its warm beam "
    "sweeping across his face."
)
COMES_TO_LIFE = (
    "The scene comes to life: the light changes slowly as clouds pass, leaves and fabric stir in a gentle breeze, and "
    "the camera moves forward in one smooth, steady motion. Soft wind, distant birdsong and quiet footsteps are heard."
)
TRANSITION = (
    "In one continuous shot the camera glides through the scene, from the first view to the next, while the light "
    "shifts softly and everything stays in place. No cuts. A low hum of air, faint footsteps and a slow piano melody "
    "are heard."
)
SPEECH = (
    "A close portrait of a woman who speaks to the camera in a quiet room, calm and friendly. Her lips follow every "
    "word, she blinks and tilts her head a little, soft window light on her face. The camera does not move."
)
NEGATIVE = (
    "blurry, out of focus, low contrast, washed out colors, noise, compression artifacts, flickering, jitter, warped "
    "geometry, extra limbs, deformed hands, frozen motion, subtitles, watermark, logo, muffled or distorted sound, "
    "clipping, static, voice out of sync"
)

BLUE, GRAY, GREEN, GOLD = "#3f789e", "#88A", "#8A8", "#b58b2a"
IMAGE, PIPELINE = "IMAGE", "pipeline"


def _loader(*files: Mapping[str, str], **values: Any) -> Node:
    """The loader of a set: checkpoint, text encoder, distilled LoRA and upsampler, as far as they are given."""
    inputs = {"checkpoints": "checkpoint", "text_encoders": "text_encoder", "latent_upscale_models": "upsampler"}
    chosen = {"distilled_lora": "none"}
    for file in files:
        chosen[inputs.get(file["directory"], "distilled_lora")] = file["name"]
    return Node("loader", "LTX2TwoStageLoader", {**chosen, **values}, files=files)


_FULL = (CHECKPOINT, GEMMA, DISTILLED_LORA, UPSAMPLER)
_FULL_2_0 = (CHECKPOINT_2_0, GEMMA, DISTILLED_LORA_2_0, UPSAMPLER_2_0)


def _files_note(*files: Mapping[str, str], more: str = "") -> Note:
    rows = [f"| `{file['directory']}` | [`{file['name']}`]({file['url']}) |" for file in files]
    table = "\n".join(["| folder of `models/` | file |", "|---|---|", *rows])
    text = f"{table}\n\nPress **R** after adding files. For the text encoder a Gemma 3 12B folder works too. {more}"
    return Note("Files", text.strip() + "\n", (400, 270))


_OTHER_GENERATION = "For LTX-2 (19B) choose its own checkpoint, LoRA and upscaler: files of two generations do not mix."


def _models(*files: Mapping[str, str], more: str = _OTHER_GENERATION, **values: Any) -> Column:
    return Column("Models", (_loader(*files, **values), _files_note(*files, more=more)), BLUE)


def _generate(prompt: str, links: Mapping[str, tuple[str, str]] | None = None, **values: Any) -> Node:
    texts = {"prompt": prompt, "negative_prompt": NEGATIVE}
    pipeline = {"pipeline": ("loader", PIPELINE)}
    return Node("all", "LTX2TwoStageGenerate", {**texts, **values}, {**pipeline, **(links or {})})


def _save(video: tuple[str, str], name: str, *notes: Note) -> Column:
    """The saver comes last: the page makes it as high as the clip needs."""
    saver = Node("save", "SaveVideo", {"filename_prefix": f"video/LTX-2_{name}"}, {"video": video})
    return Column("Result", (*notes, saver), BLUE)


def _in_one_node(prompt: str, links: Mapping[str, tuple[str, str]]) -> Column:
    return Column("Both stages in one node", (_generate(prompt, links),), GREEN)


def _report(after: tuple[str, str], pipeline: str = "loader") -> Node:
    links = {"pipeline": (pipeline, PIPELINE), "after": after}
    return Node("report", "LTX2TwoStageReport", links=links)


def _picture(key: str, title: str = "") -> Node:
    return Node(key, "LoadImage", {"image": "example.png"}, title=title)


def _condition(key: str, picture: str, frame: int, before: str = "", strength: float = 1.0) -> Node:
    links = {"image": (picture, IMAGE)} | ({"images": (before, "images")} if before else {})
    return Node(key, "LTX2TwoStageImageCondition", {"frame": frame, "strength": strength}, links)


_SETTINGS = Note(
    "Settings",
    "Width and height are multiples of 64, frames 8 n + 1: 121 at 24 fps are 5 seconds. Steps 0 takes the preset's "
    "official number.\n",
    (400, 90),
)

TEXT_TO_VIDEO = Template(
    "ltx2_two_stage_text_to_video",
    "Text to video",
    "every stage a node of its own",
    (
        _models(*_FULL),
        Column(
            "Prompt",
            (
                Node(
                    "text",
                    "LTX2TwoStageTextEncode",
                    {"prompt": LIGHTHOUSE, "negative_prompt": NEGATIVE},
                    {"pipeline": ("loader", PIPELINE)},
                ),
                Note(
                    "Prompt",
                    "One paragraph in order of time: scene, action, camera, light, and **what is heard**. Put speech "
                    "in quotes.\n\nThe negative prompt steers stage 1 only.\n",
                ),
            ),
            GRAY,
        ),
        Column(
            "Stage 1, half size",
            (
                Node(
                    "stage1",
                    "LTX2TwoStageDenoise",
                    links={
                        "pipeline": ("loader", PIPELINE),
                        "positive": ("text", "positive"),
                        "negative": ("text", "negative"),
                    },
                ),
                Note(
                    "Stage 1",
                    "Width and height are those of the **finished** clip, multiples of 64. This stage works at half of "
                    "both.\n\nFrames are 8 n + 1: 121 at 24 fps are 5 seconds.\n\nSteps 0 takes the official number: "
                    "30 for LTX-2.3, 40 for LTX-2.\n",
                    (290, 240),
                ),
            ),
            GREEN,
        ),
        Column(
            "Between",
            (
                Node(
                    "switch",
                    "LTX2TwoStageLoRASwitch",
                    {"stage": "stage 2", "strength": 1.0},
                    {"pipeline": ("stage1", PIPELINE)},
                ),
                Node(
                    "up",
                    "LTX2TwoStageUpsample",
                    links={"pipeline": ("stage1", PIPELINE), "latent": ("stage1", "latent")},
                ),
                Note(
                    "Between the stages",
                    "The distilled LoRA is switched in, and the video latent doubles in width and height.\n\nOfficial "
                    "strength in stage 2: **1** for the two-stage preset, **0.5** for hq. Without the switch, Refine "
                    "uses the preset's own.\n",
                    (290, 200),
                ),
            ),
            GOLD,
        ),
        Column(
            "Stage 2, full size",
            (
                Node(
                    "stage2",
                    "LTX2TwoStageRefine",
                    links={
                        "pipeline": ("switch", PIPELINE),
                        "positive": ("text", "positive"),
                        "latent": ("up", "latent"),
                    },
                ),
                Note(
                    "Stage 2",
                    "Three steps at full size with the prompt alone. Size, seed and images come with the latent.\n\n"
                    "The official recipe keeps the **sound of stage 1**; audio_source changes that.\n",
                    (290, 180),
                ),
            ),
            GREEN,
        ),
        Column(
            "Decode",
            (
                Node(
                    "decode",
                    "LTX2TwoStageDecode",
                    links={"pipeline": ("stage2", PIPELINE), "latent": ("stage2", "latent")},
                ),
                Note("Decode", "Frames and sound. It also takes the latent of Denoise, to look at stage 1.\n"),
            ),
            GRAY,
        ),
        _save(("decode", "video"), "two_stage"),
    ),
)

IMAGE_TO_VIDEO = Template(
    "ltx2_two_stage_image_to_video",
    "Image to video",
    "the clip starts from an image",
    (
        _models(*_FULL),
        Column(
            "First image",
            (
                _picture("picture"),
                _condition("first", "picture", 0),
                Note(
                    "Images",
                    "Frame 0 is where the clip starts. Chain more of these for other frames; without any it is text to "
                    "video.\n",
                ),
            ),
            GRAY,
        ),
        _in_one_node(COMES_TO_LIFE, {"images": ("first", "images")}),
        _save(("all", "video"), "image_to_video", _SETTINGS),
    ),
    shown=(0.0,),
)

HQ = Template(
    "ltx2_two_stage_hq",
    "HQ",
    "second-order sampler, 1920 x 1088",
    (
        _models(*_FULL),
        Column(
            "Both stages, hq preset",
            (
                _generate(LIGHTHOUSE, preset="hq", width=1920, height=1088),
                Note(
                    "The hq preset",
                    "15 steps of the second-order sampler res_2s in stage 1, 3 in stage 2. The distilled LoRA acts in "
                    "both: 0.25, then 0.5. Made for 1920x1088, which is five times the pixels of 768x512: begin small "
                    "if memory is short.\n",
                    (420, 160),
                ),
            ),
            GREEN,
        ),
        _save(("all", "video"), "hq", _SETTINGS),
    ),
)

DISTILLED_TEMPLATE = Template(
    "ltx2_two_stage_distilled",
    "Distilled",
    "8 + 3 steps, no guidance",
    (
        _models(DISTILLED, GEMMA, UPSAMPLER, more="The distilled checkpoint takes no distilled LoRA."),
        Column(
            "Both stages, distilled preset",
            (
                _generate(LIGHTHOUSE, preset="distilled", negative_prompt=""),
                Note(
                    "The distilled preset",
                    "8 fixed steps at half size and 3 at full size, one pass each: the fastest preset. Steps stay 0, "
                    "the negative prompt stays empty, and the sound is that of stage 2.\n",
                    (420, 130),
                ),
            ),
            GREEN,
        ),
        _save(("all", "video"), "distilled", _SETTINGS),
    ),
)

FIRST_LAST = Template(
    "ltx2_two_stage_first_last_frame",
    "First and last frame",
    "from one image to another",
    (
        _models(*_FULL),
        Column("Two images", (_picture("start", "First image"), _picture("end", "Last image")), GRAY),
        Column(
            "Where they are shown",
            (
                _condition("first", "start", 0),
                _condition("last", "end", -1, "first"),
                Note(
                    "Frames",
                    "0 is the first frame, **-1** the last one, whatever the length of the clip. Lower the last "
                    "image's strength to let the motion end more freely.\n",
                ),
            ),
            GRAY,
        ),
        _in_one_node(TRANSITION, {"images": ("last", "images")}),
        _save(("all", "video"), "first_last_frame", _SETTINGS),
    ),
    shown=(0.0, 1.0),
)

KEYFRAMES = Template(
    "ltx2_two_stage_keyframes",
    "Keyframes",
    "images at any frames",
    (
        _models(*_FULL),
        Column(
            "Images",
            (_picture("one", "Image 1"), _picture("two", "Image 2"), _picture("three", "Image 3")),
            GRAY,
        ),
        Column(
            "Keyframes",
            (
                _condition("first", "one", 0),
                _condition("middle", "two", 60, "first", 0.8),
                _condition("last", "three", -1, "middle", 0.8),
                Note(
                    "Keyframes",
                    "Each node adds one image: chain as many as you like, one per frame. Frame 60 is the middle of 121 "
                    "frames: **change it with the clip's length**, a shorter clip has no such frame. Negative numbers "
                    "count from the end. Strength 1 keeps an image as it is, less lets the model change it.\n",
                    (290, 230),
                ),
            ),
            GRAY,
        ),
        _in_one_node(TRANSITION, {"images": ("last", "images")}),
        _save(("all", "video"), "keyframes", _SETTINGS),
    ),
    shown=(0.0, 0.5, 1.0),
)

USER_LORAS = Template(
    "ltx2_two_stage_user_loras",
    "User LoRAs",
    "any number, in either stage",
    (
        _models(*_FULL_2_0, more="This one uses LTX-2 (19B), for which Lightricks published camera LoRAs."),
        Column(
            "LoRAs",
            (
                Node(
                    "dolly",
                    "LTX2TwoStageLoRA",
                    {"lora": DOLLY_IN["name"], "strength": 1.0, "stage": "both"},
                    {"pipeline": ("loader", PIPELINE)},
                    (DOLLY_IN,),
                ),
                Node(
                    "jib",
                    "LTX2TwoStageLoRA",
                    {"lora": JIB_UP["name"], "strength": 0.5, "stage": "stage 1"},
                    {"pipeline": ("dolly", PIPELINE)},
                    (JIB_UP,),
                ),
                Note(
                    "LoRAs",
                    f"Needs LTX-2 files and two camera LoRAs: [dolly in]({DOLLY_IN['url']}) and "
                    f"[jib up]({JIB_UP['url']}) in `models/loras`, or your own. Stage 1 decides about content and "
                    "motion, stage 2 about detail.\n\nAnother strength or LoRA does not read the checkpoint again. "
                    "LoRAs of LTX-2 do not fit LTX-2.3.\n",
                    (290, 240),
                ),
            ),
            GOLD,
        ),
        _in_one_node(LIGHTHOUSE, {"pipeline": ("jib", PIPELINE)}),
        _save(("all", "video"), "user_loras", _SETTINGS),
    ),
)

LOW_VRAM = Template(
    "ltx2_two_stage_low_vram",
    "Low VRAM",
    "one set of weights on the GPU",
    (
        _models(*_FULL, device_mode="snapshot-low", precision="fp8"),
        Column(
            "Less memory",
            (
                Node("recipe", "LTX2TwoStageRecipe", {"guidance_passes": "separate"}),
                Note(
                    "What saves memory",
                    "**device_mode snapshot-low** keeps one set of transformer weights on the GPU and a copy in host "
                    "memory: 44.6 GB of VRAM at 768x512 and 121 frames, where resident takes 110.6 GB, with the same "
                    "result.\n\n**precision fp8** quantises the large layers while they are read: about 14 GB less "
                    "again, and slightly other results. *auto* keeps what the checkpoint has.\n\n"
                    "**guidance_passes separate** runs the passes one after the other: slower, and less memory for "
                    "activations.\n\nSmaller or shorter clips need less, too.\n",
                    (290, 400),
                ),
            ),
            GOLD,
        ),
        _in_one_node(LIGHTHOUSE, {"recipe": ("recipe", "recipe")}),
        _save(("all", "video"), "low_vram"),
        Column(
            "What it took",
            (
                _report(("all", "images")),
                Note(
                    "Report",
                    "Time, peak memory and traffic of every stage, the device mode and why it was chosen, and where "
                    "the weights are now.\n",
                ),
            ),
            GRAY,
        ),
    ),
)

AUDIO_TO_VIDEO = Template(
    "ltx2_two_stage_audio_to_video",
    "Audio to video",
    "the picture follows a sound",
    (
        _models(*_FULL),
        Column(
            "Sound",
            (
                Node("sound", "LoadAudio", {"audio": "speech.wav"}),
                Note(
                    "Sound",
                    "Needs **your own sound**: choose or upload a file. It is cut to the clip's length, or followed by "
                    "silence, and the clip has it as it is.\n\n121 frames at 24 fps are 5 seconds: set frames to what "
                    "your sound needs.\n",
                    (290, 200),
                ),
            ),
            GRAY,
        ),
        _in_one_node(SPEECH, {"audio": ("sound", "AUDIO")}),
        _save(("all", "video"), "audio_to_video", _SETTINGS),
    ),
)

NATIVE_SAMPLER = Template(
    "ltx2_two_stage_native_sampler",
    "ComfyUI's sampler",
    "stage 2 with native nodes",
    (
        _models(*_FULL),
        Column(
            "Prompt",
            (
                Node(
                    "text",
                    "LTX2TwoStageTextEncode",
                    {"prompt": LIGHTHOUSE, "negative_prompt": NEGATIVE},
                    {"pipeline": ("loader", PIPELINE)},
                ),
                Node(
                    "rate",
                    "LTXVConditioning",
                    {"frame_rate": 24.0},
                    {"positive": ("text", "positive"), "negative": ("text", "negative")},
                ),
            ),
            GRAY,
        ),
        Column(
            "Stage 1, ours",
            (
                Node(
                    "stage1",
                    "LTX2TwoStageDenoise",
                    links={
                        "pipeline": ("loader", PIPELINE),
                        "positive": ("rate", "positive"),
                        "negative": ("rate", "negative"),
                    },
                ),
                Node(
                    "up",
                    "LTX2TwoStageUpsample",
                    links={"pipeline": ("stage1", PIPELINE), "latent": ("stage1", "latent")},
                ),
            ),
            GREEN,
        ),
        Column(
            "The model as a MODEL",
            (
                Node("model", "LTX2TwoStageModel", {"stage": "stage 2"}, {"pipeline": ("loader", PIPELINE)}),
                Node(
                    "guider", "BasicGuider", links={"model": ("model", "model"), "conditioning": ("rate", "positive")}
                ),
                Node("noise", "RandomNoise", {"noise_seed": 10}),
                Node("sampler", "KSamplerSelect", {"sampler_name": "euler"}),
                Node("sigmas", "ManualSigmas", {"sigmas": "0.909375, 0.725, 0.421875, 0"}),
            ),
            GOLD,
        ),
        Column(
            "Stage 2, ComfyUI's",
            (
                Node(
                    "stage2",
                    "SamplerCustomAdvanced",
                    links={
                        "noise": ("noise", "NOISE"),
                        "guider": ("guider", "GUIDER"),
                        "sampler": ("sampler", "SAMPLER"),
                        "sigmas": ("sigmas", "SIGMAS"),
                        "latent_image": ("up", "latent"),
                    },
                ),
                Node("picture", "LTXVSeparateAVLatent", links={"av_latent": ("stage2", "output")}, title="Stage 2"),
                Node("sound", "LTXVSeparateAVLatent", links={"av_latent": ("up", "latent")}, title="Stage 1"),
                Node(
                    "both",
                    "LTXVConcatAVLatent",
                    links={
                        "video_latent": ("picture", "video_latent"),
                        "audio_latent": ("sound", "audio_latent"),
                    },
                ),
                Note(
                    "Stage 2 by native nodes",
                    "LTX-2 Model shares the pipeline's weights. The noise levels are the official ones, and the sound "
                    "is that of stage 1, as in the two-stage preset. Another sampler, guider or schedule goes here.\n",
                    (290, 160),
                ),
            ),
            GREEN,
        ),
        Column(
            "Decode and report",
            (
                Node(
                    "decode",
                    "LTX2TwoStageDecode",
                    {"fps": 24.0},
                    {"pipeline": ("loader", PIPELINE), "latent": ("both", "latent")},
                ),
                _report(("decode", "images")),
            ),
            GRAY,
        ),
        _save(("decode", "video"), "native_sampler"),
    ),
)

TEMPLATES = (
    TEXT_TO_VIDEO,
    IMAGE_TO_VIDEO,
    HQ,
    DISTILLED_TEMPLATE,
    FIRST_LAST,
    KEYFRAMES,
    USER_LORAS,
    LOW_VRAM,
    AUDIO_TO_VIDEO,
    NATIVE_SAMPLER,
)
