"""Images and folders of images to read back, built with Pillow, and how a source is refused."""

import io
import json
import struct
import zlib

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from coincide.data import SourceError
from coincide.data.images import read_images


def photo(height, width, mode="RGB", seed=0):
    """Return an image of random pixels."""
    bands = len(Image.new(mode, (1, 1)).getbands())
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, bands), np.uint8)
    return Image.frombytes(mode, (width, height), pixels.tobytes())


def encoded(image, kind="PNG", **options):
    """Return the bytes of an image file."""
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def save(image, path, **options):
    """Save an image, making its folder."""
    path.parent.mkdir(parents=True, exist_ok=True)
    image.save(path, **options)
    return path


def deep_png(pixels):
    """Return a PNG of 16 bits, (H, W) or (H, W, 3 or 4): colors are more than Pillow can write."""
    kind = {2: 0, 3: 2, 4: 6}[2 if pixels.ndim == 2 else pixels.shape[2]]
    lines = b"".join(b"\0" + row.astype(">u2").tobytes() for row in pixels)
    header = struct.pack(">IIBBBBB", pixels.shape[1], pixels.shape[0], 16, kind, 0, 0, 0)
    parts = ((b"IHDR", header), (b"IDAT", zlib.compress(lines)), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(held)) + name + held + struct.pack(">I", zlib.crc32(name + held))
        for name, held in parts
    )


def deep_tiff(pixels, *, packed):
    """Return a TIFF of 16 bits in colors (H, W, 3), its pixels packed or not."""
    height, width, _ = pixels.shape
    data = pixels.astype("<u2").tobytes()
    data = zlib.compress(data) if packed else data
    bits_at = 8 + 2 + 12 * 10 + 4
    short, long = 3, 4
    entries = [
        (256, long, 1, width),
        (257, long, 1, height),
        (258, short, 3, bits_at),
        (259, long, 1, 8 if packed else 1),
        (262, long, 1, 2),
        (273, long, 1, bits_at + 6),
        (277, long, 1, 3),
        (278, long, 1, height),
        (279, long, 1, len(data)),
        (284, long, 1, 1),
    ]
    table = b"".join(struct.pack("<HHII", *entry) for entry in entries)
    head = b"II*\0" + struct.pack("<IH", 8, len(entries))
    return head + table + struct.pack("<IHHH", 0, 16, 16, 16) + data


def damaged_png():
    """Return a PNG whose header is fine and whose pixels are cut off."""
    whole = encoded(photo(40, 40))
    return whole[: len(whole) // 2]


def bomb_png():
    """Return a small file that says that it holds 30,000 x 30,000 pixels."""
    whole = bytearray(encoded(Image.new("1", (30_000, 8))))
    whole[20:24] = (30_000).to_bytes(4, "big")
    whole[29:33] = zlib.crc32(whole[12:29]).to_bytes(4, "big")
    return bytes(whole)


def odd_folder(root):
    """Write 20 ordinary photos of mixed sizes and modes, four of them unusable."""
    turned = Image.Exif()
    turned[0x0112] = 6
    deep = (np.arange(50 * 60, dtype=np.uint16) * 21).reshape(50, 60)
    save(photo(60, 80), root / "01.jpg")
    save(photo(80, 60, "L"), root / "02.jpg")
    save(photo(50, 70, "RGBA"), root / "03.png")
    save(photo(70, 50, "CMYK"), root / "04.jpg")
    save(photo(64, 64).quantize(16), root / "05.png")
    save(photo(33, 90).quantize(8), root / "06.gif")
    save(photo(48, 48, "LA"), root / "07.png")
    save(Image.fromarray(deep), root / "08.png")
    save(photo(52, 52, "L").convert("1"), root / "09.png")
    save(photo(40, 100), root / "10.jpg", exif=turned)
    save(photo(90, 90), root / "11.webp")
    save(photo(61, 47), root / "12.bmp")
    save(photo(45, 45), root / "13.tiff")
    save(photo(300, 400), root / "14.JPG")
    save(photo(2, 2), root / "15.png")
    save(photo(77, 55), root / "16.jpeg")
    (root / "17.png").write_bytes(damaged_png())
    save(photo(1, 1), root / "18.png")
    (root / "19.jpg").write_text("I am a letter.")
    (root / "20.txt").write_text("notes")
    return root


def write_parquet(path, items, labels=None, names=None, label="label"):
    """Write images as `datasets` lays them out, with classes described if there are names."""
    records = [{"bytes": item, "path": None} for item in items]
    kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    columns = {"image": pa.array(records, kind)}
    features = {"image": {"_type": "Image"}}
    if labels is not None:
        columns[label] = labels
        if names is not None:
            features[label] = {"_type": "ClassLabel", "names": list(names)}
    described = json.dumps({"info": {"features": features}})
    table = pa.table(columns).replace_schema_metadata({"huggingface": described})
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(table, path)
    return path


def refusal(source, kind=SourceError, **options):
    """Return the sentence with which ``source`` is refused."""
    with pytest.raises(kind) as caught:
        read_images(source, **options)
    sentence = str(caught.value)
    assert "\n" not in sentence
    return sentence


def drawn(image):
    """Return the pixels of a Pillow image as (C, H, W)."""
    pixels = np.asarray(image)
    return pixels[None] if pixels.ndim == 2 else pixels.transpose(2, 0, 1)
