"""The published spectrograms: what is taken as it is, and what is refused without being run."""

from __future__ import annotations

import io
import math
import os
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch

from faithad.clips.spectrograms import read_spectrogram
from faithad.errors import RecordingError


def saved(path: Path, thing: object) -> str:
    torch.save(thing, path)
    return str(path)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16])
def test_spectrogram(tmp_path: Path, dtype: torch.dtype) -> None:
    tensor = torch.linspace(-27, 24, 80 * 401).reshape(80, 401).to(dtype)
    for shape in ((80, 401), None):
        spectrogram = read_spectrogram(saved(tmp_path / "a_1.pt", tensor), shape=shape)
        assert spectrogram.dtype == np.float32
        np.testing.assert_array_equal(spectrogram, tensor.float().numpy())
        of_one_channel = read_spectrogram(saved(tmp_path / "b_1.pt", tensor[None]), shape=shape)
        np.testing.assert_array_equal(of_one_channel, spectrogram)


def test_spectrogram_in_the_old_file_format(tmp_path: Path) -> None:
    torch.save(torch.ones(80, 401), tmp_path / "a_1.pt", _use_new_zipfile_serialization=False)
    assert read_spectrogram(str(tmp_path / "a_1.pt"), shape=(80, 401)).sum() == 80 * 401


class Villain:
    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.mkdir, (str(self.target),)


def test_code_in_a_spectrogram_is_refused_unrun(tmp_path: Path) -> None:
    uri = saved(tmp_path / "a_1.pt", Villain(tmp_path / "run"))
    with pytest.raises(RecordingError, match=r"would run code \((posix|os)\.mkdir\)"):
        read_spectrogram(uri, shape=(80, 401))
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("thing", "reason"),
    [
        ({"x": torch.ones(80, 401)}, "holds a dict, not a tensor"),
        ([1.0], "holds a list, not a tensor"),
        (torch.ones(80, 400), r"has the shape \(80, 400\); \(80, 401\)"),
        (torch.ones(2, 80, 401), r"has the shape \(2, 80, 401\)"),
        (torch.ones(1, 1, 80, 401), r"has the shape \(1, 1, 80, 401\)"),
        (torch.ones(80, 401, dtype=torch.int64), "torch.int64"),
        (torch.ones(80, 401, dtype=torch.complex64), "torch.complex64"),
        (torch.ones(80, 401, device="meta"), "on meta"),
        (torch.full((80, 401), math.nan), r"NaN or infinite values \(32080 of 32080\)"),
        (torch.full((80, 401), math.inf), "NaN or infinite"),
        (torch.full((80, 401), 1e300, dtype=torch.float64), "NaN or infinite"),
    ],
)
def test_unusable_spectrograms(tmp_path: Path, thing: object, reason: str) -> None:
    uri = saved(tmp_path / "a_1.pt", thing)
    with pytest.raises(RecordingError, match=reason) as caught:
        read_spectrogram(uri, shape=(80, 401))
    assert uri in str(caught.value)


def test_any_shape_still_means_two_axes(tmp_path: Path) -> None:
    with pytest.raises(RecordingError, match=r"has the shape \(401,\); two axes"):
        read_spectrogram(saved(tmp_path / "a_1.pt", torch.ones(401)), shape=None)


def test_files_that_torch_cannot_load(tmp_path: Path) -> None:
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w") as file:
        file.writestr("readme.txt", "no tensor")
    whole = Path(saved(tmp_path / "whole_1.pt", torch.ones(80, 401))).read_bytes()
    contents = {
        b"": "is empty",
        b"just text\n" * 50: "is no spectrogram",
        bytes(range(256)): "is no spectrogram",
        archive.getvalue(): "is no spectrogram",
        whole[: len(whole) // 2]: "is no spectrogram",
    }
    for content, reason in contents.items():
        (tmp_path / "a_1.pt").write_bytes(content)
        with pytest.raises(RecordingError, match=reason):
            read_spectrogram(str(tmp_path / "a_1.pt"), shape=(80, 401))
    with pytest.raises(RecordingError, match="does not exist"):
        read_spectrogram(str(tmp_path / "none_1.pt"), shape=(80, 401))
