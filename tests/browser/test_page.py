"""The pack in ComfyUI's page: progress in words and pictures on the nodes, and the device panel."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from chromium import Page

ROOT = Path(__file__).resolve().parents[2]
WORKFLOW = ROOT / "workflows" / "ltx2_two_stage_text_to_video.json"
PANEL, PREVIEW = ".ltx2-panel", "b_preview_with_metadata"
TAB, ENTER = ("Tab", 9), ("Enter", 13)
pytestmark = [pytest.mark.host, pytest.mark.xdist_group("browser")]

# The last of the innermost elements that say a text
CLICK = """(words => {
    const found = [...document.querySelectorAll('button, span, div, h2, h3, p')].filter(
        (element) => element.textContent.trim() === words && !element.querySelector('button, div, span'))
    found.at(-1)?.click()
    return found.length > 0
})(%s)"""
PICTURES = "[...document.images].filter((image) => image.src && image.complete)"

# Enough steps to be looked at while they run; the rest of the official workflow made tiny
TINY = {"text_encoder": "gemma-2.3", "width": 256, "height": 128, "frames": 17, "steps": 30, "filename_prefix": "page"}


def show_workflow(page: Page, name: str = WORKFLOW.stem, notes: bool = False, **changes: Any) -> None:
    """Loads an example, by default without its notes, and watches for pictures and the words on its nodes."""
    graph = json.loads(WORKFLOW.with_stem(name).read_text(encoding="utf-8"))
    if not notes:
        graph["nodes"] = [node for node in graph["nodes"] if node["type"] != "MarkdownNote"]
        graph["groups"] = []
    page.run(f"app.loadGraphData({json.dumps(graph)})")
    page.run(
        f"""(() => {{
            const values = {json.dumps({**TINY, **changes})}
            for (const node of app.graph._nodes)
                for (const widget of node.widgets ?? [])
                    if (widget.name in values) widget.value = values[widget.name]
            const api = window.comfyAPI.api.api
            window.seen = {{ pictures: [], words: [], ends: [] }}
            api.addEventListener('{PREVIEW}', (e) => seen.pictures.push(e.detail.nodeId))
            api.addEventListener('progress_text', (e) => seen.words.push([String(e.detail.nodeId), e.detail.text]))
            for (const end of ['execution_success', 'execution_error', 'execution_interrupted'])
                api.addEventListener(end, (e) => seen.ends.push([end, e.detail.exception_message ?? '']))
        }})()"""
    )


def queue(page: Page) -> None:
    page.run("seen.pictures = [], seen.words = [], seen.ends = [], app.queuePrompt(0)")


def wait_for_end(page: Page, end: str = "execution_success") -> None:
    page.wait_for("seen.ends.length > 0", 240)
    assert page.run("seen.ends[0]")[0] == end, page.run("seen.ends")


def node_id(page: Page, kind: str) -> str:
    return str(page.run(f"app.graph._nodes.find((node) => node.type === '{kind}').id"))


def words(page: Page, kind: str) -> list[str]:
    """What a node has said, oldest first."""
    node = node_id(page, kind)
    return [text for named, text in page.run("seen.words") if named == node]


def toggle_panel(page: Page) -> None:
    page.run("app.extensionManager.command.execute('Workspace.ToggleSidebarTab.ltx2-models')")
    page.wait_for(f"!!document.querySelector('{PANEL} h2')")


def show_runs(page: Page, theme: str, height: int) -> None:
    """The panel with the last runs, on a page that is high enough for it."""
    page.resize(1440, height)
    use_theme(page, theme)
    toggle_panel(page)
    wait_for_panel(page, "Last runs")


def panel_text(page: Page) -> str:
    return str(page.run(f"document.querySelector('{PANEL}').innerText"))


def wait_for_panel(page: Page, text: str, seconds: float = 240.0) -> None:
    page.wait_for(f"document.querySelector('{PANEL}').innerText.includes({json.dumps(text)})", seconds)


def close_messages(page: Page) -> None:
    page.run("app.extensionManager.toast.removeAll()")


def use_theme(page: Page, name: str) -> None:
    page.run(f"app.extensionManager.setting.set('Comfy.ColorPalette', '{name}')")


def width_of_panel(page: Page, width: int) -> None:
    """As dragging the sidebar's edge does it."""
    page.run(
        f"""(() => {{
            const side = document.querySelector('{PANEL}').closest('.p-splitterpanel')
            side.style.flex = '0 0 {width}px'
            side.style.minWidth = side.style.maxWidth = '{width}px'
        }})()"""
    )


