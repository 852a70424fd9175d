"""Models as people have them: each gives the plain network's numbers, or one line that says what to do.

The plain network is linear, so that its robust accuracy is known (`tests.linear`).
"""

import copy
import re

import pytest
import torch
from robustkit_attacks.fab import FAB
from torch import nn
from torch.utils.checkpoint import checkpoint

import robustkit
from benchmarks import kit
from robustkit import UsageError
from robustkit.audit import rules
from robustkit.doctor import diagnose
from robustkit.models.ensembles import Ensemble
from robustkit.models.oracle import Network
from robustkit.models.state import changed, restore, sha256, snapshot
from tests import toys
from tests.linear import between, distances, lin
from tests.needs import kit as needs_kit

NET, X, Y = lin(n=24, wrong=3)
EPS = between(distances(NET, X, Y, "linf"))
TRUTH = ["WRONG" if d == 0 else "BROKEN" if d <= EPS else "ROBUST" for d in distances(NET, X, Y, "linf").tolist()]
ATTACK = "(fgsm)+(apgd:loss=dlr-targeted,steps=15,targets=4)"


def evaluate(model, data=(X, Y), **options):
    return robustkit.evaluate(model, data, **{"attack": ATTACK, "eps": EPS, "doctor": False, **options})


def statuses(model, data=(X, Y), **options):
    return evaluate(model, data, **options).samples["status"].tolist()


class Around(nn.Module):
    """A network inside another module."""

    def __init__(self, net=None):
        super().__init__()
        self.net = copy.deepcopy(NET) if net is None else net

    def forward(self, x):
        return self.net(x)


class OneBuffer(Around):
    """Answers without gradients from a buffer that is filled anew by each call, as exported runtimes do."""

    def __init__(self, net=None):
        super().__init__(net)
        self.held = [torch.zeros(512, 5)]

    def forward(self, x):
        found = self.net(x)
        if torch.is_grad_enabled():
            return found
        return self.held[0][: len(x)].copy_(found)


class WritesIntoItsInput(Around):
    def forward(self, x):
        return self.net(x.sub_(0.25).div_(0.5).mul_(0.5).add_(0.25))


class CountsItsCalls(Around):
    def __init__(self, net=None):
        super().__init__(net)
        self.register_buffer("calls", torch.zeros((), dtype=torch.int64))
        self.register_buffer("unused", torch.full((2,), torch.nan))

    def forward(self, x):
        self.calls += 1
        return self.net(x)


class Adapts(CountsItsCalls):
    """Its answers move with what it has seen."""

    def forward(self, x):
        return super().forward(x) + 0.01 * self.calls * torch.arange(5)


class Checkpointed(Around):
    def forward(self, x):
        return checkpoint(self.net, x, use_reentrant=True)


class Standardises(Around):
    """Of an image of one colour it would divide by zero."""

    def forward(self, x):
        mean, std = x.mean((1, 2, 3), keepdim=True), x.std((1, 2, 3), keepdim=True)
        z = (x - mean) / std
        if not torch.isfinite(z).all():
            raise FloatingPointError("not finite")
        return self.net(z * std + mean)


class EvalReturnsNothing(Around):
    def train(self, mode=True):
        super().train(mode)

    def eval(self):
        self.train(False)


class OtherAttributes(Around):
    """Sub-modules under the names of our capabilities."""

    def __init__(self, net=None):
        super().__init__(net)
        self.members = nn.ModuleList([nn.Linear(2, 2)])
        self.surrogates = nn.ModuleDict({"a": nn.Linear(2, 2)})


class ExactlySixteen(Around):
    def forward(self, x):
        if len(x) != 16:
            raise ValueError(f"16 rows are due, not {len(x)}")
        return self.net(x)


class AnotherTypeFirst(nn.Module):
    def __init__(self):
        super().__init__()
        self.temperature = nn.Parameter(torch.ones(1, dtype=torch.float64))
        self.net = NET

    def forward(self, x):
        return self.net(x)


def in_float64():
    net = copy.deepcopy(NET).double()
    return lambda x: net(x)


