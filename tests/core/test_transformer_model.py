"""The transformer against a plain float64 recomputation, and what it promises its callers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import cache
from typing import Any, Literal

import pytest
import torch
from ltx2_two_stage.ltx2_core.models.transformer.attention import sdpa
from ltx2_two_stage.ltx2_core.models.transformer.config import StreamConfig, TransformerConfig
from ltx2_two_stage.ltx2_core.models.transformer.model import LTXTransformer
from ltx2_two_stage.ltx2_core.models.transformer.positions import audio_positions, video_positions
from ltx2_two_stage.ltx2_core.types import (
    AudioGeometry,
    AudioLatentShape,
    BatchItem,
    CrossTimestepRule,
    Perturbation,
    ScaleFactors,
    StreamInput,
    VideoLatentShape,
)
from torch import Tensor, nn

SPLIT, OWN, OTHER = CrossTimestepRule.SPLIT, CrossTimestepRule.OWN, CrossTimestepRule.OTHER
GATE_SCALE = 1500.0  # unlike the other multiplier, 1000, so that mixing the two shows
SHAPE, AUDIO_SHAPE = VideoLatentShape(1, 6, 2, 2, 3), AudioLatentShape(1, 2, 5, 4)
GEOMETRY, SCALE = AudioGeometry(16000, 160, 4, 2, 4), ScaleFactors(8, 32, 32)
# Float32 rounding of outputs of order 1, after two blocks; every rule and row moves them by 1e-2 or more.
ROUNDING = 5e-6


def build(new: bool = True, layers: int = 2, attention: Any = sdpa) -> LTXTransformer:
    """A small model with the weights of docs/model.md 11.2: none is zero or one."""
    config = TransformerConfig(
        video=StreamConfig(6, 2, 16, (20, 2048, 2048)),
        audio=StreamConfig(8, 2, 8, (20,)),
        num_layers=layers,
        norm_eps=1e-6,
        timestep_scale=1000.0,
        cross_gate_timestep_scale=GATE_SCALE,
        rope_theta=10000.0,
        rope_layout="split",
        rope_float64=True,
        gated_attention=new,
        prompt_modulation=new,
        caption_channels=None if new else 12,
    )
    model = LTXTransformer(config, attention).eval().requires_grad_(False)
    generator = torch.Generator().manual_seed(3)
    for name, parameter in model.named_parameters():
        noise = torch.randn(parameter.shape, generator=generator)
        if name.endswith("_norm.weight"):
            parameter.copy_(1 + 0.2 * noise)
        elif name.endswith(".weight"):
            parameter.copy_(noise * (0.64 / parameter.shape[1]) ** 0.5)
        else:
            parameter.copy_(0.3 * noise)
    return model


@cache
def shared(new: bool = True) -> LTXTransformer:
    return build(new)


def inputs(
    model: LTXTransformer,
    batch: int = 1,
    dtype: torch.dtype = torch.float32,
    sigma: float = 0.7,
    audio_sigma: float = 0.7,
) -> tuple[StreamInput, StreamInput]:
    generator = torch.Generator().manual_seed(9)
    captions = model.config.caption_channels

    def stream(
        name: Literal["video", "audio"], level: float, tokens: int, width: int, positions: Tensor
    ) -> StreamInput:
        channels = model.config.video.channels if name == "video" else model.config.audio.channels
        return StreamInput(
            latent=torch.randn(batch, tokens, channels, generator=generator).to(dtype),
            timesteps=torch.full((batch, 1), level),
            sigma=torch.full((batch,), level),
            context=torch.randn(batch, 7, captions or width, generator=generator).to(dtype),
            rope=model.stream_rope(positions, name, dtype),
        )

    return (
        stream("video", sigma, SHAPE.token_count, 32, video_positions(SHAPE, 24.0, SCALE)),
        stream("audio", audio_sigma, AUDIO_SHAPE.token_count, 16, audio_positions(AUDIO_SHAPE, GEOMETRY)),
    )


def image_levels(video: StreamInput) -> StreamInput:
    """A nearly clean first latent frame."""
    mask = torch.ones(video.latent.shape[:2])
    mask[:, : SHAPE.height * SHAPE.width] = 0.1
    return replace(video, timesteps=mask * video.sigma[:, None])


def items(*perturbations: Perturbation) -> list[BatchItem]:
    """A batch whose items each have their own latent and text."""
    return [BatchItem(number, perturbation) for number, perturbation in enumerate(perturbations)]


def difference(a: tuple[Tensor | None, ...], b: tuple[Tensor | None, ...]) -> list[float]:
    return [float((x - y).abs().max()) for x, y in zip(a, b, strict=True) if x is not None and y is not None]


# -- a plain recomputation, one batch item, float64, straight from docs/model.md 2.2 to 2.8 --------------------------


class Plain:
    def __init__(self, model: LTXTransformer, rule: CrossTimestepRule) -> None:
        self.w = {k: v.double() for k, v in model.state_dict().items()}
        self.layers, self.rule = model.config.num_layers, rule

    def linear(self, name: str, x: Tensor) -> Tensor:
        return x @ self.w[f"{name}.weight"].T + self.w[f"{name}.bias"]

    def adaln(self, name: str, levels: Tensor, rows: int) -> tuple[Tensor, Tensor]:
        frequencies = torch.tensor([10000.0 ** (-i / 128) for i in range(128)])
        angles = levels.float()[:, None] * frequencies  # float32, as the model has them
        e = torch.cat([angles.cos(), angles.sin()], -1).double()
        hidden = self.linear(f"{name}.emb.timestep_embedder.linear_1", e)
        emb = self.linear(f"{name}.emb.timestep_embedder.linear_2", hidden * hidden.sigmoid())
        ada = self.linear(f"{name}.linear", emb * emb.sigmoid())
        return ada.reshape(len(levels), rows, -1), emb

    def rms(self, x: Tensor) -> Tensor:
        return x / (x.square().mean(-1, keepdim=True) + 1e-6).sqrt()

    def turn(self, x: Tensor, rope: Any, head: int) -> Tensor:
        if rope is None:
            return x
        cos, sin = rope.cos[0, head].double(), rope.sin[0, head].double()
        a, b = x.chunk(2, -1)
        return torch.cat([a * cos - b * sin, b * cos + a * sin], -1)

    def attention(self, name: str, x: Tensor, c: Tensor, rope: Any = None, c_rope: Any = None) -> Tensor:
        q = self.rms(self.linear(f"{name}.to_q", x)) * self.w[f"{name}.q_norm.weight"]
        k = self.rms(self.linear(f"{name}.to_k", c)) * self.w[f"{name}.k_norm.weight"]
        value, out = self.linear(f"{name}.to_v", c), []
        size = q.shape[-1] // 2
        for head in range(2):
            part = slice(head * size, (head + 1) * size)
            qh, kh = self.turn(q[:, part], rope, head), self.turn(k[:, part], c_rope, head)
            scores = (qh @ kh.T / size**0.5).exp()
            gate = 2 * self.linear(f"{name}.to_gate_logits", x)[:, head : head + 1].sigmoid()
            out.append(gate * (scores / scores.sum(-1, keepdim=True)) @ value[:, part])
        return self.linear(f"{name}.to_out.0", torch.cat(out, -1))

    def ff(self, name: str, x: Tensor) -> Tensor:
        h = self.linear(f"{name}.net.0.proj", x)
        h = 0.5 * h * (1 + torch.tanh((2 / torch.pi) ** 0.5 * (h + 0.044715 * h**3)))
        return self.linear(f"{name}.net.2", h)

    def __call__(self, video: StreamInput, audio: StreamInput) -> tuple[Tensor, Tensor]:
        ins = {"": video, "audio_": audio}
        level = {p: s.timesteps[0].expand(s.latent.shape[1]) * 1000 for p, s in ins.items()}
        sigma = {p: s.sigma[:1] * 1000 for p, s in ins.items()}
        other = {"": "audio_", "audio_": ""}
        names = {"": ("video", "a2v"), "audio_": ("audio", "v2a")}
        x = {p: self.linear(f"{p}patchify_proj", s.latent[0].double()) for p, s in ins.items()}
        ada, emb, prompt, cross, gate = {}, {}, {}, {}, {}
        for p in ins:
            ada[p], emb[p] = self.adaln(f"{p}adaln_single", level[p], 9)
            prompt[p], _ = self.adaln(f"{p}prompt_adaln_single", sigma[p], 2)
            across = sigma[other[p]]
            for_scale = across if self.rule is OTHER else level[p]
            for_gate = level[p] if self.rule is OWN else across
            cross[p], _ = self.adaln(f"av_ca_{names[p][0]}_scale_shift_adaln_single", for_scale, 4)
            gate[p], _ = self.adaln(f"av_ca_{names[p][1]}_gate_adaln_single", for_gate * (GATE_SCALE / 1000), 1)
        for n in range(self.layers):
            b = f"transformer_blocks.{n}."
            rows = {p: ada[p] + self.w[f"{b}{p}scale_shift_table"] for p in ins}
            for p, s in ins.items():
                m, text = rows[p], self.w[f"{b}{p}prompt_scale_shift_table"] + prompt[p]
                y = self.rms(x[p]) * (1 + m[:, 1]) + m[:, 0]
                rope = s.rope.self_attention
                x[p] = x[p] + m[:, 2] * self.attention(f"{b}{p}attn1", y, y, rope, rope)
                y = self.rms(x[p]) * (1 + m[:, 7]) + m[:, 6]
                c = s.context[0].double() * (1 + text[:, 1]) + text[:, 0]
                x[p] = x[p] + m[:, 8] * self.attention(f"{b}{p}attn2", y, c)
            table = {p: self.w[f"{b}scale_shift_table_a2v_ca_{names[p][0]}"] for p in ins}
            m = {p: table[p][:4] + cross[p] for p in ins}
            g = {p: table[p][4] + gate[p][:, 0] for p in ins}
            nv, na, v, a = self.rms(x[""]), self.rms(x["audio_"]), m[""], m["audio_"]
            ropes = {p: s.rope.cross_attention for p, s in ins.items()}
            to_video = self.attention(
                f"{b}audio_to_video_attn",
                nv * (1 + v[:, 0]) + v[:, 1],
                na * (1 + a[:, 0]) + a[:, 1],
                ropes[""],
                ropes["audio_"],
            )
            to_audio = self.attention(
                f"{b}video_to_audio_attn",
                na * (1 + a[:, 2]) + a[:, 3],
                nv * (1 + v[:, 2]) + v[:, 3],
                ropes["audio_"],
                ropes[""],
            )
            x = {"": x[""] + g[""] * to_video, "audio_": x["audio_"] + g["audio_"] * to_audio}
            for p in ins:
                r = rows[p]
                x[p] = x[p] + r[:, 5] * self.ff(f"{b}{p}ff", self.rms(x[p]) * (1 + r[:, 4]) + r[:, 3])
        out = {}
        for p in ins:
            head = self.w[f"{p}scale_shift_table"] + emb[p][:, None]
            centred = x[p] - x[p].mean(-1, keepdim=True)
            y = centred / (centred.square().mean(-1, keepdim=True) + 1e-6).sqrt()
            out[p] = self.linear(f"{p}proj_out", y * (1 + head[:, 1]) + head[:, 0])[None]
        return out[""], out["audio_"]


@pytest.mark.parametrize("rule", list(CrossTimestepRule), ids=lambda r: r.value)
def test_every_cross_timestep_rule_against_a_plain_recomputation(rule: CrossTimestepRule) -> None:
    """The newest rule has no package to compare with; the two older ones, held to diffusers elsewhere, vouch for this.

    Cross gates are scaled by 1500 / 1000 here, so an argument that is scaled twice or not at all shows too.
    Tolerance: timestep angles reach 1050 rad, where the last bit of float32 is 6e-5; the rules are 1e-2 apart.
    """
    model = shared()
    video, audio = inputs(model, sigma=0.7, audio_sigma=0.4)
    video = image_levels(video)
    ours, expected = model(video, audio, cross_rule=rule), Plain(model, rule)(video, audio)
    for mine, wanted in zip(ours, expected, strict=True):
        torch.testing.assert_close(mine.double(), wanted, rtol=0, atol=5e-5)


def test_the_rules_differ_where_they_should() -> None:
    model = shared()
    video, audio = inputs(model, sigma=0.7, audio_sigma=0.4)
    results = {rule: model(video, audio, cross_rule=rule) for rule in CrossTimestepRule}
    for one, other in ((SPLIT, OWN), (SPLIT, OTHER), (OWN, OTHER)):
        assert min(difference(results[one], results[other])) > 1e-2


def test_the_rules_agree_at_one_common_noise_level() -> None:
    model = shared()
    video, audio = inputs(model)
    results = [model(video, audio, cross_rule=rule) for rule in CrossTimestepRule]
    assert max(difference(results[0], results[1]) + difference(results[0], results[2])) <= ROUNDING


def constant(layer: nn.Module) -> None:
    """Makes a modulation independent of the noise level."""
    layer.linear.weight.zero_()


def test_split_is_own_without_gates_and_other_without_scales() -> None:
    """With the gates' noise level out of the way only scale and shift are left, which are OWN's; and the reverse."""
    model = build()
    video, audio = inputs(model, sigma=0.7, audio_sigma=0.4)
    video = image_levels(video)
    constant(model.av_ca_a2v_gate_adaln_single)
    constant(model.av_ca_v2a_gate_adaln_single)
    split, own, other = (model(video, audio, cross_rule=rule) for rule in (SPLIT, OWN, OTHER))
    assert difference(split, own) == [0.0, 0.0]
    assert min(difference(split, other)) > 1e-2

    model = build()
    constant(model.av_ca_video_scale_shift_adaln_single)
    constant(model.av_ca_audio_scale_shift_adaln_single)
    split, own, other = (model(video, audio, cross_rule=rule) for rule in (SPLIT, OWN, OTHER))
    assert max(difference(split, other)) <= ROUNDING  # equal modulations, once per stream and once per token
    assert min(difference(split, own)) > 1e-2


# -- shapes of the same thing --------------------------------------------------------------------------------------


@pytest.mark.parametrize("rule", list(CrossTimestepRule), ids=lambda r: r.value)
@pytest.mark.parametrize("new", [False, True], ids=["2.0", "2.3"])
def test_equal_timesteps_may_be_given_once(new: bool, rule: CrossTimestepRule) -> None:
    model = shared(new)
    video, audio = inputs(model, batch=2, audio_sigma=0.4)
    per_token = [replace(s, timesteps=s.timesteps.expand(s.latent.shape[:2]).contiguous()) for s in (video, audio)]
    once, each = model(video, audio, cross_rule=rule), model(*per_token, cross_rule=rule)
    assert max(difference(once, each)) <= ROUNDING


@pytest.mark.parametrize("rule", list(CrossTimestepRule), ids=lambda r: r.value)
@pytest.mark.parametrize("new", [False, True], ids=["2.0", "2.3"])
def test_distinct_noise_levels_equal_one_for_each_token(new: bool, rule: CrossTimestepRule) -> None:
    model = shared(new)
    video, audio = inputs(model, audio_sigma=0.4)
    index = torch.arange(video.latent.shape[1]) % 3
    few = replace(video, timesteps=torch.tensor([[0.7, 0.0, 0.35]]), token_levels=index)
    each = replace(video, timesteps=few.timesteps[:, index])
    ours, expected = model(few, audio, cross_rule=rule), model(each, audio, cross_rule=rule)
    assert max(difference(ours, expected)) <= ROUNDING
    assert min(difference(ours, model(video, audio, cross_rule=rule))) > 1e-2


def test_shared_noise_levels_may_have_batch_one() -> None:
    model = shared()
    video, audio = inputs(model, batch=3, audio_sigma=0.4)
    video = image_levels(video)
    skips = [Perturbation(), Perturbation(frozenset({1}), frozenset({1})), Perturbation(skip_cross_modal=True)]
    shared_levels = [replace(s, timesteps=s.timesteps[:1], sigma=s.sigma[:1]) for s in (video, audio)]
    assert max(difference(model(video, audio, items(*skips)), model(*shared_levels, items(*skips)))) <= ROUNDING


@pytest.mark.parametrize("new", [False, True], ids=["2.0", "2.3"])
def test_a_mixed_batch_equals_its_items_alone(new: bool) -> None:
    model = shared(new)
    video, audio = inputs(model, batch=4)
    skips = [
        Perturbation(),
        Perturbation(video_stg_blocks=frozenset({0, 1})),
        Perturbation(audio_stg_blocks=frozenset({1}), skip_cross_modal=True),
        Perturbation(),
    ]
    together = model(video, audio, items(*skips))
    for i, skip in enumerate(skips):
        item = slice(i, i + 1)
        streams = [
            replace(s, latent=s.latent[item], timesteps=s.timesteps[item], sigma=s.sigma[item], context=s.context[item])
            for s in (video, audio)
        ]
        alone = model(*streams, items(skip))
        assert max(difference(alone, tuple(t[item] for t in together))) <= ROUNDING
        if skip != Perturbation():
            assert max(difference(alone, model(*streams))) > 1e-2


def test_a_stream_that_is_not_enabled_serves_the_other() -> None:
    """Its tokens stay as they were embedded: the other stream sees them, and its own weights do not matter."""
    model = build(layers=1)
    video, audio = inputs(model)
    out, _ = model(video, replace(audio, enabled=False))
    alone, _ = model(video, None)
    assert difference((out,), (alone,))[0] > 1e-2
    block = model.transformer_blocks[0]
    for layer in (block.audio_attn1, block.audio_attn2, block.audio_ff, block.video_to_audio_attn):
        for parameter in layer.parameters():
            parameter.fill_(float("nan"))
    again, _ = model(video, replace(audio, enabled=False))
    assert difference((out,), (again,)) == [0.0]
    _, heard = build(layers=1)(replace(video, enabled=False), audio)
    assert heard.isfinite().all()


# -- what is not computed ------------------------------------------------------------------------------------------


def counting() -> tuple[list[int], Callable[..., Tensor]]:
    batches: list[int] = []

    def attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        batches.append(q.shape[0])
        return sdpa(q, k, v)

    return batches, attention


@pytest.mark.parametrize(
    ("skips", "expected"),
    [
        (None, [3] * 6),
        ([Perturbation(frozenset({0}), frozenset({0}))] * 3, [3] * 4),
        ([Perturbation(), Perturbation(), Perturbation(frozenset({0}))], [2, 3, 3, 3, 3, 3]),
        ([Perturbation(skip_cross_modal=True)] * 3, [3] * 4),
        ([Perturbation(), Perturbation(skip_cross_modal=True), Perturbation()], [3, 3, 3, 3, 1, 1, 1, 1]),
    ],
    ids=["none", "stg for all", "stg for one", "isolated", "one isolated"],
)
def test_attention_runs_only_where_it_is_needed(skips: Any, expected: list[int]) -> None:
    """In order: self and text attention of video, the same of audio, then each way across."""
    batches, attention = counting()
    model = build(layers=1, attention=attention)
    video, audio = inputs(model, batch=3)
    model(video, audio, skips and items(*skips))
    assert batches == expected


# -- dtype and errors ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("new", [False, True], ids=["2.0", "2.3"])
def test_bfloat16_stays_near_float32(new: bool) -> None:
    """2% relative: the floor measured for six-layer models is 0.8% (docs/model.md 2.9), and these are narrower."""
    exact = shared(new)
    expected = exact(*inputs(exact))
    model = build(new).to(torch.bfloat16)
    ours = model(*inputs(model, dtype=torch.bfloat16))
    for mine, wanted in zip(ours, expected, strict=True):
        assert mine.dtype == torch.bfloat16
        assert (mine.float() - wanted).norm() / wanted.norm() < 0.02


def test_meta_built_model_loads_strictly_and_runs() -> None:
    source = shared()
    with torch.device("meta"):
        model = LTXTransformer(source.config)
    model.load_state_dict(source.state_dict(), strict=True, assign=True)
    model.requires_grad_(False)
    assert difference(model(*inputs(model)), source(*inputs(source))) == [0.0, 0.0]


def test_errors_say_what_does_not_fit() -> None:
    model = shared()
    video, audio = inputs(model)
    with pytest.raises(ValueError, match="needs a video stream, an audio stream or both"):
        model(None, None)
    with pytest.raises(ValueError, match="blocks 0 to 1"):
        model(video, audio, [BatchItem(perturbation=Perturbation(video_stg_blocks=frozenset({28})))])
    with pytest.raises(ValueError, match="2 items for a batch of 3"):
        model(*inputs(model, batch=3), items(Perturbation(), Perturbation()))
    two_prompts = [replace(s, context=torch.cat([s.context] * 2)) for s in (video, audio)]
    with pytest.raises(ValueError, match="reads prompt 2, and the streams carry 2"):
        model(*two_prompts, [BatchItem(context=2)])
    with pytest.raises(ValueError, match="leaves a stream out that the other one hears"):
        model(video, audio, [BatchItem(video=False)])
    stg = BatchItem(perturbation=Perturbation(frozenset({1})), branches_from=0)
    for origin in (BatchItem(context=1), BatchItem(perturbation=Perturbation(frozenset({0})))):
        with pytest.raises(ValueError, match="branches from one that it does not equal"):
            model(*two_prompts, [origin, stg])