def panel_box(page: Page) -> dict[str, float]:
    """The panel's rectangle, as high as its contents are."""
    return dict(
        page.run(
            f"""(() => {{
                const {{ x, y, width, height }} = document.querySelector('{PANEL}').getBoundingClientRect()
                const last = document.querySelector('{PANEL}').lastElementChild.getBoundingClientRect()
                return {{ x, y, width, height: Math.min(height, last.bottom + 16 - y) }}
            }})()"""
        )
    )


def picture_of(page: Page, name: str, folder: Path, clip: dict[str, float] | None = None) -> None:
    """Saves what is seen, for people to look at: into docs/images where SAVE_IMAGES=1."""
    target = ROOT / "docs" / "images" if os.environ.get("SAVE_IMAGES") == "1" else folder
    page.screenshot(target / name, clip)


@pytest.fixture
def released(host: Any) -> Iterator[None]:
    """No run in progress, and the mode that the workflow asks for, before and after."""
    host.post("/ltx2/mode", {"mode": "auto"})
    yield
    host.post("/ltx2/mode", {"mode": "auto"})


def test_the_template_browser_shows_the_workflows_and_opens_one(page: Page) -> None:
    names = {path.stem for path in WORKFLOW.parent.glob("*.json")}
    page.resize(1440, 1800)
    page.run("app.extensionManager.command.execute('Comfy.BrowseTemplates')")
    page.wait_for(CLICK % '"ltx2-two-stage"')
    page.wait_for(f"{json.dumps(sorted(names))}.every((name) => document.body.innerText.includes(name))")
    # Pictures are loaded when they come into view
    page.wait_for(f"{PICTURES}.length === {len(names)}")
    assert page.run(f"{PICTURES}.every((image) => image.naturalWidth > 100)")
    page.wait_for(CLICK % '"ltx2_two_stage_hq"')
    nodes = json.loads((WORKFLOW.parent / "ltx2_two_stage_hq.json").read_text(encoding="utf-8"))["nodes"]
    page.wait_for(f"app.graph._nodes.length === {len(nodes)}")
    opened = page.run("app.graph._nodes.map((node) => node.type)")
    assert sorted(opened) == sorted(node["type"] for node in nodes)


def test_before_any_run_the_panel_says_what_to_do(page: Page) -> None:
    toggle_panel(page)
    wait_for_panel(page, "No models are open")
    assert "Queue a workflow with LTX-2 Loader" in panel_text(page)
    assert page.run(f"document.querySelector('{PANEL} .ltx2-opened').hidden")


def test_actions_without_models_are_refused_with_what_to_do(host: Any) -> None:
    for action in ("release", "restore", "mode"):
        answer = host.post(f"/ltx2/{action}", {"mode": "auto"})
        assert answer["error"] == "No models are open." and "LTX-2 Loader" in answer["fix"]