def frozen(optimise=False):
    made = torch.jit.freeze(torch.jit.script(copy.deepcopy(NET)))
    return torch.jit.optimize_for_inference(made) if optimise else made


def exported():
    dynamic = ({0: torch.export.Dim.DYNAMIC},)
    return torch.export.export(copy.deepcopy(NET), (X[:2],), dynamic_shapes=dynamic).module()


PLAIN = {
    "the plain one": (lambda: NET, {}),
    "one buffer for all answers": (OneBuffer, {"tile": 8}),
    "writes into its input": (WritesIntoItsInput, {}),
    "writes into its input, in an ensemble": (lambda: Ensemble([WritesIntoItsInput(), WritesIntoItsInput()]), {}),
    "counts its calls": (CountsItsCalls, {}),
    "reentrant checkpoints": (Checkpointed, {}),
    "standardises each image": (Standardises, {}),
    "eval() returns nothing": (EvalReturnsNothing, {}),
    "attributes with our names": (OtherAttributes, {}),
    "exactly 16 rows": (ExactlySixteen, {"tile": 16}),
    "a float64 parameter first": (AnotherTypeFirst, {}),
    "float64 behind a function": (in_float64, {}),
    "frozen TorchScript": (frozen, {}),
    "TorchScript for inference": (lambda: frozen(optimise=True), {}),
    "a program of torch.export": (exported, {}),
    "copied out of inference mode": (lambda: copy.deepcopy(made_in_inference_mode()), {}),
}


def made_in_inference_mode():
    with torch.inference_mode():
        return copy.deepcopy(NET)


@pytest.mark.filterwarnings("ignore")  # of formats that torch calls deprecated, and of checkpoints without gradients
@pytest.mark.parametrize("kind", PLAIN)
def test_it_gives_the_number_of_the_plain_network(kind):
    make, options = PLAIN[kind]
    assert {"WRONG", "BROKEN", "ROBUST"} == set(TRUTH)
    assert statuses(make(), **options) == TRUTH


def test_a_fixed_batch_takes_fewer_images_than_a_tile():
    assert statuses(ExactlySixteen(), (X[:10], Y[:10]), tile=16) == TRUTH[:10]


def test_nothing_is_not_a_number_in_the_padding_under_anomaly_detection():
    with torch.autograd.set_detect_anomaly(True):
        assert statuses(Standardises(), n=5, attack="fgsm") == statuses(NET, n=5, attack="fgsm")


def test_tiles_are_filled_with_images_of_the_call_which_changes_no_result_and_counts_no_pass():
    network = Network(
        nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(144, 5)), 8, torch.device("cpu")
    )
    (tile,) = network.tiles(X[:3])
    assert torch.equal(tile[:3], X[:3])
    assert torch.equal(tile[3:], X[:1].expand(5, -1, -1, -1))
    with torch.no_grad():
        zeros = network.module(torch.cat([X[:3], torch.zeros(5, 3, 8, 8)]))[:3]
    assert torch.equal(network.logits(X[:3]), zeros)
    record = evaluate(NET, indices=[5, 6, 7], tile=16, attack="fgsm")
    assert record.attacks["forwards"].tolist() == [1, 1, 1]


def test_members_that_share_a_buffer_or_write_into_their_input_do_not_disturb_each_other():
    one, two = copy.deepcopy(NET), lin(seed=1)[0]
    sharing = [OneBuffer(one), OneBuffer(two)]
    sharing[1].held = sharing[0].held
    plain = Ensemble([one, two])
    with torch.no_grad():
        for members in (sharing, [WritesIntoItsInput(one), WritesIntoItsInput(two)]):
            ensemble, x = Ensemble(members), X.clone()
            logits, each = ensemble.forward_with_members(x)
            assert torch.allclose(logits, plain(X), atol=1e-5)
            assert torch.allclose(each, plain.forward_with_members(X)[1], atol=1e-5)
            assert torch.allclose(ensemble.first_members(x, 2), each, atol=1e-6)
            assert torch.equal(x, X)


