"""raw-isp: the mosaic and the camera against hand-made values, the weights against their cards, the defense whole."""

import hashlib
import json
import shutil
from dataclasses import replace

import pytest
import torch
from robustkit_defenses.raw import bayer, networks, photos, weights
from robustkit_defenses.raw import train as training
from robustkit_defenses.raw.camera import Camera, encoded, with_sensor_noise
from robustkit_defenses.raw_isp import RawIsp
from torch import nn

import robustkit
from robustkit.api import ThreatModel
from robustkit.errors import UsageError
from robustkit.models import defended
from robustkit.models.oracle import Network
from robustkit.testing import attack_batch
from tests import toys

IDENTITY = ((1.0, 0.0, 0.0), (0.0, 1.0, 0.0), (0.0, 0.0, 1.0))
PLAIN = Camera(to_sensor=IDENTITY, red=1, blue=1, digital=1, curve=False, tone=False)  # does nothing but the mosaic
BY = ("bilinear", "malvar")


class Net(nn.Module):
    """A small classifier for colour images of any size."""

    def __init__(self, classes=10):
        super().__init__()
        self.conv, self.fc = nn.Conv2d(3, 8, 3, padding=1), nn.Linear(8, classes)
        for p in self.parameters():
            p.data = torch.randn(p.shape, generator=toys.seeded(p.numel())) * 0.5

    def forward(self, x):
        return self.fc(self.conv(x).relu().mean((2, 3)))


def images(n=4, height=16, width=16, low=0.0, high=1.0):
    return low + (high - low) * torch.rand(n, 3, height, width, generator=toys.seeded(3))


def test_packing_and_unpacking_undo_each_other_and_each_plane_is_the_colour_that_it_should_be():
    raw = torch.arange(24.0).view(1, 1, 4, 6)
    packed = bayer.pack(raw)
    assert packed[0, :, 0, 0].tolist() == [7, 1, 0, 6]  # blue, green of the red row, red, green of the blue row
    assert torch.equal(bayer.unpack(packed), raw)
    assert torch.equal(bayer.pack(bayer.unpack(packed)), packed)
    colours = torch.tensor([1.0, 2, 3]).view(1, 3, 1, 1).expand(1, 3, 4, 6)
    assert bayer.mosaic(colours)[0, :, 1, 2].tolist() == [3, 2, 1, 2]


@pytest.mark.parametrize("by", BY)
def test_demosaicing_keeps_what_was_measured_and_every_flat_colour(by):
    x = images(2, 8, 10).double()
    filled = bayer.demosaic(bayer.mosaic(x), by)
    assert torch.equal(bayer.mosaic(filled), bayer.mosaic(x))
    flat = torch.tensor([0.2, 0.5, 0.9]).double().view(1, 3, 1, 1).expand(1, 3, 6, 8)
    torch.testing.assert_close(bayer.demosaic(bayer.mosaic(flat), by), flat)


@pytest.mark.parametrize("by", BY)
def test_demosaicing_continues_a_ramp_and_malvar_a_step_that_all_colours_share(by):
    down, right = torch.meshgrid(torch.arange(8.0), torch.arange(10.0), indexing="ij")
    ramp = torch.stack([down + 2 * right, 3 * down - right, 0.5 * right])[None].double()  # a ramp of its own each
    inside = (slice(None), slice(None), slice(2, -2), slice(2, -2))
    torch.testing.assert_close(bayer.demosaic(bayer.mosaic(ramp), by)[inside], ramp[inside])
    grey = torch.zeros(1, 3, 8, 10).double()
    grey[..., 5:] = 1
    error = (bayer.demosaic(bayer.mosaic(grey), by) - grey).abs().amax()
    # By hand, the worst is red at a blue site beside the step: 2 of 4 neighbours; 6/8 + 2·2/8 − 3·1.5/8 of 1.
    assert float(error) == (0.5 if by == "bilinear" else 0.3125)


