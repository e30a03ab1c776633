from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from moto.server import ThreadedMotoServer

from faithad import storage
from faithad.errors import CheckpointError, RecordingError
from faithad.features import Normalization
from faithad.model.alarm import AlarmThreshold
from faithad.model.checkpoint import FILE_NAME, TrainedModel, describe, load_model, save_model
from faithad.model.classical import fit_classical
from faithad.model.linear import FramePCA, FrameRidge, fit_linear
from faithad.model.skip_cae_transformer import SkipCAETransformer
from faithad.model.table import MODELS, build_network
from faithad.settings import FeatureSettings


def trained(*, seed: int = 3, n_frames: int = 40, **changes: Any) -> TrainedModel:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = SkipCAETransformer(16, n_frames, dropout=0.2).train()
        with torch.no_grad():
            network(torch.randn(4, 16, n_frames))
        normalization = Normalization(mean=torch.randn(16), std=torch.rand(16) + 0.5)
    values: dict[str, Any] = {
        "network": network,
        "normalization": normalization,
        "features": FeatureSettings(n_mels=16, n_fft=256, hop_samples=250, sample_rate_hz=10_000, clip_s=1.0),
        "name": "mae",
        "seed": seed,
        "alarm": AlarmThreshold("gamma", "mean", 0.05, 12.345678901234567, 18.0, 40),
        "best_epoch": 7,
        "config_hash": "0123456789ab",
    }
    return TrainedModel(**(values | changes))


def any_model(name: str) -> TrainedModel:
    """A model of any name, with a network that has learnt, or a detector that was fitted."""
    if not MODELS[name].reconstructs:
        x = torch.randn(20, 16, 40, generator=torch.Generator().manual_seed(5))
        return trained(name=name, network=fit_classical(name, x, seed=3), best_epoch=0)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(5)
        network = build_network(name, 16, 40).train()
        with torch.no_grad():
            network(torch.randn(4, 16, 40))
    if isinstance(network, FramePCA | FrameRidge):
        fit_linear(network, [torch.randn(4, 16, 40)], n_clips=4, seed=3)
    return trained(name=name, network=network)


def rewrite(folder: Path, *, header: dict[str, Any] | None = None, drop: str | None = None) -> None:
    """Change the JSON of the header, or leave out one tensor, with everything else consistent."""
    path = folder / FILE_NAME
    content = path.read_bytes()
    length = int.from_bytes(content[:8], "little")
    metadata = json.loads(content[8 : 8 + length])["__metadata__"]
    tensors = {key: value for key, value in safetensors.torch.load(content).items() if key != drop}
    values = json.loads(metadata["faithad"]) | (header or {})
    safetensors.torch.save_file(tensors, path, {"faithad": json.dumps(values)})


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    save_model(trained(), str(tmp_path))
    return tmp_path