@needs_kit
def test_a_reused_buffer_around_a_real_network_changes_nothing():
    data, options = kit.cifar10(range(64)), {"attack": "fgsm", "eps": "2/255", "tile": 16}
    net = kit.model(name="cifar10_resnet2b_adv2")

    class Bound(OneBuffer):
        def __init__(self):
            super().__init__(net)
            self.held = [torch.zeros(512, 10)]

    bound, plain = (robustkit.evaluate(model, data, **options) for model in (Bound(), net))
    assert (bound.samples["status"] == plain.samples["status"]).all()
    assert float(plain.clean_accuracy) == 47 / 64


def small_network():
    with torch.random.fork_rng():
        torch.manual_seed(3)
        net = nn.Sequential(
            nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(64, 5)
        )
    return net.eval()


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    "backend",
    ["aot_eager", pytest.param("inductor", marks=pytest.mark.slow), pytest.param("eager", marks=pytest.mark.slow)],
)
def test_a_compiled_network_goes_back_several_times(backend):
    net = small_network()
    y = net(X).argmax(1).detach()
    attack = [FAB(minimise=False, targets=3, steps=5)]
    plain, compiled = (
        robustkit.evaluate(model, (X, y), attack, eps=0.02, doctor=False)
        for model in (net, torch.compile(net, backend=backend))
    )
    assert (compiled.samples["status"] == plain.samples["status"]).all()
    assert 0 < plain.counts["BROKEN"] < 24
    assert not compiled.errors