def test_malvar_by_hand_on_one_bright_site():
    raw = torch.zeros(1, 1, 12, 12).double()
    raw[0, 0, 4, 4] = 8  # a red site
    red, green, blue = bayer.demosaic(bayer.pack(raw), "malvar")[0]
    assert red[4, 2:7].tolist() == [0, 4, 8, 4, 0]
    assert red[5, 3:6].tolist() == [2, 4, 2]
    assert green[4, 2:7].tolist() == [-1, 0, 4, 0, -1]
    assert blue[4, 2:7].tolist() == [-1.5, 0, 6, 0, -1.5]
    assert blue[5, 3:6].tolist() == [0, 0, 0]


@pytest.mark.parametrize("by", BY)
def test_s_of_a_plain_camera_averages_quads(by):
    ramp = (torch.arange(16.0) / 16).view(1, 1, 1, 16).expand(1, 3, 8, 16).double()
    out = PLAIN.developed(PLAIN.raw(ramp), by)
    expected = (torch.arange(8.0) * 2 + 0.5) / 16
    torch.testing.assert_close(out[0, 0, 1, 1:-1], expected[1:-1].double())
    assert out.shape == (1, 3, 4, 8)


def test_s_of_a_flat_raw_by_hand():
    blue, red, green = 0.1, 0.08, 0.2
    packed = torch.tensor([blue, green, red, green]).double().view(1, 4, 1, 1).expand(1, 4, 3, 3)
    matrix = ((0.5, 0.5, 0.0), (0.0, 1.0, 0.0), (0.0, 0.5, 0.5))
    camera = Camera(to_sensor=matrix, red=2.0, blue=1.5, digital=1.25)
    # gains 2.5, 1.25, 1.875: 0.2, 0.25, 0.1875; the matrix undone: 2·0.2 − 0.25, 0.25, 2·0.1875 − 0.25
    linear = [0.15, 0.25, 0.125]
    curved = [1.055 * v ** (1 / 2.4) - 0.055 for v in linear]
    due = torch.tensor([3 * v**2 - 2 * v**3 for v in curved]).double()
    for by in BY:
        out = camera.developed(packed, by)
        torch.testing.assert_close(out, due.view(1, 3, 1, 1).expand_as(out), rtol=0, atol=1e-7)
    bright = camera.developed(torch.ones(1, 4, 2, 2), "malvar")
    assert torch.equal(bright, torch.ones(1, 3, 2, 2))


def test_s_clips_what_a_site_measured_before_its_neighbours_are_filled_in():
    packed = torch.zeros(1, 4, 6, 6).double()
    packed[0, 2, 2, 2] = 0.8  # a red site: twice that is more than a sensor holds
    red, green, blue = replace(PLAIN, digital=2).developed(packed, "bilinear")[0]
    assert red[2, 1:4].tolist() == pytest.approx([(0.5 + 0.25) / 4, (1 + 0.5 + 0.5 + 0.25) / 4, 0])
    assert not green.any()
    assert not blue.any()


def test_unprocessing_by_hand():
    camera = Camera(to_sensor=IDENTITY, red=2.0, blue=1.6, digital=1.25, tone=False)
    grey = torch.full((1, 3, 2, 2), 0.5).double()
    linear = ((0.5 + 0.055) / 1.055) ** 2.4
    seen = camera.unprocessed(grey)[0, :, 0, 0].tolist()
    assert seen == pytest.approx([linear / 2.5, linear / 1.25, linear / 2.0])
    assert camera.unprocessed(torch.ones(1, 3, 1, 1)).flatten().tolist() == pytest.approx([1.0] * 3)  # stays white
    toned = replace(camera, curve=False, tone=True, red=1, blue=1, digital=1)
    # the smooth step takes 0.25 to 3/16 − 2/64 = 0.15625
    assert toned.unprocessed(torch.full((1, 3, 1, 1), 0.15625).double()).unique().tolist() == pytest.approx([0.25])


def test_the_camera_undoes_its_unprocessing():
    x, camera = images(high=0.9).double(), Camera()
    gains = torch.tensor([camera.red, 1.0, camera.blue]).double().view(3, 1, 1) * camera.digital
    seen = camera.unprocessed(x)
    assert float(seen.min()) >= 0
    torch.testing.assert_close(camera.finished((seen * gains).clamp(0, 1)), x, rtol=0, atol=1e-7)
    bright = images(low=0.9).double()
    seen = camera.unprocessed(bright)
    assert float(seen.max()) <= 1
    again = camera.finished((seen * gains).clamp(0, 1))
    torch.testing.assert_close(again, bright, rtol=0, atol=0.01)  # kept bright in RAW, highlights are clipped after it


