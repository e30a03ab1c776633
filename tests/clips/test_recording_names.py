"""What names say of recordings: of recorders and programs as they are met in the field."""

from __future__ import annotations

from datetime import datetime

import pytest

from faithad.clips.recording_names import read_name


@pytest.mark.parametrize(
    ("name", "moment"),
    [
        ("MPD_19-12-04_0848_00006.wav", datetime(2019, 12, 4, 8, 48)),
        ("MPD_19-12-04_0848_00006", datetime(2019, 12, 4, 8, 48)),
        ("test/deep/MPD_19-12-05_2359_00008_6.pt", datetime(2019, 12, 5, 23, 59)),
        ("MPD_71-01-01_0000_00001.flac", datetime(2071, 1, 1)),
        ("MPD_19-02-30_0848_00006.wav", None),
        ("MPD_19-12-04_2460_00006.wav", None),
        ("helicopter_test.flac", None),
        ("MPD_19-12-04.wav", None),
        ("", None),
        ("20240506_070005.WAV", datetime(2024, 5, 6, 7, 0, 5)),
        ("week/20240506_070005T.WAV", datetime(2024, 5, 6, 7, 0, 5)),
        ("SM4A01234_20240506_070005.wav", datetime(2024, 5, 6, 7, 0, 5)),
        ("s3://mill/week%207/planer%202024-05-06%2007-00-05.flac", datetime(2024, 5, 6, 7, 0, 5)),
        ("2024-05-06T07-00-05Z_mic1.wav", datetime(2024, 5, 6, 7, 0, 5)),
        ("20240506T070005.123.wav", datetime(2024, 5, 6, 7, 0, 5, 123_000)),
        ("north 2024-05-06_07.00.05.wav", datetime(2024, 5, 6, 7, 0, 5)),
        ("2024.05.06 at 07.00.05.wav", datetime(2024, 5, 6, 7, 0, 5)),
        ("2024_05_06__07_00_05.wav", datetime(2024, 5, 6, 7, 0, 5)),
        ("20240506070005.flac", datetime(2024, 5, 6, 7, 0, 5)),
        ("20240506_070005/ZOOM0001.WAV", None),  # the folder's name is not the recording's
        ("240506_070005.wav", None),  # which of the three is the year?
        ("20240506_0700.wav", None),  # a time, or a running number
        ("20240506_0700051.wav", None),
        ("120240506_070005.wav", None),
        ("20241306_070005.wav", None),
        ("20240506_250005.wav", None),
        ("2024-0506_070005.wav", None),
        ("20240506_070005-20240506_080005.wav", None),  # from, to? or copied?
        ("20240506_070005_20240506_070005.wav", datetime(2024, 5, 6, 7, 0, 5)),
        ("18991231_235959.wav", None),
        # Fractions of a second.
        ("20240506_070005.25+0100.wav", datetime(2024, 5, 6, 7, 0, 5, 250_000)),
        ("20240506_070005,123456789.wav", datetime(2024, 5, 6, 7, 0, 5, 123_456)),
        # Clocks of 12 hours.
        ("Audio Recording 2024-05-06 at 10.00.00 PM.wav", datetime(2024, 5, 6, 22)),
        ("Audio Recording 2024-05-06 at 10.00.00\u202fPM.wav", datetime(2024, 5, 6, 22)),
        ("2024-05-06 at 9.05.07 am.flac", datetime(2024, 5, 6, 9, 5, 7)),
        ("2024-05-06_at_12.00.00_AM.wav", datetime(2024, 5, 6)),
        ("2024-05-06 12-30-00PM.wav", datetime(2024, 5, 6, 12, 30)),
        ("2024-05-06 13.00.00 PM.wav", datetime(2024, 5, 6, 13)),
        ("20240506_100000_PM.wav", datetime(2024, 5, 6, 10)),  # somebody's initials
        ("2024-05-06 10.00.00 PMD.wav", datetime(2024, 5, 6, 10)),
        # Pieces of a recording.
        ("20240506_070000_590.0s_600.0s.wav", datetime(2024, 5, 6, 7, 9, 50)),
        ("S4A01234_20240506_235959.5_1.25s_4s.wav", datetime(2024, 5, 7, 0, 0, 0, 750_000)),
        ("20240506_070000_600.0s_590.0s.wav", datetime(2024, 5, 6, 7)),
    ],
)
def test_when_a_recording_began(name: str, moment: datetime | None) -> None:
    assert read_name(name).recorded_at == moment


@pytest.mark.parametrize(
    ("name", "hours"),
    [
        ("20241027T020000+0100.wav", 1),
        ("20241027T020000Z.wav", 0),
        ("SERF_20130314_000021Z_000.wav", 0),
        ("20140301_085031+0630blah.wav", 6.5),
        ("20140301_085031-0630blah.wav", -6.5),
        ("2024-05-06T07-00-05+05-45.flac", 5.75),
        ("2024-05-06 07.00.05 +01.00.wav", 1),
        ("20240506T070005.250+10.wav", 10),
        ("20240506T070005-05:00_590.0s_600.0s.wav", -5),
        ("2024-05-06 at 7.00.05 PM +0200.wav", 2),
        ("20240506_070005.wav", None),
        ("20240506_070005-0012.wav", None),  # a counter
        ("20240506_070005-0001.wav", None),
        ("20240506_070005+0170.wav", None),
        ("20240506_070005Zoom.wav", None),
        ("20240506_070005_0100.wav", None),
        ("MPD_19-12-04_0848_00006.wav", None),
    ],
)
def test_the_offset_from_utc(name: str, hours: float | None) -> None:
    offset_s = read_name(name).utc_offset_s
    assert offset_s == (None if hours is None else 3600 * hours)


@pytest.mark.parametrize(
    ("name", "recorder"),
    [
        ("week/A_20240506_070000.wav", "week/A_*"),
        ("week/20240506_070000_Tr1.WAV", "week/*_Tr1"),
        ("week/20240506_070000.flac", "week/*"),
        ("week/20241027T020000+0100.wav", "week/*"),
        ("week/mic 1 2024-05-06 at 9.05.07 PM.wav", "week/mic 1 *"),
        ("2024-05-06/week/A_20240506_070000_590.0s_600.0s.wav", "/week/A_*"),
        ("week/MPD_19-12-04_0848_00006.wav", "week/MPD_*"),
        ("MPD_19-12-04_0848_00006.wav", "MPD_*"),
        ("week/ZOOM0001_Tr1.wav", None),
        ("week/20241306_070005.wav", None),
    ],
)
def test_the_recorder(name: str, recorder: str | None) -> None:
    assert read_name(name).recorder == recorder