@pytest.fixture
def bucket(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://{host}:{port}")
    monkeypatch.setenv("AWS_REGION", "us-east-1")
    for key in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(key, "testing")
    file_system, path = storage.locate("s3://models?allow_bucket_creation=true&region=us-east-1")
    file_system.create_dir(path)
    yield "s3://models"
    server.stop()


def assert_same(found: TrainedModel, saved: TrainedModel) -> None:
    assert describe(found) == describe(saved)
    assert found.features == saved.features
    assert torch.equal(found.normalization.mean, saved.normalization.mean)
    assert torch.equal(found.normalization.std, saved.normalization.std)
    weights = found.network.state_dict()
    assert weights.keys() == saved.network.state_dict().keys()
    assert all(torch.equal(weights[key], tensor) for key, tensor in saved.network.state_dict().items())


def test_a_model_comes_back_whole_and_ready_to_judge(folder: Path) -> None:
    found, saved = load_model(str(folder)), trained()
    assert_same(found, saved)
    assert not any(module.training for module in found.network.modules())
    x = torch.randn(3, 16, 41)
    with torch.no_grad():
        assert torch.equal(found.network(found.prepare(x)), saved.network.eval()(saved.prepare(x)))


@pytest.mark.parametrize("name", MODELS)
def test_each_model_comes_back_by_its_name(tmp_path: Path, name: str) -> None:
    saved = any_model(name)
    save_model(saved, str(tmp_path))
    found = load_model(str(tmp_path), expect=describe(saved))
    assert_same(found, saved)
    assert type(found.network) is type(saved.network)
    assert (found.n_mels, found.n_frames) == (16, 40)
    assert found.reconstructs == MODELS[name].reconstructs
    assert found.explained == MODELS[name].explained
    x = torch.randn(3, 16, 40)
    with torch.no_grad():
        result = found.network(x)
        assert torch.equal(result, saved.network.eval()(x))
    assert result.shape == ((3, 16, 40) if MODELS[name].reconstructs else (3,))


def test_a_model_of_another_name_is_refused(tmp_path: Path) -> None:
    save_model(any_model("skip_cae"), str(tmp_path))
    with pytest.raises(CheckpointError, match="name is 'skip_cae', asked for 'cae'"):
        load_model(str(tmp_path), expect={"name": "cae"})
    for name, problem in (("cae", "encoder.0.weight is missing"), ("one_class_svm", "support is missing")):
        rewrite(tmp_path, header={"name": name, "options": {}})
        with pytest.raises(CheckpointError, match=rf"tensors of .* do not fit .*{problem}"):
            load_model(str(tmp_path))
    rewrite(tmp_path, header={"name": "skip_cae", "options": {"dropout": 0.1}})
    with pytest.raises(CheckpointError, match="its header lacks or garbles"):
        load_model(str(tmp_path))


def test_a_detector_for_another_shape_is_refused(tmp_path: Path) -> None:
    save_model(any_model("isolation_forest"), str(tmp_path))
    rewrite(tmp_path, header={"n_frames": 1})
    with pytest.raises(CheckpointError, match=r"do not fit its header: .* feature points outside its 16 values"):
        load_model(str(tmp_path))


def test_an_alarm_may_be_missing(tmp_path: Path) -> None:
    save_model(trained(alarm=None), str(tmp_path))
    assert load_model(str(tmp_path)).alarm is None


def test_a_model_in_a_bucket(bucket: str) -> None:
    location = storage.join(bucket, "study", "models", "mae-3")
    with pytest.raises(CheckpointError, match=r"There is no trained model at s3://models/study/models/mae-3/model\."):
        load_model(location)
    save_model(trained(), location)
    assert_same(load_model(location, expect={"seed": 3}), trained())


def test_the_same_model_gives_the_same_bytes(tmp_path: Path) -> None:
    for name in ("first", "second"):
        save_model(trained(), str(tmp_path / name))
    assert (tmp_path / "first" / FILE_NAME).read_bytes() == (tmp_path / "second" / FILE_NAME).read_bytes()
    assert [path.name for path in (tmp_path / "first").iterdir()] == [FILE_NAME]


def test_preparing_drops_extra_frames_and_normalises() -> None:
    model = trained()
    x = torch.randn(2, 16, 41)
    expected = (x[..., :40] - model.normalization.mean[:, None]) / model.normalization.std[:, None]
    assert torch.equal(model.prepare(x), expected)


@pytest.mark.parametrize("shape", [(2, 16, 39), (2, 17, 40), (16, 40)])
def test_preparing_another_shape_is_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(RecordingError, match="16 mel bands, 40 frames or more"):
        trained().prepare(torch.zeros(shape))


def test_no_model_says_where_it_was_looked_for(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"There is no trained model at .*nowhere"):
        load_model(str(tmp_path / "nowhere"))


@pytest.mark.parametrize("kept", [0, 5, 100, 5_000, -1])
def test_half_a_file_is_refused(folder: Path, kept: int) -> None:
    path = folder / FILE_NAME
    path.write_bytes(path.read_bytes()[:kept])
    with pytest.raises(CheckpointError, match="damaged or no safetensors file"):
        load_model(str(folder))


def test_a_flipped_bit_is_noticed(folder: Path) -> None:
    path = folder / FILE_NAME
    content = bytearray(path.read_bytes())
    content[-1000] ^= 1
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match="tensors are not those that were written"):
        load_model(str(folder))