@pytest.mark.parametrize("by", BY)
def test_developing_unprocessed_smooth_images_gives_them_back(by):
    right, down = torch.linspace(0.1, 0.8, 32), torch.linspace(0.2, 0.7, 32)
    x = torch.stack([right.expand(32, 32), down[:, None].expand(32, 32), (right + down[:, None]) / 2])[None]
    out = Camera().developed(Camera().raw(x), by)
    due = nn.functional.avg_pool2d(x, 2)
    torch.testing.assert_close(out[..., 1:-1, 1:-1], due[..., 1:-1, 1:-1], rtol=0, atol=2e-3)


def test_srgbs_curve_is_one_line_and_one_power_that_meet():
    x = torch.tensor([-0.01, 0.0, 0.0031308, 0.0031309, 0.5, 1.0]).double().requires_grad_(True)
    y = encoded(x)
    assert y.tolist() == pytest.approx([-0.1292, 0.0, 0.04045, 0.04045, 0.735357, 1.0], abs=1e-5)
    (slope,) = torch.autograd.grad(y.sum(), x)
    assert float(slope.max()) == pytest.approx(12.92)
    assert torch.isfinite(slope).all()


def test_the_noises_have_the_strength_that_they_say():
    flat = torch.full((400, 4, 16, 16), 0.3)
    noise = with_sensor_noise(flat, toys.seeded(1)) - flat
    strength = noise.flatten(1).std(1)
    assert 0.3e-4**0.5 < float(strength.median()) < (0.3 * 0.012) ** 0.5
    assert float(strength.max() / strength.min()) > 3
    one = training.noise_of_one_scale(torch.zeros(2000, 3, 8, 8), 0.1, toys.seeded(1))
    own = one.flatten(1).std(1)
    assert float(own.square().mean().sqrt()) == pytest.approx(0.1, rel=0.1)  # s·N(0, 0.1²), E s² = 1
    assert float((own > 0.1).double().mean()) == pytest.approx(0.317, abs=0.05)  # P(|s| > 1)


@pytest.mark.parametrize("learned", ["plain5", "unet"])
@pytest.mark.parametrize("preset", ["paper", "released"])
def test_gradients_are_those_of_finite_differences(preset, learned):
    step = RawIsp(preset=preset, learned=learned).protect(Net()).step.double()
    x = images(1, 4, 5, low=0.2, high=0.8).double().requires_grad_(True)
    weight = torch.randn(1, 3, 4, 5, generator=toys.seeded(2)).double()
    (grad,) = torch.autograd.grad((step(x) * weight).sum(), x)
    assert bool(grad.ne(0).all())
    h = 1e-6
    for place in torch.randperm(x.numel(), generator=toys.seeded(4))[:24].tolist():
        ahead, back = x.detach().clone(), x.detach().clone()
        ahead.view(-1)[place] += h
        back.view(-1)[place] -= h
        slope = float(((step(ahead) - step(back)) * weight).sum()) / (2 * h)
        assert float(grad.view(-1)[place]) == pytest.approx(slope, rel=1e-4, abs=1e-6)


@pytest.mark.parametrize(
    "settings",
    [RawIsp(), RawIsp(learned="plain5", demosaic="bilinear"), RawIsp(preset="released"), RawIsp(omega=0.0)],
    ids=str,
)
@pytest.mark.parametrize("size", [(16, 16), (11, 7), (2, 2)])
def test_the_step_keeps_size_and_range_and_repeats(settings, size):
    step = settings.protect(Net()).step
    for x in (images(3, *size), torch.zeros(1, 3, *size), torch.ones(1, 3, *size)):
        out = step(x)
        assert out.shape == x.shape
        assert out.dtype == x.dtype
        assert bool(((out >= 0) & (out <= 1)).all())
        assert torch.equal(out, step(x))


