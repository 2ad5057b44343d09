"""Build a streaming speech denoiser from an ONNX file, export it, and run the exported library.

Needs the benchmark extras (`pip install -e .[bench]`) for the model, the front end and the clips.
"""

import numpy as np

import tvm_dual
from benchmarks.audio.frontend import NSNET2_48K
from benchmarks.audio.mixing import calibration_clips, evaluation_clips
from benchmarks.nsnet2 import model_path

# One array per stream, float32 (frames, bins): what the model will see, not a test set.
calibration = [NSNET2_48K.features(NSNET2_48K.analyse(clip.noisy)) for clip in calibration_clips()[::3]]
library = tvm_dual.build(
    model_path(), calibration, streaming=True, max_drop=0.2, options=tvm_dual.AdvancedOptions(rule="damage")
)
print(library.report)
library.export_library("denoiser.so")

# A deployment machine needs numpy, tvm_dual and TVM for this half, and no framework.
clip = evaluation_clips()[0]
spectrum = NSNET2_48K.analyse(clip.noisy)
stream = tvm_dual.load("denoiser.so").stream()
gains = np.stack([stream(frame).reshape(-1) for frame in NSNET2_48K.features(spectrum)])
denoised = NSNET2_48K.synthesise(spectrum, gains, len(clip.noisy))
print(f"{len(gains)} frames denoised, {len(denoised) / clip.rate:.1f} s of sound")