def test_a_run_shows_words_and_pictures_and_the_panel_follows(page: Page, host: Any, tmp_path: Path) -> None:
    show_workflow(page)
    close_messages(page)
    toggle_panel(page)
    page.run("app.canvas.ds.offset[1] += 80")
    queue(page)
    page.wait_for("seen.pictures.length > 0", 120)
    wait_for_panel(page, "Stage 1: ")
    page.wait_for("seen.words.some(([node, text]) => text.includes('left'))")
    close_messages(page)
    picture_of(page, "page-running.webp", tmp_path)
    denoise = node_id(page, "LTX2TwoStageDenoise")
    assert denoise in page.run("seen.pictures")
    shown = page.run(
        f"app.graph.getNodeById({denoise}).widgets.find((widget) => widget.name === '$$node-text-preview').value"
    )
    assert shown.startswith("Stage 1: ")
    wait_for_end(page)
    said = words(page, "LTX2TwoStageDenoise")
    assert said[0] == "Stage 1: 0 of 30 steps"
    assert any("steps, about" in text and text.endswith("left") for text in said)
    assert said[-1].startswith("Stage 1: ") and "peak" in said[-1] and said[-1].endswith("Device mode: original")
    assert words(page, "LTX2TwoStageDecode")[-1].startswith("Decoding: ")
    wait_for_panel(page, "Last runs")
    text = panel_text(page)
    assert "original" in text and "Without a GPU every mode keeps the weights in host memory." in text
    memory = host.get("/ltx2/status")["models"]["memory"]
    assert f"of {memory['total'] / 1e9:.1f} GB" in text and "Other use" in text
    assert all(row in text for row in ("Base transformer", "Stage-2 transformer", "LoRAs", "Text encoder", "Upsampler"))
    assert all(stage in text for stage in ("Encoding text", "Stage 1", "Upsampling", "Stage 2", "Decoding"))
    assert page.run(f"document.querySelectorAll('{PANEL} .ltx2-stacked').length") == 1
    assert host.get("/ltx2/status")["stage"] is None


@pytest.mark.parametrize("theme", ["dark", "light"])
def test_the_panel_is_readable_in_both_themes_and_when_narrow(page: Page, theme: str, tmp_path: Path) -> None:
    show_runs(page, theme, 1180)
    close_messages(page)
    for width in (480, 320):
        width_of_panel(page, width)
        page.wait_for(f"document.querySelector('{PANEL}').clientWidth <= {width}")
        check_layout(page)
    picture_of(page, f"panel-{theme}.webp", tmp_path, panel_box(page))
    use_theme(page, "dark")


@pytest.fixture
def chinese(page: Page) -> Iterator[None]:
    page.run("app.extensionManager.setting.set('Comfy.Locale', 'zh')")
    yield
    page.run("app.extensionManager.setting.set('Comfy.Locale', 'en')")


@pytest.mark.usefixtures("chinese")
def test_the_panel_speaks_chinese_and_changes_with_the_setting(page: Page, tmp_path: Path) -> None:
    page.resize(1440, 1180)
    toggle_panel(page)
    wait_for_panel(page, "最近的运行")
    assert "没有 GPU 时，各模式的权重都在内存中。" in panel_text(page)  # noqa: RUF001
    page.run(f"window.comfyAPI.api.api.dispatchCustomEvent('ltx2.status', {json.dumps(gpu_status())})")
    wait_for_panel(page, "第 1 阶段：第 12 步，共 30 步，剩余约 2 min 10 s")  # noqa: RUF001
    check_layout(page)
    page.screenshot(tmp_path / "panel-zh.png", panel_box(page))
    text = panel_text(page)
    assert "没有 GPU" not in text
    assert all(words in text for words in ("设备模式", "显存", "锁页内存", "释放", "恢复", "第 2 阶段 Transformer"))
    # What stays English: names of files, devices and modes, the reason with the machine's figures
    assert [words for words in ("Memory", "Release", "Base transformer", "Stage", "Upsampl") if words in text] == []
    assert page.run(f"document.querySelector('{PANEL}').lang") == "zh"
    # 24 hours, and not the English of the browser
    ended = page.run(f"document.querySelector('{PANEL} .ltx2-run .ltx2-line .ltx2-faint').textContent")
    assert re.fullmatch(r"\d\d:\d\d", ended)
    page.run("app.extensionManager.setting.set('Comfy.Locale', 'en')")
    wait_for_panel(page, "Last runs")