def test_omega_mixes_the_two_pipelines():
    x = images()
    mixed, learned, conventional = (RawIsp(omega=w).protect(Net()).step(x) for w in (0.3, 1.0, 0.0))
    torch.testing.assert_close(mixed, 0.3 * learned + 0.7 * conventional)
    assert torch.equal(RawIsp(preset="released").protect(Net()).step(x), learned)
    torch.testing.assert_close(RawIsp().protect(Net()).step(x), 0.7 * learned + 0.3 * conventional)
    assert float((learned - conventional).abs().max()) > 0.01


def test_a_sample_gets_the_same_bits_in_any_batch_of_tiles():
    module, x = RawIsp().protect(Net()).eval(), images(9)
    network = Network(module, 4, x.device)
    order = torch.tensor([7, 2, 8])
    assert torch.equal(network.logits(x)[order], network.logits(x[order]))
    torch.testing.assert_close(module(x)[2:3], module(x[2:3]))


@pytest.mark.parametrize("learned", ["plain5", "unet"])
def test_the_parts_fit_each_other(learned):
    """On patches of photographs that they were trained on; the report has images that they were not."""
    x, _ = photos.pairs([photos.read("sklearn")], 8, Camera(), toys.seeded(1))
    for omega in (0.0, 1.0):
        assert float(training.psnr(RawIsp(learned=learned, omega=omega).protect(Net()).step(x), x).mean()) > 20


def test_the_bundled_weights_are_those_of_their_cards_and_small():
    total = 0
    for name in networks.NETWORKS:
        card = json.loads((weights.FOLDER / f"{name}.json").read_text())
        data = (weights.FOLDER / f"{name}.safetensors").read_bytes()
        total += len(data)
        assert (card["name"], card["bytes"]) == (name, len(data))
        assert card["sha256"] == hashlib.sha256(data).hexdigest()
        assert card["psnr_db"] > 20
        assert card["command"].startswith(f"python -m robustkit_defenses.raw.train {name} ")
        network = weights.load(name)
        assert not any(p.requires_grad for p in network.parameters())
        assert not network.training
    assert total <= 1_000_000


def test_weights_that_are_not_the_cards_are_refused(tmp_path):
    for file in weights.FOLDER.glob("*.*s*"):
        if file.suffix in (".json", ".safetensors"):
            shutil.copy(file, tmp_path)
    assert RawIsp(learned="plain5", weights=str(tmp_path)).protect(Net())
    file = tmp_path / "plain5.safetensors"
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(bytes(data))
    with pytest.raises(UsageError, match="sha256 differs"):
        RawIsp(learned="plain5", weights=str(tmp_path)).protect(Net())
    card = json.loads((tmp_path / "plain5.json").read_text())
    shutil.copy(tmp_path / "unet.safetensors", file)
    (tmp_path / "plain5.json").write_text(json.dumps({**card, "sha256": hashlib.sha256(file.read_bytes()).hexdigest()}))
    with pytest.raises(UsageError, match="no weights of 'plain5'"):
        RawIsp(learned="plain5", weights=str(tmp_path)).protect(Net())
    with pytest.raises(UsageError, match=r"raw\.train unet"):
        RawIsp(weights=str(tmp_path / "nowhere")).protect(Net())


@pytest.mark.parametrize(
    ("wrong", "match"),
    [
        ("raw-isp:preset=pynet", "paper, released"), ("raw-isp:omega=1.5", "from 0 to 1"),
        ("raw-isp:preset=released,omega=0.5", "no S"), ("raw-isp:learned=plain6", "plain5, unet"),
        ("raw-isp:demosaic=menon", "bilinear, malvar"), ("raw-isp:omga=1", "omega"), ("raw-isp:omega=nan", "finite"),
    ],
)  # fmt: skip
def test_wrong_settings_are_refused(wrong, match):
    with pytest.raises(UsageError, match=match):
        defended.resolve(wrong)


@pytest.mark.parametrize("kind", ["preset", "learned", "demosaic"])
def test_wrong_settings_are_refused_in_python_too(kind):
    with pytest.raises(UsageError, match=kind):
        RawIsp(**{kind: "else"})


