"""Make the Ogg Vorbis clips of this folder from the Debian packages they come from.

    python examples/data/make_clips.py FOLDER_WITH_DEBS

FOLDER_WITH_DEBS holds asterisk-core-sounds-{en,es,fr,it,ru}-g722_1.6.1-1_all.deb, as
``apt-get download asterisk-core-sounds-en-g722`` and its siblings fetch them. Needs ``dpkg-deb``, and
the Python packages ``av`` and ``soundfile``.
"""

from __future__ import annotations

import argparse
import io
import subprocess
import tarfile
from pathlib import Path

import av
import numpy as np
import soundfile

RATE = 16_000
PACKAGE = "asterisk-core-sounds-{language}-g722_1.6.1-1_all.deb"
VOICES = {
    "en": "en_US_f_Allison",
    "es": "es_MX_f_Allison",
    "fr": "fr_CA_f_June",
    "it": "it_IT_m_Carlo",
    "ru": "ru_RU_f_IvrvoiceRU",
}

# One prompt is one clip. No prompt is in two sets, in any language.
SPEECH = {
    "calibration": (
        "agent-alreadyon",
        "confbridge-pin",
        "demo-enterkeywords",
        "demo-thanks",
        "dir-instr",
        "queue-periodic-announce",
        "ss-noservice",
        "vm-instructions",
        "vm-newuser",
        "vm-nobox",
        "vm-opts",
        "vm-rec-unv",
    ),
    "judging": (
        "agent-user",
        "confbridge-lock-extended",
        "dir-usingkeypad",
        "pbx-invalidpark",
        "queue-youarenext",
        "vm-forward",
        "vm-tempgreeting2",
        "vm-tmpexists",
    ),
    "evaluation": (
        "tt-allbusy",
        "vm-forwardoptions",
        "vm-invalid-password",
        "vm-record-prepend",
        "vm-review",
        "vm-saveoper",
    ),
}
BABBLE = {
    "calibration": ("agent-incorrect", "vm-intro"),
    "judging": ("vm-rec-temp", "conf-usermenu"),
    "evaluation": ("demo-congrats", "demo-instruct"),
}
BABBLE_SECONDS = 4.5  # the first seconds are enough for babble, and keep the folder under 2 MB
#: Of Vorbis, from 0 (largest) to 1.
COMPRESSION = 0.4


def read_prompts(deb: Path, voice: str) -> dict[str, bytes]:
    """Read every prompt of one package.

    Parameters
    ----------
    deb
        The Debian package.
    voice
        The folder of the voice inside the package.

    Returns
    -------
    dict
        Prompt name, without suffix, to raw G.722 bytes.
    """
    archive = subprocess.run(["dpkg-deb", "--fsys-tarfile", str(deb)], check=True, capture_output=True).stdout
    prompts = {}
    with tarfile.open(fileobj=io.BytesIO(archive)) as tar:
        for member in tar:
            path = Path(member.name)
            if member.isfile() and path.suffix == ".g722" and path.parent.name == voice:
                prompts[path.stem] = tar.extractfile(member).read()
    return prompts


def decode_g722(data: bytes) -> np.ndarray:
    """Decode raw G.722 at 64 kbit/s.

    Returns
    -------
    numpy.ndarray
        int16, shape (samples,), 16 kHz mono.
    """
    with av.open(io.BytesIO(data), format="g722") as container:
        blocks = [frame.to_ndarray().reshape(-1) for frame in container.decode(audio=0)]
    return np.concatenate(blocks).astype(np.int16, copy=False)


def main() -> None:
    """Write the clips next to this script."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("debs", type=Path, help="folder with the five Debian packages")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent, help="where to write (default: here)")
    arguments = parser.parse_args()

    for language, voice in VOICES.items():
        prompts = read_prompts(arguments.debs / PACKAGE.format(language=language), voice)
        for part in SPEECH:
            wanted = SPEECH[part] if language == "en" else BABBLE[part]
            prefix = "speech" if language == "en" else "babble"
            folder = arguments.out / part
            folder.mkdir(parents=True, exist_ok=True)
            for name in wanted:
                wave = decode_g722(prompts[name])
                if prefix == "babble":
                    wave = wave[: int(BABBLE_SECONDS * RATE)]
                path = folder / f"{prefix}-{language}-{name}.ogg"
                soundfile.write(path, wave, RATE, format="OGG", subtype="VORBIS", compression_level=COMPRESSION)
                print(f"{path.relative_to(arguments.out)}: {len(wave) / RATE:.1f} s, {path.stat().st_size} bytes")


if __name__ == "__main__":
    main()