def test_sizes_step_by_what_the_preset_takes(page: Page) -> None:
    show_workflow(page)
    typed = """((preset, size) => {
        const node = app.graph._nodes.find((node) => node.type === 'LTX2TwoStageDenoise')
        const widget = (name) => node.widgets.find((one) => one.name === name)
        widget('preset').value = preset
        widget('preset').callback(preset)
        widget('width').value = size
        widget('width').callback(size)
        return widget('width').value
    })(%s, %d)"""
    assert page.run(typed % ('"two-stage"', 544)) in (512, 576)
    assert page.run(typed % ('"one-stage"', 544)) == 544
    assert page.run(typed % ('"one-stage"', 550)) == 544
    assert page.run(typed % ('"hq"', 1088)) == 1088


def test_an_error_is_written_on_its_node(page: Page) -> None:
    show_workflow(page, seed=41)
    page.run(
        """(() => {
            const recipe = LiteGraph.createNode('LTX2TwoStageRecipe')
            app.graph.add(recipe)
            recipe.connect(0, app.graph._nodes.find((node) => node.type === 'LTX2TwoStageDenoise'), 'recipe')
            recipe.widgets.find((widget) => widget.name === 'video_blocks').value = '47'
        })()"""
    )
    queue(page)
    wait_for_end(page, "execution_error")
    assert "the model has blocks 0 to 2" in words(page, "LTX2TwoStageDenoise")[-1]
    assert page.run("seen.ends[0]")[1].startswith("video-guidance blocks = 47")


def test_every_word_of_the_panel_and_of_its_server_is_translated(page: Page, host: Any) -> None:
    languages = page.run(
        """(async () => {
            const load = (name) => import(`/extensions/ltx2-two-stage/panel/words/${name}.js`)
            const [en, zh] = await Promise.all([load('en'), load('zh')])
            return [en.words, zh.words, zh.server]
        })()"""
    )
    english, translated, heard = languages
    assert english.keys() == translated.keys()
    places = {key: set(re.findall(r"{\w+}", text)) for key, text in english.items()}
    assert places == {key: set(re.findall(r"{\w+}", text)) for key, text in translated.items()}
    plain = [key for key, text in translated.items() if not any("\u4e00" <= sign <= "\u9fff" for sign in text)]
    assert set(plain) == {"pair", "list", "stop"}
    status = host.get("/ltx2/status")
    said = {mode["words"] for mode in status["modes"]} | {stage["label"] for stage in status["runs"][0]["stages"]}
    for component in status["models"]["components"]:
        said |= {component["name"], component["note"]} - {""}
    assert len(said) > 14 and said - heard.keys() == set()