def test_images_that_do_not_fit_are_refused_before_anything_is_attacked(tmp_path):
    module = RawIsp().protect(Net())
    with pytest.raises(UsageError, match="3 channels"):
        module(torch.rand(2, 1, 8, 8))
    with pytest.raises(UsageError, match="at least 2×2"):
        module(torch.rand(2, 3, 1, 8))
    grey = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
    with pytest.raises(UsageError, match="3 channels"):
        robustkit.evaluate(grey, "digits", "fgsm", defense="raw-isp", eps=0.1, n=8, out=tmp_path / "run")
    assert not (tmp_path / "run").exists()
    with pytest.raises(UsageError, match="even height"):
        bayer.mosaic(torch.rand(1, 3, 5, 4))
    with pytest.raises(UsageError, match="even height"):
        bayer.pack(torch.rand(1, 1, 4, 5))
    with pytest.raises(UsageError, match="1 channel"):
        bayer.pack(torch.rand(1, 3, 4, 4))
    with pytest.raises(UsageError, match="sum to 1"):
        Camera(to_sensor=((1.0, 0.5, 0.0), *IDENTITY[1:]))
    with pytest.raises(UsageError, match="gains"):
        Camera(red=0.5)


def test_the_bare_network_is_declared_as_a_stand_in():
    bare = Net()
    stand_ins = RawIsp().protect(bare).surrogates()
    assert stand_ins == {"identity": bare}


def test_an_attack_through_the_pipelines_finds_what_one_on_the_bare_network_misses():
    from robustkit_attacks.pgd import PGD

    bare, x = nn.Sequential(nn.Flatten(), nn.Linear(3 * 16 * 16, 4)), images(24)
    bare[1].weight.data = torch.randn(4, 3 * 16 * 16, generator=toys.seeded(3))  # what a denoiser takes away
    module = RawIsp().protect(bare)
    y, threat = module(x).argmax(1), ThreatModel("linf", 0.02)
    through = attack_batch(PGD(steps=10), module, x, y, threat)
    around = attack_batch(toys.OnSurrogate(PGD(steps=10), "identity"), module, x, y, threat)
    assert through.broken.sum() > around.broken.sum() + 3


def test_an_evaluation_on_scenes_and_its_identity():
    def run(defense):
        return robustkit.evaluate(Net(), "scenes", "fgsm", defense=defense, eps="4/255", n=16, doctor=False)

    record, bare = run("raw-isp"), run(None)
    assert record.job["defense"] == "raw-isp"
    assert record.robust_accuracy is not None
    assert record.job["probe_sha256"] != bare.job["probe_sha256"]
    other = run(RawIsp(omega=0.5, demosaic="bilinear"))
    assert other.job["defense"] == "raw-isp:omega=0.5,demosaic=bilinear"
    assert len({record.job["id"], bare.job["id"], other.job["id"]}) == 3


def test_the_card_says_what_is_not_verified():
    from robustkit.cli import cards

    card = cards.defense("raw-isp")
    assert "not verified" in card
    assert "from memory" in card


def pictures(folder, n=12, side=40):
    from PIL import Image

    for i in range(n):
        levels = (images(1, side, side)[0] * (255 - 8 * i)).to(torch.uint8).permute(1, 2, 0).numpy()
        Image.fromarray(levels).save(folder / f"{i:02}.png")
    return str(folder)


def test_pairs_are_of_one_scene(tmp_path):
    source = photos.read("sklearn")
    assert len(source.images) == 2
    finished, raw = photos.pairs([source], 6, PLAIN, toys.seeded(5))
    assert finished.shape == (6, 3, 32, 32)
    assert raw.shape == (6, 4, 32, 32)
    # of a camera that does nothing the RAW is the image, seen twice as finely through a mosaic
    for by in BY:
        assert float(training.psnr(PLAIN.developed(raw, by), finished).min()) > 25
    small = photos.read(pictures(tmp_path))
    finished, raw = photos.pairs([small], 4, PLAIN, toys.seeded(5))
    assert float(training.psnr(PLAIN.developed(raw, "bilinear"), finished).mean()) > 12  # noise, enlarged