def test_further_passes_of_a_compiled_network_have_the_same_noise_and_are_counted():
    from robustkit.models.oracle import Counts, ModelOracle, Noise

    class OnePassBack(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            ctx.used = False
            return 2 * x

        @staticmethod
        def backward(ctx, grad):
            if not torch._C._autograd._get_current_graph_task_keep_graph() and not ctx.used:
                ctx.used = True
                return 2 * grad
            raise RuntimeError("compiled with non-empty donated buffers")

    class Compiled(Around):
        def forward(self, x):
            return self.net(OnePassBack.apply(x + 0.1 * torch.randn_like(x)))

    class Plain(Around):
        def forward(self, x):
            return self.net(2 * (x + 0.1 * torch.randn_like(x)))

    def asked(module):
        network = Network(module, 8, torch.device("cpu"), noise=Noise("a"))
        return ModelOracle(network, Counts(10, torch.device("cpu")), torch.arange(10), 5, randomised=True)

    def losses(outputs):
        return outputs.logits.T.square()

    one, other = asked(Compiled()), asked(Plain())
    assert torch.equal(one.gradient(X[:10], losses).grad, other.gradient(X[:10], losses).grad)
    assert torch.equal(one.outputs(X[:10]).logits, other.outputs(X[:10]).logits)
    assert one.counts.forwards.tolist() == [6] * 10
    assert other.counts.forwards.tolist() == [2] * 10
    assert one.counts.backwards.tolist() == other.counts.backwards.tolist() == [5] * 10


def quantised(kind):
    from torch.ao.quantization import get_default_qconfig_mapping, quantize_dynamic, quantize_fx

    if kind == "dynamic":
        return quantize_dynamic(copy.deepcopy(NET), {nn.Linear}, dtype=torch.qint8)
    prepared = quantize_fx.prepare_fx(copy.deepcopy(NET), get_default_qconfig_mapping(), (X[:2],))
    prepared(X)
    return quantize_fx.convert_fx(prepared)


@pytest.mark.filterwarnings("ignore")  # torch calls its quantisation deprecated
@pytest.mark.parametrize("kind", ["dynamic", "fx"])
def test_an_int8_network_takes_attacks_without_gradients_and_says_why_no_others(kind, tmp_path):
    net = quantised(kind)
    before = sha256(net)
    record = evaluate(net, attack="square:queries=100", out=tmp_path / "run")
    assert record.unknown == 0
    assert record.counts["BROKEN"] > 0
    with torch.no_grad():
        right = torch.cat([net(x[None]) for x in X]).argmax(1) == Y
    assert (record.samples["status"] != "WRONG").tolist() == right.tolist()
    assert sha256(net) == before == record.job["model_sha256"]
    (flag,) = [flag for flag in record.flags if flag["kind"] != "few-classes"]
    assert flag["kind"] == "no-gradient"
    assert "its weights are quantised" in flag["message"]
    alone = evaluate(net, attack="fgsm")
    assert alone.robust_accuracy is None
    assert any("its weights are quantised" in flag["message"] for flag in alone.flags)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", ["dynamic", "fx"])
def test_the_state_of_an_int8_network_is_kept_compared_and_put_back(kind):
    net = quantised(kind)
    kept, before = snapshot(net), net(X[:1])
    assert not changed(kept, net.state_dict())
    layer = net.get_submodule("1")
    layer.set_weight_bias(layer.weight(), layer.bias() + 1)
    assert {name.rpartition(".")[2] for name in changed(kept, net.state_dict())} == {"_packed_params"}
    assert not torch.equal(net(X[:1]), before)
    restore(net, kept)
    assert not changed(kept, net.state_dict())
    assert torch.equal(net(X[:1]), before)


def test_state_that_is_no_tensor_counts():
    class Tuned(Around):
        def __init__(self):
            super().__init__()
            self.settings = {"levels": 3}

        def get_extra_state(self):
            return self.settings

        def set_extra_state(self, state):
            self.settings = state

    class Retunes(toys._Settings):
        def __call__(self, case):
            case.oracle.module.settings["levels"] = 1
            return case.x

    model = Tuned()
    record = evaluate(model, attack=Retunes())
    assert record.unknown == record.n - TRUTH.count("WRONG")
    assert "changed the model" in str(record.errors)
    assert model.settings == {"levels": 3}
    assert statuses(model) == TRUTH


def test_what_a_plain_call_changes_is_left_out_and_said_and_put_back():
    model = CountsItsCalls()
    record = evaluate(model)
    model.calls += 7
    again = evaluate(model)
    assert int(model.calls) == 7
    assert record.samples["status"].tolist() == again.samples["status"].tolist() == TRUTH
    assert record.job["id"] == again.job["id"]
    (flag,) = [flag for flag in record.flags if flag["kind"] != "few-classes"]
    assert flag["kind"] == "changing-buffers"
    assert "(calls)" in flag["message"]


def test_what_a_plain_call_changes_hides_no_attack_on_the_model():
    class Counts(CountsItsCalls):
        def forward(self, x):
            return super().forward(x) * (1 if self.calls < 10**6 else -1)

    class Winds(toys._Settings):
        def __call__(self, case):
            case.oracle.module.calls += 10**6
            case.submit(case.x)
            return case.x

    record = evaluate(Counts(), attack=Winds())
    assert record.counts["BROKEN"] == 0
    assert record.unknown > 0


def test_a_model_whose_answers_move_with_its_state_establishes_no_number():
    record = evaluate(Adapts(), attack="fgsm")
    assert record.robust_accuracy is None
    message = next(flag["message"] for flag in record.flags if flag["kind"] == "insufficient")
    assert "calling the model changes its own state (calls), and its answers with it" in message
    assert rules.state(training=False, changes=True).outcome == "invalid"


def test_noise_is_not_taken_for_state():
    class Noisy(CountsItsCalls):
        def forward(self, x):
            return super().forward(x + 0.01 * torch.randn_like(x))

    record = evaluate(Noisy(), attack="fgsm", draws=3)
    assert {flag["kind"] for flag in record.flags} - {"few-classes"} == {"randomised", "changing-buffers"}
    assert record.robust_accuracy is not None


def test_not_a_number_on_a_probe_image_is_no_randomness_and_no_change():
    class Sometimes(Around):
        def forward(self, x):
            z = self.net(x)
            z[:, 0] = torch.where(x.flatten(1).round(decimals=1).eq(x.flatten(1)).any(1), z[:, 0], torch.nan)
            return z

    x = X.clone()
    x[:, 0, 0, 0] = 0.5  # the probe images have no such value
    y = NET(x).argmax(1).detach()
    record = evaluate(Sometimes(), (x, y), attack="square:queries=20")
    assert "randomised" not in {flag["kind"] for flag in record.flags}
    assert "changed the model" not in str(record.errors)


class ScriptedReshape(nn.Module):
    def __init__(self):
        super().__init__()
        self.net = copy.deepcopy(NET)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.net(x)


def softmax(dtype):
    return lambda x: (3 * NET(x)).to(dtype).softmax(1)


def masked(value):
    return lambda x: torch.cat([NET(x), torch.full((len(x), 1), value)], 1)


REFUSED = {
    "other rows": (ExactlySixteen, {}, "16 rows are due, not 128; it takes batches of exactly 16: tile=16"),
    "one channel of three": (lambda: NET, {"data": (X[:, :1], Y)}, "images of 3 channels, these have 1: choose"),
    "three channels for one": (
        lambda: lin((1, 8, 8))[0], {"data": (X, Y)}, "it takes images of 1 channel, these have 3: choose"
    ),
    "another size": (lambda: NET, {"data": (X[:, :, :7], Y)}, "it takes images of 8×8: resize=8 in its spec"),
    "no reason that is known": (
        lambda: bad_model(), {}, "nothing pleases me; it must take images (n, channels, height, width) in [0,1]"
    ),
    "inference tensors": (made_in_inference_mode, {}, "made under torch.inference_mode() (1.weight is an inference"),
    "meta": (lambda: copy.deepcopy(NET).to("meta"), {}, "no values (1.weight is on the device 'meta')"),
    "target": (lambda: NET, {"target": "²"}, "target '²' must be a class"),
    "−inf for a class": (lambda: masked(-torch.inf), {}, "class 5 has logits of −inf; to mask classes out, use"),
    **{
        f"a softmax in {dtype} of {n} images": (lambda dtype=dtype: softmax(dtype), {"n": n}, "are probabilities")
        for dtype, n in ((torch.bfloat16, 5), (torch.bfloat16, 24), (torch.float16, 24))
    },
}  # fmt: skip


def bad_model():
    def refuses(x):
        raise TypeError("nothing pleases me")

    return refuses


@pytest.mark.parametrize("kind", REFUSED)
def test_it_says_in_one_line_what_to_do(kind):
    make, options, words = REFUSED[kind]
    with pytest.raises(UsageError, match=re.escape(words)) as caught:
        evaluate(make(), **options)
    assert "\n" not in str(caught.value)
    assert kind == "another size" or "resize" not in str(caught.value)


def test_the_advice_helps():
    assert statuses(masked(-1e9)) == TRUTH
    record = evaluate(softmax(torch.bfloat16), outputs="probs", attack="square:queries=10")
    assert record.unknown == 0
    with pytest.raises(UsageError, match="do not sum to 1"):
        evaluate(lambda x: NET(x).softmax(1) * 0.99, outputs="probs")


@pytest.mark.filterwarnings("ignore")
def test_torchscript_tells_its_cause():
    with pytest.raises(UsageError, match="mat1 and mat2 shapes cannot be multiplied"):
        evaluate(torch.jit.script(ScriptedReshape()), (X[:, :, :7], Y))


def test_inference_mode_around_an_evaluation_changes_nothing():
    with torch.inference_mode():
        assert statuses(NET) == TRUTH
        assert statuses(NET, (X.clone(), Y.clone())) == TRUTH
        with pytest.raises(UsageError, match=r"made under torch.inference_mode\(\)"):
            evaluate(made_in_inference_mode())
        assert robustkit.evaluate("digits-cnn", "digits", "fgsm", eps=0.1, n=20).unknown == 0
    with pytest.raises(UsageError, match=r"made under torch.inference_mode\(\)"):
        diagnose(made_in_inference_mode(), X, Y)


def test_the_reason_why_no_gradient_flows_is_torch_s_own():
    class ThroughNumpy(Around):
        def forward(self, x):
            return self.net(torch.from_numpy(x.numpy()))

    record = evaluate(ThroughNumpy(), attack="fgsm")
    (flag,) = (flag for flag in record.flags if flag["kind"] == "no-gradient")
    assert "torch says: Can't call numpy() on Tensor that requires grad" in flag["message"]
