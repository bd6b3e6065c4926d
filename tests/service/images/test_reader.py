"""One reader: what calls it as a library gets, bit for bit, what the server's network sees."""

from __future__ import annotations

import asyncio
import struct
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from service.engine import Device
from service.images import Limits, formats, read
from service.images.formats import IMAGE_FORMATS
from service.predictor import Predictor
from tests.service.images.files import exif, file, png, with_exif

LIMITS = Limits(decode_seconds=60)
COLOURS = np.asarray(Image.linear_gradient("L").resize((90, 70)).convert("RGB")).copy()
COLOURS[:30, :, 0], COLOURS[:, 40:, 2] = 200, 30
CLEAR = np.dstack([COLOURS, np.where(COLOURS[..., 1] > 120, 255, 20).astype(np.uint8)])
GREY_16 = png(2, 2, 16, 0, b"\0" + struct.pack(">2H", 0, 32_000) + b"\0" + struct.pack(">2H", 9, 65_535))


def any_file(name: str) -> bytes:
    row = formats.BY_NAME[name]
    row.prepare()
    return file(COLOURS, row.plugin)


FILES = {
    "16-bit grey PNG": GREY_16,
    "transparent PNG": file(CLEAR, "PNG"),
    "transparent WebP": file(CLEAR, "WEBP", lossless=True),
    "CMYK JPEG": file(Image.fromarray(COLOURS).convert("CMYK"), "JPEG"),
    "palette": file(Image.fromarray(COLOURS).quantize(7), "PNG", transparency=3),
    "turned JPEG": with_exif(file(COLOURS, "JPEG"), exif(6)),
    "turned PNG": with_exif(file(COLOURS, "PNG"), exif(3, "MM")),
    "progressive JPEG": file(COLOURS, "JPEG", progressive=True),
    "large JPEG": file(COLOURS.repeat(12, 0).repeat(12, 1), "JPEG"),
} | {row.name: any_file(row.name) for row in IMAGE_FORMATS}


@pytest.fixture(scope="module")
def served(tiny_repository: Path) -> tuple[dict[str, np.ndarray], Predictor]:
    """What the server's network sees of each file."""

    async def main() -> tuple[dict[str, np.ndarray], Predictor]:
        predictor = Predictor.open(
            tiny_repository / "tiny" / "1" / "model.onnx", device=Device("cpu", threads=1)
        )
        seen = {name: await predictor.prepare(data) for name, data in FILES.items()}
        await predictor.close()
        return seen, predictor

    return asyncio.run(main())


@pytest.mark.parametrize("name", FILES)
def test_library_and_server_see_the_same(served: tuple[dict[str, np.ndarray], Predictor], name: str) -> None:
    seen, predictor = served
    assert np.array_equal(read(FILES[name], LIMITS, predictor.manifest.preprocessing).pixels, seen[name])


def test_black_white_and_clear_are_what_a_person_sees(
    served: tuple[dict[str, np.ndarray], Predictor],
) -> None:
    seen, _ = served
    assert seen["16-bit grey PNG"].mean() == pytest.approx(95, abs=10)
    assert seen["transparent PNG"].max() >= 240  # clear is white, not the black of a dropped alpha


ADDRESS_SPACE = """
import resource, sys
from service.artifact import Preprocessing
from service.images import Limits, read
from service.images.process import decoder_processes
data = open(sys.argv[1], "rb").read()
resource.setrlimit(resource.RLIMIT_AS, (1 << 30, 1 << 30))
how = Preprocessing((128, 128), "stretch", 1.0, "bilinear", (0.5,) * 3, (0.5,) * 3)
seen = read(data, Limits(), how)
status = open("/proc/self/status").read().split()
peak = int(status[status.index("VmHWM:") + 1])
decoder_processes.close()
peak += resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss
print(seen.decoded.width, seen.decoded.height, peak // 1024)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="memory can be limited on Linux only")
@pytest.mark.parametrize("progressive", [False, True])
def test_a_48_megapixel_jpeg_is_read_by_default_within_a_gibibyte(tmp_path: Path, progressive: bool) -> None:
    """As phones take them. The limit is on all of the process: interpreter, libraries, picture. A progressive
    one has a process of its own, which counts too."""
    noise = Image.effect_noise((2016, 1512), 60).convert("RGB").resize((8064, 6048))
    path = tmp_path / "phone.jpg"
    noise.save(path, "JPEG", quality=85, progressive=progressive)
    done = subprocess.run(
        [sys.executable, "-c", ADDRESS_SPACE, str(path)],
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr[-500:]
    assert done.stdout.startswith("8064 6048 ")
    assert int(done.stdout.split()[-1]) < 700  # MB resident at the peak
