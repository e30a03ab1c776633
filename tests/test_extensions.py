"""A package that adds a method and a model, installed in a folder as pip installs it; and broken packages."""

from __future__ import annotations

import importlib
import sys
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

import faithad
from faithad.attribution.gradient_stream import attribute_batch
from faithad.attribution.methods import METHODS
from faithad.audit.model import AuditModel
from faithad.audit.shard import audit_clips
from faithad.config.sections import Attribution, Audit
from faithad.config.study import Study, parse_study
from faithad.errors import ConfigError
from faithad.extensions import extension_distributions
from faithad.features import Normalization
from faithad.model.alarm import AlarmThreshold
from faithad.model.checkpoint import TrainedModel, load_model, save_model
from faithad.model.table import MODELS, build_network
from faithad.model.training import Training
from faithad.pipelines.training.run import require_explainable
from faithad.settings import AttributionSettings, FeatureSettings, TrainingSettings

CODE = """
from torch import nn
from faithad.attribution.methods import Method
from faithad.model.table import ModelRow


def _squares(points, evaluation, clip):
    return evaluation.gradient.square().sum(dim=0)


SQUARES = Method("squares", "Squared gradient", "here", signed=False, needs="gradient", reduce=_squares)


class UNet(nn.Module):
    grad_cam_layer = "down"

    def __init__(self, n_mels, n_frames):
        super().__init__()
        self.down, self.up = nn.Conv2d(1, 4, 4, 4), nn.ConvTranspose2d(4, 1, 4, 4)

    def forward(self, x):
        return self.up(self.down(x[:, None]).relu())[:, 0]


U_NET = ModelRow("u_net", "U-Net", "acme_sound:UNet", explained=True, frames_multiple=4)
NO_ROW = "no row"
"""
ENTRY_POINTS = """
[faithad.methods]
squares = acme_sound:SQUARES

[faithad.models]
u_net = acme_sound:U_NET
"""
Install = Callable[..., Path]


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Install]:
    """Makes a package as an installed one lies on disk, and puts its folder on the path."""
    installed: list[str] = []

    def install(name: str, entry_points: str, code: str = CODE) -> Path:
        folder = tmp_path / name
        information = folder / f"{name}-2.1.dist-info"
        information.mkdir(parents=True)
        (information / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 2.1\n")
        (information / "entry_points.txt").write_text(textwrap.dedent(entry_points))
        (folder / f"{name}.py").write_text(code)
        monkeypatch.syspath_prepend(folder)
        installed.append(name)
        return folder

    yield install
    for name in installed:
        sys.modules.pop(name, None)


def test_a_study_may_name_what_a_package_adds(install: Install) -> None:
    text = """
        {name: s, root: r, models: [mae, u_net], attribution: {methods: [saliency, squares]},
         data: {train: [a], test: [b]}}
    """
    with pytest.raises(
        ConfigError, match=r"models\.1: allowed: ae, (.|\n)*attribution\.methods\.1: allowed: error_map"
    ):
        parse_study(text, name="x.yaml")
    assert extension_distributions() == []
    install("acme_sound", ENTRY_POINTS)
    study = parse_study(text, name="x.yaml")
    assert study.runs[-1] == ("u_net", 4)
    assert (study.n_frames("mae"), study.n_frames("u_net"), study.n_frames("ae")) == (400, 400, 401)
    assert (METHODS["squares"].title, MODELS["u_net"].title) == ("Squared gradient", "U-Net")
    assert list(METHODS)[-1] == "squares"
    assert extension_distributions() == ["acme_sound"]


def test_a_packages_model_is_trained_saved_audited_and_explained_by_its_method(
    install: Install, tmp_path: Path
) -> None:
    install("acme_sound", ENTRY_POINTS)
    features = FeatureSettings(n_fft=4000, hop_samples=2000, n_mels=16)
    x = torch.randn(12, 16, 100, generator=torch.Generator().manual_seed(0))
    torch.manual_seed(0)
    settings = TrainingSettings(3, 4, 1e-3, 1e-5, 0.01, 5, 30, 1e-5, None, 4, 0)
    training = Training(build_network("u_net", 16, 100), x[:8], x[8:], settings)
    while not training.finished:
        training.run_epoch()
    network = build_network("u_net", 16, 100)
    network.load_state_dict(training.best_weights())
    alarm = AlarmThreshold("quantile", "mean", 0.05, 0.5, 18.0, 4)
    saved = TrainedModel(network, Normalization.identity(16), features, "u_net", 0, alarm, 3, "hash")
    save_model(saved, str(tmp_path / "model"))
    trained = load_model(str(tmp_path / "model"), expect={"name": "u_net", "n_frames": 100})
    assert trained.explained

    attribution = Attribution(methods=("squares", "saliency", "grad_cam"))
    model = AuditModel.prepare(
        trained, attribution=attribution, audit=Audit(percentiles=(95,)), device=torch.device("cpu")
    )
    keys = {"recording": "a.wav", "duration_s": 10.0, "intervals": None, "annotated": False, "keep_maps": True}
    clips = [{**keys, "clip_id": f"{k:016x}", "onset_s": 10.0 * k} for k in range(2)]
    log_mels = torch.randn(2, 16, 101, generator=torch.Generator().manual_seed(1))
    rows = audit_clips(model, clips, log_mels, explain=True)
    assert [row["status"] for row in rows["ledger"]] == ["done", "done"]
    assert [row["method"] for row in rows["attributions"]] == [*attribution.methods] * 2
    assert len(rows["faithfulness"]) == 2 * 3

    maps = attribute_batch(
        trained.network,
        log_mels[..., :100],
        methods=attribution.methods,
        settings=AttributionSettings(),
        seed=0,
        clip_ids=[row["clip_id"] for row in clips],
    )
    torch.testing.assert_close(maps["squares"], maps["saliency"].square())
    assert maps["squares"].max() > 0


def test_a_saved_model_whose_package_is_broken_is_not_called_damaged(install: Install, tmp_path: Path) -> None:
    folder = install("acme_sound", ENTRY_POINTS)
    features = FeatureSettings(n_fft=4000, hop_samples=2000, n_mels=16)
    network = build_network("u_net", 16, 100)
    saved = TrainedModel(network, Normalization.identity(16), features, "u_net", 0, None, 3, "hash")
    save_model(saved, str(tmp_path / "model"))
    del sys.modules["acme_sound"]
    (folder / "acme_sound.py").write_text("import lost_module")
    importlib.invalidate_caches()
    with pytest.raises(ConfigError, match=r"acme_sound 2\.1 .*ModuleNotFoundError: .*lost_mod") as caught:
        load_model(str(tmp_path / "model"))
    assert "damaged" not in str(caught.value)


def test_a_model_without_grad_cams_layer_is_refused_before_its_training_and_its_audit(install: Install) -> None:
    install("acme_sound", ENTRY_POINTS, CODE.replace("grad_cam_layer", "other_attribute"))
    study = parse_study(
        "{name: s, root: r, models: [ae, one_class_svm, u_net], data: {train: [a], test: [b]}}", name="x.yaml"
    )
    message = r"grad_cam explains one layer.* and UNet does not say which.* grad_cam_layer is None"
    require_explainable(study, ["ae", "one_class_svm"])
    with pytest.raises(ConfigError, match=message):
        require_explainable(study, study.models)
    scored_only = study.model_copy(update={"audit": Audit(explain="none")})
    without = study.model_copy(update={"attribution": Attribution(methods=("saliency",))})
    for allowed in (scored_only, without):
        require_explainable(allowed, allowed.models)

    features = FeatureSettings(n_fft=4000, hop_samples=2000, n_mels=16)
    network = build_network("u_net", 16, 100)
    trained = TrainedModel(network, Normalization.identity(16), features, "u_net", 0, None, 3, "hash")

    def prepare(of: Study) -> AuditModel:
        return AuditModel.prepare(trained, attribution=of.attribution, audit=of.audit, device=torch.device("cpu"))

    with pytest.raises(ConfigError, match=message):
        prepare(study)
    for allowed in (scored_only, without):
        assert prepare(allowed).explained is not None
    log_mels = torch.randn(2, 16, 101, generator=torch.Generator().manual_seed(1))
    assert len(faithad.score(trained, log_mels)) == 2
    assert faithad.attribute(trained, log_mels, methods=["saliency"])["saliency"].shape == (2, 16, 100)


METHOD = "[faithad.methods]\n{} = acme_sound:{}\n"


@pytest.mark.parametrize(
    ("entry_points", "code", "message"),
    [
        (METHOD.format("saliency", "SQUARES"), CODE, r"acme_sound 2\.1 names a method 'saliency', and so does faithad"),
        (METHOD.format("../x", "SQUARES"), CODE, r"acme_sound 2\.1 names a method '\.\./x'; allowed are small letters"),
        (METHOD.format("other", "SQUARES"), CODE, r"acme_sound 2\.1 .*calls itself 'squares'"),
        (METHOD.format("other", "NO_ROW"), CODE, r"acme_sound 2\.1 .*must be a Method, found str"),
        (METHOD.format("other", "LOST"), CODE, r"acme_sound 2\.1 .*cannot be loaded: AttributeError"),
        (
            METHOD.format("squares", "SQUARES"),
            "import lost_module",
            r"acme_sound 2\.1 .*ModuleNotFoundError: .*lost_mod",
        ),
        (METHOD.format("squares", "SQUARES"), "1 / 0", r"acme_sound 2\.1 .*ZeroDivisionError"),
    ],
)
def test_a_broken_package_is_named(install: Install, entry_points: str, code: str, message: str) -> None:
    install("acme_sound", entry_points, code)
    with pytest.raises(ConfigError, match=message):
        dict(METHODS)


def test_two_packages_cannot_share_a_name(install: Install) -> None:
    for name in ("acme_sound", "bolt_sound"):
        install(name, ENTRY_POINTS)
    assert extension_distributions() == ["acme_sound", "bolt_sound"]
    with pytest.raises(
        ConfigError, match=r"bolt_sound 2\.1 names a model 'u_net', and so does the package acme_sound 2"
    ):
        build_network("u_net", 16, 100)


def test_a_package_is_imported_when_its_row_is_used(install: Install) -> None:
    install("acme_sound", METHOD.format("squares", "SQUARES"), "1 / 0")
    assert "squares" in METHODS
    assert METHODS["saliency"].title == "Saliency"
    assert Attribution(methods=("squares",)).methods == ("squares",)
    with pytest.raises(ConfigError, match="ZeroDivisionError"):
        METHODS["squares"]
    assert METHODS.get("lime") is None