@pytest.mark.parametrize("name", networks.NETWORKS)
def test_training_repeats_for_a_seed_and_lowers_the_loss(name, tmp_path):
    source, losses = photos.read("sklearn"), []
    plan = training.Plan(steps=12, batch=4, rate=3e-3)
    state = torch.get_rng_state()
    first = training.train(name, [source], plan, lambda event: losses.append(event.loss))
    assert torch.equal(state, torch.get_rng_state())
    again = training.train(name, [source], plan)
    other = training.train(name, [source], replace(plan, seed=1))
    same = [torch.equal(a, b) for a, b in zip(first.parameters(), again.parameters(), strict=True)]
    assert all(same)
    assert not all(torch.equal(a, b) for a, b in zip(first.parameters(), other.parameters(), strict=True))
    assert sum(losses[-3:]) < sum(losses[:3])


def test_the_command_writes_parts_that_the_defense_takes(tmp_path):
    from click.testing import CliRunner

    source, folder = tmp_path / "pictures", tmp_path / "mine"
    source.mkdir()
    pictures(source)
    for name in ("unet", "isp"):
        asked = [name, "--images", str(source), "--steps", "2", "--batch", "2", "--folder", str(folder)]
        done = CliRunner().invoke(training.main, asked)
        assert done.exit_code == 0, done.output
        assert "PSNR" in done.output
    card = json.loads((folder / "isp.json").read_text())
    assert card["command"] == "python -m robustkit_defenses.raw.train isp --images pictures --steps 2 --batch 2"
    assert card["data"][0]["images"] == 12
    assert str(tmp_path) not in json.dumps(card)
    module = RawIsp(weights=str(folder)).protect(Net())
    assert module(images()).shape == (4, 10)


@pytest.mark.parametrize("source", ["nowhere", "empty", "grey.npz", "few"])
def test_sources_that_cannot_be_trained_on_are_refused(source, tmp_path):
    import numpy as np

    (tmp_path / "empty").mkdir()
    (tmp_path / "few").mkdir()
    pictures(tmp_path / "few", n=3)
    np.savez(tmp_path / "grey.npz", x=np.zeros((3, 40, 40), np.uint8))
    with pytest.raises(UsageError, match=r"nowhere|no photographs|must be uint8|at least 10"):
        training.make("isp", [str(tmp_path / source)], training.Plan(steps=1), tmp_path, lambda event: None)


def test_the_report_shows_every_number_between_its_marks(tmp_path, monkeypatch):
    from benchmarks import raw
    from robustkit.stats import Proportion

    monkeypatch.setattr(raw, "fidelity", lambda n: dict.fromkeys(raw.DEFENSES, (30.0, 1.0)))
    rows, k = [], iter(range(1, 1000))

    def row(*facts):
        rows.append(raw.Row(*facts, Proportion(next(k), 1000)))

    for network, defenses in raw.THROUGH.items():
        for label in ("none", *raw.DEFENSES):
            row(network, label, "clean", "", "0")
            for attack in raw.ATTACKS:
                for eps in raw.EPS:
                    row(network, label, "white-box" if label == "none" else "oblivious", attack, eps)
        for label in defenses:
            for attack in (*raw.ATTACKS, *raw.LAST, raw.SUITE):
                for eps in raw.EPS:
                    row(network, label, "white-box", attack, eps)
    (tmp_path / "README.md").write_text(f"before\n{raw.BEGIN}\nold\n{raw.END}\nafter\n")
    raw.write(raw.tables(rows, 1000), rows, tmp_path)
    text = (tmp_path / "README.md").read_text()
    assert text.startswith(f"before\n{raw.BEGIN}")
    assert text.endswith(f"{raw.END}\nafter\n")
    assert "old" not in text
    for each in rows:
        assert f" {raw.percent(each.share)} |" in text
    assert raw.NOT_RUN not in text
    assert raw.tables(rows[:-1], 1000).count(raw.NOT_RUN) == 1
    assert len((tmp_path / "accuracy.csv").read_text().splitlines()) == 1 + len(rows)
