"""What a notebook needs of a trained model: its scores and explanations of single clips. Tables are in `results`.

    model = faithad.load_model("runs/demo/models/mae-0")
    log_mels = faithad.log_mel("clip.wav", model.features)
    maps = faithad.attribute(model, log_mels)

Shape letters: B clips, F mel bands, T frames, P percentiles. Log-mels are in the unit of the features (decibels by
default): the model normalises them itself. Arrays go in as numpy arrays or tensors and come out as numpy arrays; tables
come out as pandas frames. Everything is computed where the model's network lies, `model.network.to("cuda")` moves it.

A clip may be shorter than those that a model is built for. Its log-mel then has fewer frames or, beside whole clips in
one array, NaN in the frames after its end. All results are about the frames that hold sound; maps are NaN after them.

These functions hold everything in memory, which suits minutes of sound. `faithad audit` streams days of it.
"""

from faithad.library.models import attribute, faithfulness, load_model, localization, peaks, score
from faithad.library.sounds import log_mel, recording_spectrum

__all__ = ["attribute", "faithfulness", "load_model", "localization", "log_mel", "peaks", "recording_spectrum", "score"]
