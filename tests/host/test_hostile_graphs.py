"""Workflows that nobody means, queued in a real ComfyUI: see ``tests/fuzz/graphs.py``."""

from __future__ import annotations

import json
import os
import sys
import urllib.error
import urllib.request
import uuid
from pathlib import Path
from typing import Any

import psutil
import pytest
from host_graphs import RECIPE, Prompt, loader, node, save_latent

sys.path.append(str(Path(__file__).parents[1] / "fuzz"))
from graphs import FEW, LONGEST_SECONDS, hostile, problem_of, problem_of_refusal

pytestmark = [pytest.mark.host, pytest.mark.xdist_group("host")]

RUN_SECONDS = 20.0  # of the host's processor, for a whole run
COUNT = int(os.environ.get("HOSTILE_GRAPHS", FEW))
SIZE: dict[str, Any] = {"width": 64, "height": 64, "frames": 9, "fps": 24.0, "seed": 3, "steps": 1}


def base() -> Prompt:
    """Most nodes of the pack, which run in less than a second on tiny files."""
    pipeline, recipe = ["switch", 0], ["recipe", 0]
    return {
        "loader": loader(video_vae="none", audio_vae="none", text_projection="none", precision="auto"),
        "lora": node("LTX2TwoStageLoRA", pipeline=["loader", 0], lora="style.safetensors", strength=0.5, stage="both"),
        "switch": node("LTX2TwoStageLoRASwitch", pipeline=["lora", 0], stage="stage 2", strength=1.0),
        "recipe": node(
            "LTX2TwoStageRecipe",
            **{**RECIPE, "steps": 1, "sigmas": "", "refine_sigmas": "0.5, 0"},
            schedule_tokens=-1,
            guidance_passes="preset",
        ),
        "picture": node("LoadImage", image="example.png"),
        "image": node("LTX2TwoStageImageCondition", image=["picture", 0], frame=0, strength=1.0),
        "text": node("LTX2TwoStageTextEncode", pipeline=["loader", 0], prompt="A kite.", negative_prompt="dull"),
        "stage1": node(
            "LTX2TwoStageDenoise",
            pipeline=pipeline,
            positive=["text", 0],
            negative=["text", 1],
            images=["image", 0],
            recipe=recipe,
            preset="two-stage",
            **SIZE,
        ),
        "up": node("LTX2TwoStageUpsample", pipeline=pipeline, latent=["stage1", 1]),
        "stage2": node(
            "LTX2TwoStageRefine",
            pipeline=pipeline,
            positive=["text", 0],
            latent=["up", 0],
            audio_source="preset",
            preset="from latent",
            fps=0.0,
            seed=-1,
        ),
        "decode": node("LTX2TwoStageDecode", pipeline=pipeline, latent=["stage2", 1], fps=0.0),
        "report": node("LTX2TwoStageReport", pipeline=pipeline, after=["decode", 0]),
        **save_latent(["stage2", 1], "hostile"),
    }


def sent(host: Any, prompt: Prompt) -> tuple[int, Any]:
    """Status and answer of ComfyUI's server."""
    data = json.dumps({"prompt": prompt, "client_id": uuid.uuid4().hex}).encode()
    request = urllib.request.Request(host.url + "/prompt", data, {"Content-Type": "application/json"})
    try:
        with urllib.request.urlopen(request, timeout=120) as answer:
            return answer.status, json.load(answer)
    except urllib.error.HTTPError as refusal:
        text = refusal.read()
        return refusal.code, json.loads(text) if text.startswith(b"{") else text


def busy(host: Any) -> float:
    """Seconds of processor time that the host has used."""
    times = psutil.Process(host.process.pid).cpu_times()
    return float(times.user + times.system)


def test_each_is_refused_with_words_or_runs(host: Any) -> None:
    host.run(base())  # what is loaded once is no part of a graph's time
    problems, refused, failed, slowest = [], 0, 0, 0.0
    for what, prompt in hostile(base(), COUNT):
        logged, begun = len(host.log), busy(host)
        status, answer = sent(host, prompt)
        if status == 200:
            entry = host.wait(answer["prompt_id"])
            problem = problem_of(entry)
            failed += entry["status"]["status_str"] != "success"
        else:
            refused += 1
            problem = problem_of_refusal(answer)
            if status >= 500 and "ltx2-two-stage" in host.log[logged:]:
                problem = f"status {status}\n{host.log[logged:][-1500:]}"
        seconds = busy(host) - begun
        slowest = max(slowest, seconds)
        if problem is None and seconds > (RUN_SECONDS if status == 200 else LONGEST_SECONDS):
            problem = f"it took {seconds:.1f} s"
        if problem is not None:
            problems.append(f"{what}\n{problem}")
    summary = f"{COUNT} graphs: {refused} refused, {failed} failed with words, slowest {slowest:.1f} s"
    assert not problems, "\n\n".join([summary, f"{len(problems)} problems", *problems])
    sys.stdout.write(f"\n{summary}\n")
