"""Bottlenecks are found by the path of the user's module, in models and in fused programs."""

import copy
import functools
import math
from pathlib import Path

import pytest
import torch
from torch import nn

import fuseq
from fuseq.errors import FuseqError
from fuseq.qat.distillation import Features, SelfTeacher, feature_loss, value_of
from fuseq.qat.losses import charbonnier
from fuseq.qat.reweighting import LearnableReweighting
from fuseq.user_code import load_function

X = torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))


class Block(nn.Module):
    """Three branches and an activation."""

    def __init__(self, before, after):
        super().__init__()
        self.wide = nn.Conv2d(before, after, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(after)
        self.narrow = nn.Conv2d(before, after, 1)

    def forward(self, x):
        return torch.relu(self.norm(self.wide(x)) + self.narrow(x))


class Net(nn.Module):
    """Encoder, bottleneck, decoder, and a skip that is concatenated."""

    def __init__(self, bottleneck=None):
        super().__init__()
        self.encoder = nn.Sequential(Block(3, 8), nn.MaxPool2d(2))
        self.bottleneck = bottleneck or nn.Sequential(Block(8, 8), Block(8, 8))
        self.decoder = nn.Conv2d(16, 12, 3, padding=1)

    def forward(self, x):
        low = self.encoder(x)
        return nn.functional.pixel_shuffle(
            self.decoder(torch.cat((low, self.bottleneck(low)), 1)), 2
        )


def trained(model):
    """With weights and statistics off their defaults, in eval."""
    torch.manual_seed(0)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean = torch.randn(module.num_features)
            module.running_var = 0.5 + torch.rand(module.num_features)
            nn.init.normal_(module.weight)
    return model.eval()


def programs(model):
    """A model in four states of the pipeline, and from both front ends."""
    for front_end in ("export", "fx"):
        captured = fuseq.capture(model, X, front_end=front_end)
        fused = fuseq.fuse(captured)
        yield captured
        yield fused
        yield fuseq.quantize(fused, target="onnx", calibration=[X])


def test_the_loss_by_hand():
    student, teacher = torch.tensor([[1.0, 2.0]]), torch.tensor([[0.0, 4.0]], requires_grad=True)
    student.requires_grad_()
    loss = feature_loss(student, teacher)
    assert loss.item() == (1 + 4) / 2
    loss.backward()
    torch.testing.assert_close(student.grad, torch.tensor([[1.0, -2.0]]))
    assert teacher.grad is None
    assert feature_loss(student.half(), teacher.half()).dtype == torch.float32
    with pytest.raises(ValueError, match=r"shapes differ: \(1, 2\) and \(2, 1\)"):
        feature_loss(student, teacher.T)


def test_features_of_a_module():
    model = trained(Net())
    features = Features(model, "bottleneck")
    output, value = features(X)
    torch.testing.assert_close(output, model(X), rtol=0, atol=0)
    torch.testing.assert_close(value, model.bottleneck(model.encoder(X)), rtol=0, atol=0)
    assert model.bottleneck._forward_hooks == {}
    value.sum().backward()
    assert model.encoder[0].wide.weight.grad is not None
    assert model.decoder.weight.grad is None
    (of_output,) = torch.autograd.grad(features(X)[0].sum(), [model.bottleneck[1].wide.weight])
    assert of_output.abs().sum() > 0


def test_the_hook_goes_when_the_model_raises():
    model = trained(Net())
    with pytest.raises(RuntimeError):
        Features(model, "bottleneck")(torch.zeros(1, 5, 8, 8))
    assert model.bottleneck._forward_hooks == {}


def test_paths_that_name_no_single_value():
    class Twice(Net):
        def forward(self, x):
            low = self.encoder(x)
            return self.decoder(torch.cat((self.bottleneck(low), self.bottleneck(-low)), 1))

    with pytest.raises(FuseqError, match="did you mean 'bottleneck'") as raised:
        Features(Net(), "botleneck")
    assert raised.value.code == "FQ007"
    with pytest.raises(FuseqError, match="'bottleneck' has no value of its own: it gave Tensor, T"):
        Features(Twice(), "bottleneck")(X)
    with pytest.raises(FuseqError, match="'bottleneck' gives `"):
        value_of(fuseq.capture(Twice(), X), "bottleneck")
    with pytest.raises(FuseqError, match="did you mean 'bottleneck'"):
        value_of(fuseq.fuse(Net(), X), "botleneck")


def test_the_teacher_computes_the_bottleneck_in_every_state_of_the_pipeline():
    model = trained(Net())
    states = list(programs(model))
    for path in ("bottleneck", "bottleneck.0", "encoder", "encoder.0"):
        _, expected = Features(model, path)(X)
        for program in states:
            torch.testing.assert_close(SelfTeacher(program, path)(X), expected)


def test_a_node_can_be_named():
    program = fuseq.fuse(trained(Net()), X)
    relu = value_of(program, "bottleneck")
    assert relu.name.startswith("relu")
    assert value_of(program, relu.name) is relu
    assert value_of(program, relu.all_input_nodes[0].name) is relu.all_input_nodes[0]


def test_the_teacher_is_frozen_and_ends_at_the_bottleneck():
    program = fuseq.capture(trained(Net()), X)
    teacher = SelfTeacher(program, "bottleneck").train()
    before, names = teacher(X), [name for name, _ in teacher.named_parameters()]
    assert not any(parameter.requires_grad for parameter in teacher.parameters())
    assert not any("decoder" in name for name in names)
    assert any("bottleneck" in name for name in names)
    assert not before.requires_grad
    assert any(isinstance(module, nn.BatchNorm2d) for module in teacher.modules())
    for parameter in program.module.parameters():
        nn.init.zeros_(parameter)
    assert torch.equal(teacher(X), before)  # its own weights, and statistics that stay
    output = next(n for n in program.graph.nodes if n.op == "output")
    assert output.all_input_nodes[0].name != teacher.node  # the program is as it was


def test_the_teacher_is_float32_under_autocast():
    teacher = SelfTeacher(fuseq.fuse(trained(Net()), X), "bottleneck")
    expected = teacher(X.bfloat16().float())
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(teacher(X.bfloat16()), expected)
    assert expected.dtype == torch.float32


def test_an_end_that_was_fused_into_the_next_layer_is_refused():
    class Narrow(Net):
        def __init__(self):
            super().__init__(nn.Sequential(Block(8, 8), nn.Conv2d(8, 8, 1)))
            self.decoder = nn.Conv2d(8, 12, 1)

        def forward(self, x):
            return self.decoder(self.bottleneck(self.encoder(x)))

    model = trained(Narrow())
    assert value_of(fuseq.capture(model, X), "bottleneck").name == "bottleneck_1"
    fused = fuseq.fuse(model, X)
    with pytest.raises(FuseqError, match="its end was fused into `") as raised:
        value_of(fused, "bottleneck")
    assert raised.value.code == "FQ007"
    _, expected = Features(model, "bottleneck.0")(X)
    torch.testing.assert_close(SelfTeacher(fused, "bottleneck.0")(X), expected)


def test_a_student_of_its_own_float_self_has_nothing_to_learn():
    model = trained(Net())
    teacher = SelfTeacher(fuseq.fuse(copy.deepcopy(model), X), "bottleneck")
    student = Features(model, "bottleneck")
    assert feature_loss(student(X)[1], teacher(X)) < 1e-12


def test_a_size_that_is_read_inside_is_no_value():
    class Shortcut(nn.Module):
        def __init__(self):
            super().__init__()
            self.block, self.shortcut = Block(8, 8), nn.Conv2d(16, 8, 1)

        def forward(self, x):
            y = self.block(x)
            return y + self.shortcut(torch.cat((x, y), 1))

    class Resized(Net):
        def forward(self, x):
            low = self.encoder(x)
            half = nn.functional.avg_pool2d(low, 2)
            high = self.bottleneck(low)
            back = nn.functional.interpolate(half, size=high.shape[-2:])
            return self.decoder(torch.cat((high, back), 1))

    model = trained(Resized(Shortcut()))
    fused = fuseq.fuse(model, X)
    inside = [n for n in fused.graph.nodes if n.meta.get("scope", "").startswith("bottleneck")]
    assert any("sym_size" in user.name for n in inside[:-1] for user in n.users)
    _, expected = Features(model, "bottleneck")(X)
    torch.testing.assert_close(SelfTeacher(fused, "bottleneck")(X), expected)


def test_a_norm_at_the_start_may_join_the_layer_before():
    class PreActivated(nn.Module):
        def __init__(self):
            super().__init__()
            self.norm, self.conv = nn.BatchNorm2d(8), nn.Conv2d(8, 8, 3, padding=1)

        def forward(self, x):
            return torch.relu(self.conv(torch.relu(self.norm(x))))

    class Pooled(Net):
        def __init__(self):
            super().__init__(PreActivated())
            self.encoder = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.AdaptiveAvgPool2d(8))
            self.decoder = nn.Conv2d(8, 12, 1)

        def forward(self, x):
            return self.decoder(self.bottleneck(self.encoder(x)))

    model = trained(Pooled())
    fused = fuseq.fuse(model, X)
    assert fused.report is not None
    assert fused.report["ops"]["bn_after"] == 0
    _, expected = Features(model, "bottleneck")(X)
    torch.testing.assert_close(SelfTeacher(fused, "bottleneck")(X), expected)


