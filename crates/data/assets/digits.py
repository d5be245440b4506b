"""Writes digits.bin.gz: 1,797 labels (one byte each), then 1,797 images of 8x8 pixels (one byte each, 0..16).

Needs scikit-learn, which ships the data.
"""
import gzip
from pathlib import Path

from sklearn.datasets import load_digits

digits = load_digits()
raw = digits.target.astype("uint8").tobytes() + digits.images.astype("uint8").tobytes()
target = Path(__file__).with_name("digits.bin.gz")
target.write_bytes(gzip.compress(raw, 9, mtime=0))
print(target.name, target.stat().st_size, "bytes")
