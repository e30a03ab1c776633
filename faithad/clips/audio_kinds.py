"""Which kind of file this is, from its first bytes, and how to convert sound that is neither WAV nor FLAC.

Nothing of a file's content is quoted: a link may lead to a private file.
"""

from __future__ import annotations

import posixpath
import shlex

# The first bytes of other files that people name like a recording.
_SOUNDS = (
    (b"OggS", "Ogg sound (Vorbis or Opus)"),
    ((b"ID3", b"\xff\xfb", b"\xff\xf3", b"\xff\xf2", b"\xff\xfa", b"\xff\xe3"), "MP3 sound"),
    ((b"\xff\xf1", b"\xff\xf9"), "AAC sound"),
    (b"FORM", "AIFF sound"),
    (b".snd", "AU sound"),
    (b"caff", "CAF sound"),
    (b"riff", "W64 sound"),
    (b"wvpk", "WavPack sound"),
    (b"MAC ", "Monkey's Audio sound"),
    (b"\x30\x26\xb2\x75", "WMA sound"),
)
_OTHERS = (
    (b"PK\x03\x04", "a ZIP archive"),
    (b"\x1f\x8b", "a compressed file (gzip)"),
    (b"Rar!", "a RAR archive"),
    (b"7z\xbc\xaf", "a 7z archive"),
    (b"MThd", "a MIDI file"),
    (b"RIFF", "a RIFF file, but no WAV"),
    (b"%PDF", "a PDF document"),
    ((b"\x89PNG", b"\xff\xd8\xff"), "a picture"),
    (b"<", "a web page or XML text (HTML)"),
    (b"\0\0\0\0\0\0\0\0", "zeros, as a failing disk or a download that was cut off leaves them"),
)
# They may have 32 bits a sample.
_LOSSLESS = (".flac", ".aif", ".aifc", ".aiff", ".ape", ".au", ".caf", ".w64", ".wv")
_TEXT_CONTROLS = b"\t\n\r\f"


def kind_of(start: bytes) -> tuple[str, bool]:
    """What a file holds that is neither WAV nor FLAC, and whether that is sound.

    Args:
        start: its first bytes, some hundreds of them.
    """
    if start[4:8] == b"ftyp":
        return "MP4 or M4A sound", True
    for kinds, is_sound in ((_SOUNDS, True), (_OTHERS, False)):
        for magic, kind in kinds:
            if start.startswith(magic):
                return kind, is_sound
    return ("text" if _is_text(start) else "something else"), False


def _is_text(start: bytes) -> bool:
    if any(byte < 32 and byte not in _TEXT_CONTROLS for byte in start):
        return False
    try:
        start.decode("utf-8")
    except UnicodeDecodeError as error:
        return error.reason == "unexpected end of data"  # a letter that is cut in two
    return True


def ffmpeg_command(uri: str) -> str:
    """The command that converts a sound file, in the file's folder: to FLAC, or to WAV if it may have over 24 bits."""
    name = posixpath.basename(uri.partition("?")[0] if "://" in uri else uri)
    stem, ending = posixpath.splitext(name)
    to_wav = ending.lower() in _LOSSLESS
    # A name that begins with a dash would be an option.
    start = "./" if name.startswith("-") else ""
    source, target = shlex.quote(start + name), shlex.quote(f"{start}{stem}{'.wav' if to_wav else '.flac'}")
    return f"ffmpeg -i {source} -c:a pcm_s24le -rf64 auto {target}" if to_wav else f"ffmpeg -i {source} {target}"
