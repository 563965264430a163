"""The transformer of one stage for ComfyUI's own samplers."""

from __future__ import annotations

from comfy_api.latest import io

from ..ltx2_core.errors import SettingError
from ..ltx2_core.limits import checked
from ..ltx2_core.recipe_choice import RecipeChoice
from ..ltx2_core.recipes import RECIPE_NAMES
from ..ltx2_core.stages.belonging import check_adapters
from ..ltx2_core.types import Phase
from .handle import PipelineHandle
from .native_model import native_model
from .request import node_choice
from .sockets import CATEGORY, UNCONNECTED, Unconnected, pipeline_input, recipe_input

STAGE_1, STAGE_2 = "stage 1", "stage 2"


class Model(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="LTX2TwoStageModel",
            display_name="LTX-2 Model",
            category=CATEGORY,
            description="The transformer of one stage as a MODEL for ComfyUI's own samplers. The MODELs of both stages "
            "share the pipeline's weights and its device mode: nothing is loaded twice.",
            search_aliases=["LTXV", "LTX-2", "KSampler", "guider"],
            inputs=[
                pipeline_input(),
                io.Combo.Input(
                    "stage", options=[STAGE_1, STAGE_2], default=STAGE_1, tooltip="Stage whose LoRA strengths it has."
                ),
                io.Combo.Input(
                    "preset",
                    options=list(RECIPE_NAMES),
                    default="two-stage",
                    tooltip="Official recipe, for the strength of the distilled LoRA: two-stage and keyframes "
                    "0 in stage 1 and 1 in stage 2, hq 0.25 and 0.5, distilled 1 in both on a dev checkpoint, "
                    "one-stage 0. Steps and guidance are the sampler's.",
                ),
                recipe_input(),
            ],
            outputs=[
                io.Model.Output(
                    "model",
                    display_name="model",
                    tooltip="For samplers and guiders. LoRAs come from LTX-2 LoRA; ControlNets, guide frames and "
                    "patches inside the network are refused.",
                )
            ],
        )

    @classmethod
    def execute(
        cls, pipeline: PipelineHandle, stage: str, preset: str, recipe: RecipeChoice | Unconnected | None = UNCONNECTED
    ) -> io.NodeOutput:
        models = pipeline.pipeline.models
        choice, _ = node_choice(preset, 0, recipe)
        chosen = pipeline.chosen(choice)
        strength = chosen.distilled_strength
        for value in strength:
            checked("distilled-strength", value)
        phase = Phase.STAGE_1 if stage == STAGE_1 else Phase.STAGE_2
        check_adapters(models, chosen, (phase,))
        if strength[phase is Phase.STAGE_2] and not models.has_distilled_lora:
            fix = "Choose one in LTX-2 Loader, or the distilled preset for a checkpoint that is distilled itself."
            raise SettingError("distilled-lora", None, f"{stage} of the {preset} preset needs one", fix)
        return io.NodeOutput(native_model(pipeline, phase, models.adapter_strengths(phase, strength)))
