from __future__ import annotations

import hashlib
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
from faithad.model.state_alarm import StateAlarm, StateThreshold
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
        "alarm": AlarmThreshold(
            "gamma", "mean", 0.05, 12.345678901234567, 18.0, 40, window_thresholds=(98.765432109876543,)
        ),
        "best_epoch": 7,
        "config_hash": "0123456789ab",
        "normals": torch.randn(3, 16, n_frames, generator=torch.Generator().manual_seed(seed)),
        "state": StateAlarm(torch.ones(7, 16), 0.5, 0.025, StateThreshold(0.75, 0.025, 7), None),
    }
    return TrainedModel(**(values | changes))


def any_model(name: str) -> TrainedModel:
    """A model of any name, with a network that has learnt, or a detector that was fitted."""
    if not MODELS[name].reconstructs:
        x = torch.randn(20, 16, 40, generator=torch.Generator().manual_seed(5))
        return trained(name=name, network=fit_classical(name, x, seed=3), best_epoch=0, normals=None)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(5)
        network = build_network(name, 16, 40).train()
        with torch.no_grad():
            network(torch.randn(4, 16, 40))
    if isinstance(network, FramePCA | FrameRidge):
        fit_linear(network, [torch.randn(4, 16, 40)], n_clips=4, seed=3)
    return trained(name=name, network=network)


def digest_of(tensors: dict[str, torch.Tensor], header: dict[str, Any]) -> str:
    """As format 4 says: the header without the digest as JSON, then each tensor in the order of the names."""
    digest = hashlib.sha256(json.dumps({k: v for k, v in header.items() if k != "digest"}, sort_keys=True).encode())
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name}|{tensor.dtype}|{tuple(tensor.shape)}|".encode() + tensor.numpy().tobytes())
    return digest.hexdigest()


def rewrite(folder: Path, *, header: dict[str, Any] | None = None, drop: str | None = None) -> None:
    """Change the JSON of the header, with a digest that fits; or leave out one tensor, which the digest tells."""
    path = folder / FILE_NAME
    content = path.read_bytes()
    length = int.from_bytes(content[:8], "little")
    metadata = json.loads(content[8 : 8 + length])["__metadata__"]
    tensors = {key: value for key, value in safetensors.torch.load(content).items() if key != drop}
    values = json.loads(metadata["faithad"]) | (header or {})
    if header is not None and drop is None:
        values["digest"] = digest_of(tensors, values)
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
    assert (found.normals is None) == (saved.normals is None)
    if found.normals is not None and saved.normals is not None:
        assert torch.equal(found.normals, saved.normals)
    assert found.state is not None
    assert saved.state is not None
    assert found.state.as_json() == saved.state.as_json()
    assert torch.equal(found.state.spectra, saved.state.spectra)
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
    rewrite(folder, header={"n_frames": 24})
    with pytest.raises(CheckpointError, match=r"do not fit .*encoder\..* is \(.*\) instead of \(.*\);.* more"):
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


def with_tensors(folder: Path, tensors: dict[str, torch.Tensor]) -> None:
    """Replace tensors, with a digest that fits."""
    content = (folder / FILE_NAME).read_bytes()
    length = int.from_bytes(content[:8], "little")
    header = json.loads(json.loads(content[8 : 8 + length])["__metadata__"]["faithad"])
    everything = safetensors.torch.load(content) | tensors
    header["digest"] = digest_of(everything, header)
    safetensors.torch.save_file(everything, folder / FILE_NAME, {"faithad": json.dumps(header)})


FEATURES = {"n_mels": 16, "n_fft": 256, "hop_samples": 250, "sample_rate_hz": 10_000, "clip_s": 1.0, "scale": "db"}
ALARM = {
    **{"rule": "gamma", "pooling": "mean", "false_alarm_rate": 0.05},
    **{"threshold": 12.5, "false_alarms_per_hour": 18.0, "n_validation": 40},
}