def student_of(path="bottleneck", **options):
    qat = fuseq.qat.prepare(trained(Net()), X, calibration=[X], **options)
    return qat, Features(qat, path)


@pytest.mark.parametrize("learn_scales", [False, True])
@pytest.mark.parametrize("path", ["bottleneck", "encoder", "decoder"])
def test_features_of_a_prepared_model_are_the_integers_that_ship(path, learn_scales):
    qat, student = student_of(path, learn_scales=learn_scales)
    qat.stage(observing=False, weight_grids_frozen=False)
    output, value = student(X)
    evaluated, integers = student.eval()(X)
    assert torch.equal(output, evaluated)
    assert torch.equal(value, integers)
    program = fuseq.qat.finalize(qat)
    assert program.quantization is not None
    grid = program.quantization.grids[student.node]
    shipped = fuseq.execute(program, (X,)).integers[student.node]
    assert torch.equal(value, grid.dequantize(shipped))
    copy.deepcopy(qat.train())


def test_a_student_is_close_to_its_teacher_whatever_equalization_did():
    qat, student = student_of(passes="fuse-affine,equalize")
    teacher = SelfTeacher(qat, "bottleneck")
    with torch.no_grad():
        _, value = student(X)
    expected = teacher(X)
    assert value.shape == expected.shape
    assert feature_loss(value, expected) < 1e-2 * expected.var()  # 20 dB
    _, original = Features(trained(Net()), "bottleneck")(X)
    alive = original.amax((0, 2, 3)) > 0
    expected, original = expected[:, alive], original[:, alive]
    ratio = expected.sum((0, 2, 3)) / original.sum((0, 2, 3))
    torch.testing.assert_close(expected, original * ratio[:, None, None], rtol=1e-4, atol=1e-5)
    assert ratio.max() > 1.5 * ratio.min()  # it did move scales, and the teacher moved with it


