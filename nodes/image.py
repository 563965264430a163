"""Images that a clip must show."""

from __future__ import annotations

from comfy_api.latest import io
from torch import Tensor

from ..ltx2_core import types
from .conversions import to_condition
from .sockets import CATEGORY, ImagesSocket, bounds


class ImageCondition(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="LTX2TwoStageImageCondition",
            hidden=[io.Hidden.unique_id],  # for host.queued_literals
            display_name="LTX-2 Image Condition",
            category=CATEGORY,
            description="Makes the clip show an image at one of its frames. Chain several for several images. The "
            "image is fitted to the clip: scaled until it covers it, then cut at the centre.",
            search_aliases=["LTX-2", "image to video", "first frame", "last frame", "keyframe", "i2v"],
            inputs=[
                io.Image.Input("image", tooltip="One image of any size."),
                io.Int.Input(
                    "frame",
                    default=0,
                    **bounds("image frame"),
                    tooltip="Frame that shows the image. 0 is the first: the clip starts from it. -1 is the last, and "
                    "other negative numbers count from the end too.",
                ),
                io.Float.Input(
                    "strength",
                    default=1.0,
                    **bounds("image strength"),
                    step=0.01,
                    tooltip="1 keeps the image as it is, lower values let the model change it, 0 ignores it.",
                ),
                ImagesSocket.Input(
                    "images", optional=True, tooltip="Images for other frames, from another LTX-2 Image Condition."
                ),
            ],
            outputs=[
                ImagesSocket.Output(
                    "images", display_name="images", tooltip="The images so far, for LTX-2 Denoise or LTX-2 Generate."
                )
            ],
        )

    @classmethod
    def execute(
        cls, image: Tensor, frame: int, strength: float, images: tuple[types.ImageCondition, ...] | None = None
    ) -> io.NodeOutput:
        return io.NodeOutput((*(images or ()), to_condition(image, frame, strength)))