@pytest.mark.parametrize(
    ("header", "named"),
    [
        ({"n_mels": 10_000, "features": FEATURES | {"n_mels": 10_000}}, "instead of"),
        ({"n_mels": 1_000_000, "features": FEATURES | {"n_mels": 1_000_000}}, "instead of"),
        ({"n_mels": 1_000_000}, "n_mels"),
        ({"n_frames": 10**18}, "n_frames"),
        ({"n_mels": True}, "n_mels"),
        ({"n_frames": 400}, "n_frames"),
        ({"features": FEATURES | {"sample_rate_hz": 10**9}}, "features.sample_rate_hz"),
        ({"features": FEATURES | {"clip_s": 1e9}}, "features.clip_s"),
        ({"features": FEATURES | {"clip_s": 600.0, "sample_rate_hz": 384_000}}, "features"),
        ({"features": FEATURES | {"clip_s": float("nan")}}, "features.clip_s"),
        ({"features": FEATURES | {"hop_samples": 1, "clip_s": 600.0, "n_fft": 2**19}}, "features"),
        ({"features": FEATURES | {"n_fft": "256"}}, "features.n_fft"),
        ({"features": FEATURES | {"scale": "linear"}}, "features"),
        ({"features": [1]}, "features"),
        ({"alarm": ALARM | {"pooling": "median"}}, "alarm.pooling"),
        ({"alarm": ALARM | {"threshold": float("nan")}}, "alarm.threshold"),
        ({"alarm": ALARM | {"threshold": float("inf")}}, "alarm.threshold"),
        ({"alarm": ALARM | {"threshold": "high"}}, "alarm.threshold"),
        ({"alarm": ALARM | {"false_alarm_rate": 2}}, "alarm.false_alarm_rate"),
        ({"alarm": {}}, "alarm.rule"),
        ({"state": None}, "state.spectra"),
        ({"state": {"share": 0.5}}, "state.asked_rate"),
        ({"options": {"dropout": 2}}, "dropout"),
        ({"options": {"dropout": "much"}}, "is built of"),
        ({"seed": 0.5}, "seed"),
        ({"best_epoch": None}, "best_epoch"),
        ({"config_hash": 7}, "config_hash"),
        ({"digest": ["x"]}, "digest"),
        ({"more": 1}, "more"),
    ],
)
def test_a_header_that_lies_is_one_sentence_and_nothing_is_built(
    folder: Path, header: dict[str, Any], named: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    rewrite(folder, header=header)
    if "digest" in header:
        rewrite(folder, header=header, drop="none")
    monkeypatch.setattr(safetensors.torch, "load", lambda _: pytest.fail("tensors were read"))
    with pytest.raises(CheckpointError, match=rf"(is damaged: its header|do not fit) .*{named}") as caught:
        load_model(str(folder))
    assert "\n" not in str(caught.value)


def test_a_header_that_was_changed_is_noticed(folder: Path) -> None:
    content = (folder / FILE_NAME).read_bytes()
    assert content.count(b"12.345678901234567") == 1
    (folder / FILE_NAME).write_bytes(content.replace(b"12.345678901234567", b"19.345678901234567"))
    with pytest.raises(CheckpointError, match="or its header is not"):
        load_model(str(folder))


@pytest.mark.parametrize("metadata", [[1], "text", None, {"faithad": 5}, {"faithad": None}])
def test_metadata_of_another_type_is_refused(folder: Path, metadata: object) -> None:
    header = json.dumps({"__metadata__": metadata}).encode()
    (folder / FILE_NAME).write_bytes(len(header).to_bytes(8, "little") + header)
    with pytest.raises(CheckpointError, match=r"was not written by faithad|its header cannot be read"):
        load_model(str(folder))


@pytest.mark.parametrize(
    "listing",
    [
        b"[1]",
        b'{"a": 1}',
        b'{"a": {"dtype": "F32", "shape": [1], "data_offsets": []}}',
        b'{"a": {"dtype": "F32", "shape": 3, "data_offsets": [0, 12]}}',
        b'{"a": {"dtype": "F32", "shape": [1], "data_offsets": [0, 9000000000000000000]}}',
        b'{"a":' * 50_000,
    ],
)
def test_a_list_of_tensors_that_is_none_is_refused(folder: Path, listing: bytes) -> None:
    (folder / FILE_NAME).write_bytes(len(listing).to_bytes(8, "little") + listing)
    with pytest.raises(CheckpointError, match="damaged or no safetensors file"):
        load_model(str(folder))


@pytest.mark.parametrize("name", ["mae", "one_class_svm"])
def test_a_sparse_file_is_not_read(tmp_path: Path, name: str) -> None:
    """Its header and its size agree on a tensor of 40 GB."""
    save_model(any_model(name), str(tmp_path))
    path = tmp_path / FILE_NAME
    content = path.read_bytes()
    length = int.from_bytes(content[:8], "little")
    listing = json.loads(content[8 : 8 + length])
    start = max(entry["data_offsets"][1] for key, entry in listing.items() if key != "__metadata__")
    listing["network.more"] = {"dtype": "U8", "shape": [40 << 30], "data_offsets": [start, start + (40 << 30)]}
    header = json.dumps(listing).encode()
    with path.open("wb") as file:
        file.write(len(header).to_bytes(8, "little") + header)
        file.truncate(8 + len(header) + start + (40 << 30))
    with pytest.raises(CheckpointError, match=r"more is unknown|above 8,589,934,592"):
        load_model(str(tmp_path))
    with path.open("wb") as file:
        file.write(content)
        file.truncate(40 << 30)
    with pytest.raises(CheckpointError, match=r"its header announces .* bytes, and it has 42,949,672,960"):
        load_model(str(tmp_path))


@pytest.mark.parametrize(
    ("key", "value"),
    [("network.conv1.bias", float("nan")), ("normalization.mean", float("inf")), ("normalization.std", 0)],
)
def test_values_that_are_no_numbers_are_refused(folder: Path, key: str, value: float) -> None:
    tensor = safetensors.torch.load((folder / FILE_NAME).read_bytes())[key]
    with_tensors(folder, {key: torch.full_like(tensor, value)})
    with pytest.raises(CheckpointError, match=f"{key} holds values that are no finite or no allowed numbers"):
        load_model(str(folder))


def test_tensors_of_another_type_are_refused(folder: Path) -> None:
    tensor = safetensors.torch.load((folder / FILE_NAME).read_bytes())["network.conv1.bias"]
    with_tensors(folder, {"network.conv1.bias": tensor.double()})
    with pytest.raises(CheckpointError, match=r"do not fit .*conv1\.bias is torch\.float64 instead of torch\.float32"):
        load_model(str(folder))


def test_a_model_of_format_3_has_a_digest_of_its_tensors_alone(folder: Path) -> None:
    tensors = safetensors.torch.load((folder / FILE_NAME).read_bytes())
    digest = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name}|{tensor.dtype}|{tuple(tensor.shape)}|".encode() + tensor.numpy().tobytes())
    rewrite(folder, header={"format": 3, "digest": digest.hexdigest()}, drop="none")
    assert_same(load_model(str(folder)), trained())
