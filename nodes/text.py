"""Prompts to conditioning."""

from __future__ import annotations

from comfy_api.latest import io

from ..ltx2_core.errors import LTX2Error
from ..ltx2_core.request import GenerationRequest
from ..ltx2_core.stages.validate import check_prompt
from .conversions import to_conditioning
from .handle import PipelineHandle
from .panel import Watched
from .sockets import CATEGORY, pipeline_input, prompt_inputs


class TextEncode(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="LTX2TwoStageTextEncode",
            hidden=[io.Hidden.unique_id],  # for host.queued_literals
            display_name="LTX-2 Text Encode",
            category=CATEGORY,
            description="Encodes the prompt and the negative prompt for picture and sound.",
            search_aliases=["LTX-2", "prompt", "negative prompt", "CLIP Text Encode", "Gemma"],
            inputs=[
                pipeline_input(),
                *prompt_inputs(),
            ],
            outputs=[
                io.Conditioning.Output("positive", display_name="positive", tooltip="The prompt, for both stages."),
                io.Conditioning.Output(
                    "negative", display_name="negative", tooltip="The negative prompt, for stage 1."
                ),
            ],
        )

    @classmethod
    def validate_inputs(cls, prompt: str | None = None) -> bool | str:
        try:
            if prompt is not None:
                check_prompt(prompt)
        except LTX2Error as error:
            return str(error)
        return True

    @classmethod
    def execute(cls, pipeline: PipelineHandle, prompt: str, negative_prompt: str) -> io.NodeOutput:
        check_prompt(prompt)
        # Guided, so that the negative prompt is encoded too: which preset will run is not known here
        request = GenerationRequest(prompt, pipeline.recipe("two-stage"), negative_prompt)
        watched = Watched(pipeline)
        with watched as progress:
            positive, negative = pipeline.pipeline.encode_prompt(request, progress)
            # No stage may have run: what is known of a prompt is said again
            watched.notices += [*positive.notices, *(negative.notices if negative else ())]
        assert negative is not None
        return io.NodeOutput(to_conditioning(positive, prompt), to_conditioning(negative, negative_prompt))
