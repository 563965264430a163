"""What the last run cost, and what is where."""

from __future__ import annotations

import dataclasses
import json
from io import BytesIO
from typing import Any

from comfy_api.latest import io, ui

from ..device_manager.report import places_table, stage_chart, stage_table
from ..ltx2_core.plain_text import LONGEST_REPORT, plain
from ..ltx2_core.request import GenerationRequest
from ..ltx2_core.types import RunReport
from .chart import draw
from .handle import PipelineHandle
from .sockets import CATEGORY, pipeline_input


class Report(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="LTX2TwoStageReport",
            display_name="LTX-2 Report",
            category=CATEGORY,
            description="What the last run cost: time, peak memory and traffic of every stage, the device mode and why "
            "it was chosen, and where the weights are now. Reports the stages of this run that came before it.",
            search_aliases=["LTX-2", "memory", "VRAM", "benchmark", "timing"],
            is_output_node=True,
            inputs=[
                pipeline_input(),
                io.AnyType.Input(
                    "after",
                    optional=True,
                    tooltip="Any output of the node that must run first, such as the images of LTX-2 Decode or of "
                    "LTX-2 Generate.",
                ),
            ],
            outputs=[
                io.String.Output("report", display_name="report", tooltip="The tables as text."),
                io.String.Output("json", display_name="json", tooltip="The same numbers as JSON, memory in bytes."),
                io.Image.Output("chart", display_name="chart", tooltip="Time and peak memory of every stage, drawn."),
                io.SVG.Output("svg", display_name="svg", tooltip="The chart as SVG, for Save SVG."),
            ],
        )

    @classmethod
    def fingerprint_inputs(cls, **inputs: Any) -> float:
        """Never equal to anything, itself included: what a run cost is not decided by the inputs."""
        return float("nan")

    @classmethod
    def execute(cls, pipeline: PipelineHandle, after: Any = None) -> io.NodeOutput:  # noqa: ARG003 - it orders nodes
        report = pipeline.pipeline.last_report()
        chart = stage_chart([dataclasses.asdict(stage) for stage in report.stages])
        text, image = report_text(report), draw(chart)
        as_json = json.dumps(dataclasses.asdict(report), indent=2)
        shown = {**ui.PreviewImage(image, cls=cls).as_dict(), **ui.PreviewText(text).as_dict()}
        return io.NodeOutput(text, as_json, image, io.SVG.Type([BytesIO(chart.svg().encode())]), ui=shown)


def notes_shown(pipeline: PipelineHandle, request: GenerationRequest) -> ui.PreviewText | None:
    """What the user should read of a stage, for its node; None where there is nothing."""
    notes = pipeline.pipeline.notices(request)
    return ui.PreviewText("\n".join(f"Note: {note}" for note in notes)) if notes else None


def stages_text(report: RunReport) -> str:
    """The stages of a run as a table, with the device mode."""
    stages = [dataclasses.asdict(stage) for stage in report.stages]
    return plain(stage_table(stages, report.mode, report.mode_reason, report.notices), LONGEST_REPORT)


def report_text(report: RunReport) -> str:
    """Both tables of a report, and what it is of."""
    recipe = [f"{report.recipe}, rules {report.revision}, seed {report.seed}"] if report.recipe else []
    status = {
        "device": report.device_bytes,
        "host": report.host_bytes,
        "pinned": {"all": report.pinned_bytes},
    }
    head = ", ".join([*recipe, f"on {report.device}"])
    return "\n\n".join([head, stages_text(report), places_table(status)])