def test_a_pickle_is_refused(folder: Path) -> None:
    torch.save(trained().network.state_dict(), folder / FILE_NAME)
    with pytest.raises(CheckpointError, match="damaged or no safetensors file"):
        load_model(str(folder))


def test_a_safetensors_file_of_others_is_refused(folder: Path) -> None:
    safetensors.torch.save_file({"weight": torch.zeros(3)}, folder / FILE_NAME)
    with pytest.raises(CheckpointError, match="was not written by faithad"):
        load_model(str(folder))


def test_another_format_is_refused(folder: Path) -> None:
    rewrite(folder, header={"format": 99})
    with pytest.raises(CheckpointError, match="format 99; this version of faithad reads 3"):
        load_model(str(folder))


def test_a_missing_tensor_is_noticed(folder: Path) -> None:
    rewrite(folder, drop="network.conv1.weight")
    with pytest.raises(CheckpointError, match="tensors are not those that were written"):
        load_model(str(folder))


def test_tensors_that_do_not_fit_the_header_are_named(folder: Path) -> None:
    rewrite(folder, header={"n_frames": 80})
    with pytest.raises(CheckpointError, match=r"do not fit .*encoder\..* is torch.float32 \(.*\) instead of .*more"):
        load_model(str(folder))


@pytest.mark.parametrize(
    "header",
    [
        {"features": {"n_mels": 16, "window": "hann"}},
        {"features": {"n_mels": 0}},
        {"n_mels": 3},
        {"n_frames": "many"},
        {"options": None},
    ],
)
def test_a_garbled_header_is_refused(folder: Path, header: dict[str, Any]) -> None:
    rewrite(folder, header=header)
    with pytest.raises(CheckpointError, match="its header lacks or garbles"):
        load_model(str(folder))


@pytest.mark.parametrize("header", ["{", "[1]", "5", "null", "[" * 100_000])
def test_a_header_that_is_no_json_object_is_refused(folder: Path, header: str) -> None:
    tensors = safetensors.torch.load((folder / FILE_NAME).read_bytes())
    safetensors.torch.save_file(tensors, folder / FILE_NAME, {"faithad": header})
    with pytest.raises(CheckpointError, match="is damaged: its header cannot be read"):
        load_model(str(folder))


def test_a_model_that_is_not_installed_is_not_called_damaged(folder: Path) -> None:
    rewrite(folder, header={"name": "deep"})
    with pytest.raises(CheckpointError, match="is a model 'deep', which this installation does not have: install the"):
        load_model(str(folder))
    rewrite(folder, header={"name": ["mae"]})
    with pytest.raises(CheckpointError, match=r"is damaged: its header calls the model \['mae'\]"):
        load_model(str(folder))


def test_what_the_study_asks_for_is_compared(folder: Path) -> None:
    model = trained()
    load_model(str(folder), expect=describe(model))
    load_model(str(folder), expect={"features": model.features, "n_frames": 40})
    with pytest.raises(CheckpointError, match="does not fit the study") as error:
        load_model(
            str(folder),
            expect={"n_frames": 41, "name": "mae", "seed": 0, "features": FeatureSettings(n_mels=16, clip_s=1.0)},
        )
    text = str(error.value)
    for difference in (
        "n_frames is 40, asked for 41",
        "seed is 3, asked for 0",
        "features.n_fft is 256, asked for 1000",
        "features.sample_rate_hz is 10000, asked for 20000",
    ):
        assert difference in text
    assert "name" not in text
    assert "clip_s" not in text


def test_asking_for_what_no_model_says_is_refused(folder: Path) -> None:
    with pytest.raises(CheckpointError, match=r"does not say features\.window"):
        load_model(str(folder), expect={"features": {"window": "hann"}})