def gpu_status(**changes: Any) -> dict[str, Any]:
    """What the server would say in the middle of a run on a GPU: long words, large numbers, every part of the panel."""
    gb = 10**9
    stages = [("text", "Encoding text", 61), ("stage_1", "Stage 1", 8412), ("upsample", "Upsampling", 31)]
    stages += [("stage_2", "Stage 2", 1633), ("decode", "Decoding", 1204)]
    run = {"recipe": "two-stage", "mode": "snapshot", "ended": 1790000000.0}
    run["stages"] = [
        {"name": name, "label": label, "ms": ms, "peak_bytes": (30 + ms // 200) * gb} for name, label, ms in stages
    ]
    slow = {**run, "mode": "snapshot-low", "stages": [{**stage, "ms": stage["ms"] * 9} for stage in run["stages"]]}
    names = ("Base transformer", "Stage-2 transformer", "LoRAs", "Text encoder", "VAEs and vocoder", "Upsampler")
    sizes = ((37.9, 37.9), (0, 0), (0, 7.6), (0, 23.5), (2.4, 0), (1.0, 0))
    components = [
        {"name": name, "device": int(device * gb), "host": int(held * gb), "note": ""}
        for name, (device, held) in zip(names, sizes, strict=True)
    ]
    components[1]["note"] = "made for each stage 2"
    reason = (
        "auto chose snapshot: the second transformer is made on the GPU, the text encoder streams from host memory. It "
        "needs about 79.8 GB of the 92.1 GB of free GPU memory and 69.0 GB of the 180.2 GB of available host memory."
    )
    models = {
        "checkpoint": "/models/checkpoints/ltx-2.3-22b-dev-with-a-rather-long-name-of-its-own.safetensors",
        "generation": "2.3",
        "dtype": "bfloat16",
        "device": "NVIDIA RTX PRO 6000 Blackwell Workstation Edition",
        "place": "GPU",
        "mode": {"name": "snapshot", "reason": reason, "setting": "auto", "wanted": "snapshot-low"},
        "restorable": False,
        "components": components,
        "memory": {"ours": 41 * gb, "other": 12 * gb, "total": 102 * gb},
        "pinned": {"held": 69 * gb, "limit": 144 * gb},
    }
    stage = {"stage": "stage_1", "label": "Stage 1", "done": 12, "total": 30, "seconds_left": 130.0, "unit": "steps"}
    modes = [{"name": name, "words": "Words."} for name in ("auto", "resident", "snapshot", "snapshot-low", "original")]
    return {"models": models, "modes": modes, "stage": stage, "busy": True, "runs": [run, slow, run], **changes}


@pytest.mark.parametrize("theme", ["dark", "light"])
def test_what_a_gpu_shows_fits_into_the_narrow_panel(page: Page, theme: str, tmp_path: Path) -> None:
    show_runs(page, theme, 1300)
    for width in (480, 320):
        width_of_panel(page, width)
        page.wait_for(f"document.querySelector('{PANEL}').clientWidth <= {width}")
        page.run(f"window.comfyAPI.api.api.dispatchCustomEvent('ltx2.status', {json.dumps(gpu_status())})")
        wait_for_panel(page, "2 min 10 s left")
        check_layout(page)
        page.screenshot(tmp_path / f"gpu-{theme}-{width}.png", panel_box(page))
    text = panel_text(page)
    figures = ("49.0 GB free of 102.0 GB", "These models 41.0 GB", "75.0 GB free of 144.0 GB", "37.9 GB", "1 min 42 s")
    assert [words for words in figures if words not in text] == []
    use_theme(page, "dark")


def test_a_stage_keeps_its_colour_in_a_run_without_the_stages_before_it(page: Page, host: Any) -> None:
    toggle_panel(page)
    wait_for_panel(page, "Last runs")
    run = gpu_status()["runs"][0]
    cached = {**run, "stages": run["stages"][1:]}
    other = {**run, "stages": [{**run["stages"][0], "name": "stage_1 sampler", "label": "Sampler"}, run["stages"][1]]}
    status = {**host.get("/ltx2/status"), "runs": [cached, run, other]}
    page.run(f"window.comfyAPI.api.api.dispatchCustomEvent('ltx2.status', {json.dumps(status)})")
    page.wait_for(f"document.querySelectorAll('{PANEL} .ltx2-stacked').length === 3")
    bars = f"[...document.querySelectorAll('{PANEL} .ltx2-stacked')]"
    kinds = page.run(f"{bars}.map((bar) => [...bar.children].map((segment) => segment.className))")
    assert kinds[1] == [f"ltx2-stage-{index}" for index in range(5)]
    assert kinds[0] == kinds[1][1:]
    assert kinds[2] == ["ltx2-stage-5", "ltx2-stage-1"]


def check_layout(page: Page) -> None:
    """Nothing is cut off at the side, and every text stands out from what is behind it (WCAG AA)."""
    panel = f"document.querySelector('{PANEL}')"
    assert page.run(f"{panel}.scrollWidth <= {panel}.clientWidth")
    contrasts = page.run(CONTRASTS)
    assert min(contrasts.values()) >= 4.5, contrasts


# WCAG's contrast of every text in the panel with what is behind it
CONTRASTS = """(() => {
    const canvas = new OffscreenCanvas(1, 1).getContext('2d', { willReadFrequently: true })
    const over = (colours) => {
        canvas.globalAlpha = 1
        canvas.fillStyle = '#fff'
        canvas.fillRect(0, 0, 1, 1)
        for (const colour of colours) { canvas.fillStyle = colour; canvas.fillRect(0, 0, 1, 1) }
        return [...canvas.getImageData(0, 0, 1, 1).data].slice(0, 3)
    }
    const light = (rgb) => {
        const [r, g, b] = rgb.map((v) => v / 255).map((v) => (v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4))
        return 0.2126 * r + 0.7152 * g + 0.0722 * b
    }
    const found = {}
    for (const element of document.querySelectorAll('.ltx2-panel *')) {
        const text = [...element.childNodes].filter((n) => n.nodeType === 3).map((n) => n.textContent.trim()).join('')
        if (!text || !element.offsetParent || element.closest("[aria-disabled='true']")) continue
        const behind = []
        for (let at = element; at; at = at.parentElement) behind.unshift(getComputedStyle(at).backgroundColor)
        const [a, b] = [over(behind), over([...behind, getComputedStyle(element).color])].map(light)
        found[text.slice(0, 30)] = (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05)
    }
    return found
})()"""


def test_release_and_restore_with_the_keyboard(page: Page, host: Any) -> None:
    toggle_panel(page)
    wait_for_panel(page, "Last runs")
    held = host.get("/ltx2/status")["models"]["memory"]["ours"]
    assert held > 0 and f"These models {held / 1e6:.1f} MB" in panel_text(page)
    page.run(f"document.querySelector('{PANEL} select').focus()")
    page.press(*TAB)
    assert page.run("document.activeElement.textContent") == "Release"
    page.press(*ENTER)
    wait_for_panel(page, f"Released {held / 1e6:.1f} MB.")
    assert host.get("/ltx2/status")["models"]["memory"]["ours"] == 0
    assert page.run("document.activeElement.textContent") == "Release", "the focus stays where it was"
    page.press(*ENTER)
    wait_for_panel(page, "Nothing is loaded.")
    page.press(*TAB)
    page.press(*ENTER)
    wait_for_panel(page, "Restored ")
    restored = host.get("/ltx2/status")["models"]["memory"]["ours"]
    assert 0 < restored <= held
    assert f"Restored {restored / 1e6:.1f} MB." in panel_text(page)


# Titles of the nodes, notes included, whose rectangles have a part in common
OVERLAPS = """(() => {
    const boxes = app.graph._nodes.map((node) => {
        const height = Math.max(node.size[1], node.computeSize()[1])
        return { title: node.title, x: node.pos[0], y: node.pos[1] - LiteGraph.NODE_TITLE_HEIGHT, width: node.size[0],
            height: height + LiteGraph.NODE_TITLE_HEIGHT }
    })
    const meet = (a, b) => a.x < b.x + b.width && b.x < a.x + a.width && a.y < b.y + b.height && b.y < a.y + a.height
    return boxes.flatMap((a, i) => boxes.slice(i + 1).filter((b) => meet(a, b)).map((b) => [a.title, b.title]))
})()"""


@pytest.mark.parametrize("name", [WORKFLOW.stem, "ltx2_two_stage_hq"])
def test_what_a_run_shows_covers_no_note(page: Page, name: str, tmp_path: Path) -> None:
    """A square clip: the saver's player is as high as it is wide."""
    page.resize(2600, 1200)
    show_workflow(page, name, notes=True, width=256, height=256, frames=9, steps=4, seed=41)
    notes = page.run("app.graph._nodes.filter((node) => node.type === 'MarkdownNote').length")
    assert notes > 2 and page.run(OVERLAPS) == []
    queue(page)
    wait_for_end(page)
    shown = "app.graph._nodes.flatMap((node) => (node.widgets ?? []).map((widget) => widget.name))"
    # The player takes its height when the clip has come
    player = "app.graph._nodes.find((node) => node.type === 'SaveVideo')"
    page.wait_for(f"{player}.size[1] > {player}.size[0]")
    page.screenshot(tmp_path / f"{name}.png")
    kinds = page.run(shown)
    assert {"$$node-text-preview", "$$canvas-image-preview", "video-preview"} <= set(kinds)
    assert page.run(OVERLAPS) == []


@pytest.mark.usefixtures("released")
def test_a_mode_from_the_panel_holds_from_the_next_run_on(page: Page, host: Any) -> None:
    show_workflow(page, steps=2)
    toggle_panel(page)
    wait_for_panel(page, "Device mode")
    select = f"document.querySelector('{PANEL} select')"
    page.run(f"{select}.value = 'snapshot', {select}.dispatchEvent(new Event('change'))")
    wait_for_panel(page, "The next run takes it")
    mode = host.get("/ltx2/status")["models"]["mode"]
    assert (mode["name"], mode["wanted"]) == ("original", "snapshot")
    page.run("app.graph._nodes.find((node) => node.type === 'LTX2TwoStageDenoise').widgets[5].value = 11")
    queue(page)
    wait_for_end(page)
    wait_for_panel(page, "Set in the device panel")
    mode = host.get("/ltx2/status")["models"]["mode"]
    assert (mode["name"], mode["setting"], mode["wanted"]) == ("snapshot", "snapshot", None)


@pytest.mark.parametrize("wanted", ["fast", None, 3, ["auto"], {}])
def test_a_mode_that_does_not_exist_is_refused(host: Any, wanted: Any) -> None:
    answer = host.post("/ltx2/mode", {"mode": wanted})
    assert "is no device mode" in answer["error"] and "snapshot-low" in answer["fix"]
    assert "must be a JSON object" in host.post("/ltx2/mode", [wanted])["error"]


def test_without_previews_in_the_settings_there_are_none(page: Page) -> None:
    page.run("app.extensionManager.setting.set('Comfy.Execution.PreviewMethod', 'none')")
    try:
        show_workflow(page, steps=4, seed=21)
        queue(page)
        wait_for_end(page)
        assert page.run("seen.pictures") == []
        assert any("Stage 1" in text for text in words(page, "LTX2TwoStageDenoise"))
    finally:
        page.run("app.extensionManager.setting.set('Comfy.Execution.PreviewMethod', 'auto')")


def test_a_run_in_progress_is_left_alone_and_can_be_interrupted(page: Page, host: Any) -> None:
    show_workflow(page, steps=400, seed=31)
    toggle_panel(page)
    queue(page)
    page.wait_for("seen.words.some(([node, text]) => text.includes('of 400 steps, about'))", 120)
    assert "in progress" in host.post("/ltx2/release", {})["error"]
    assert "running" in host.post("/ltx2/restore", {})["error"]
    wait_for_panel(page, "of 400 steps")
    page.run(CLICK % '"Release"')
    wait_for_panel(page, "A run is in progress.")
    page.run("window.comfyAPI.api.api.interrupt()")
    wait_for_end(page, "execution_interrupted")
    assert words(page, "LTX2TwoStageDenoise")[-1].startswith("Stopped: Stage 1: ")
    page.wait_for(f"document.querySelector('{PANEL} .ltx2-stage').hidden")
    page.wait_for(f"document.querySelector('{PANEL} .ltx2-message').hidden")
    show_workflow(page, steps=2, seed=32)
    queue(page)
    wait_for_end(page)
    assert host.get("/ltx2/status")["busy"] is False