def test_asking_for_a_value_changes_neither_outputs_nor_gradients():
    gradients, outputs = [], []
    for path in (None, "bottleneck"):
        qat, student = student_of()
        qat.wanted = qat.wanted if path else frozenset()
        output = student(X)[0] if path else qat(X)
        output.square().mean().backward()
        outputs.append(output)
        gradients.append([p.grad for p in qat.parameters()])
    assert torch.equal(*outputs)
    torch.testing.assert_close(*gradients)


def test_the_gradient_of_the_output_passes_through_the_value():
    qat, student = student_of()
    output, value = student(X)
    loss, weight = output.square().mean(), qat.network.get_submodule("bottleneck_1").weight
    (at_value,) = torch.autograd.grad(loss, value, retain_graph=True)
    (by_way_of_it,) = torch.autograd.grad(value, weight, at_value, retain_graph=True)
    (direct,) = torch.autograd.grad(loss, weight)
    torch.testing.assert_close(by_way_of_it, direct)
    assert direct.abs().sum() > 0


def test_a_value_that_the_target_never_has_is_refused():
    class Apart(Net):
        def forward(self, x):
            low = self.encoder(x)
            return self.decoder(torch.cat((low, torch.relu(self.bottleneck(low))), 1))

    qat = fuseq.qat.prepare(trained(Apart(nn.Conv2d(8, 8, 3, padding=1))), X, calibration=[X])
    with pytest.raises(FuseqError, match="computes it together with `relu_1`") as raised:
        Features(qat, "bottleneck")
    assert raised.value.code == "FQ007"
    assert Features(qat, "relu_1").node == "relu_1"


def distilled(balance, optimizer, steps):
    """Distances from the teacher while a student learns an answer that is far away."""
    qat, student = student_of()
    teacher, step = SelfTeacher(qat, "bottleneck"), optimizer(qat.parameters())
    generator = torch.Generator().manual_seed(1)
    distances = []
    for number in range(steps):
        if number == steps // 2:
            qat.stage(observing=False, weight_grids_frozen=True)
        x = torch.rand(2, 3, 16, 16, generator=generator)
        output, value = student(x)
        distillation = feature_loss(value, teacher(x))
        loss = balance(charbonnier(output, 1 - x), distillation, value)
        step.zero_grad()
        loss.backward()
        step.step()
        qat.clip_weights()
        distances.append(distillation.item())
    return distances


def test_distillation_holds_the_bottleneck_in_quantization_aware_training():
    def late(ratio):
        adam = functools.partial(torch.optim.Adam, lr=1e-3)
        return sum(distilled(LearnableReweighting(ratio), adam, 60)[-10:])

    assert late(1.0) < 0.05 * late(1e-3)


def test_without_its_bound_the_reweighting_loses_the_teacher():
    class Unbounded(LearnableReweighting):
        def _learn(self, *losses):
            super()._learn(*losses)
            self.bound.fill_(math.inf)

    def late(balance):
        return sum(distilled(balance, functools.partial(torch.optim.SGD, lr=0.1), 40)[-10:])

    assert late(Unbounded()) > 2 * late(LearnableReweighting())


def test_modules_of_a_gated_u_net_are_found():
    example = Path(__file__).parents[2] / "examples" / "qatie" / "model.py"
    _, get_model = load_function(str(example), "get_model")
    model = get_model().eval()
    x = torch.rand(1, 3, 32, 32)
    qat = fuseq.qat.prepare(model, x, calibration=[x], passes="fuse-affine")
    for path in ("refine_s2", "refine_s4", "refine_s8", "refine_u2"):
        _, expected = Features(model, path)(x)
        torch.testing.assert_close(SelfTeacher(qat, path)(x), expected)
    with pytest.raises(FuseqError, match="'down1' gives `tanh`, `tanh_1`, `mul`"):
        Features(qat, "down1")
