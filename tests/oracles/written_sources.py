"""Sources written to files, and the sentences with which they are refused."""

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from coincide.data import SourceError, load_source


def saved(folder, name, content):
    """Write ``content`` (of any kind the sources have) and return its path."""
    path = folder / name
    if isinstance(content, bytes):
        path.write_bytes(content)
    elif isinstance(content, str):
        path.write_text(content, encoding="utf-8")
    elif isinstance(content, pa.Table):
        pq.write_table(content, path)
    elif isinstance(content, dict):
        np.savez(path, **content)
    else:
        np.save(path, content)
    return path


def refusal(source, **options):
    """Return the sentence with which ``source`` is refused."""
    with pytest.raises(SourceError) as caught:
        load_source(source, **options)
    sentence = str(caught.value)
    assert "\n" not in sentence
    return sentence


def lists(rows, width=-1, kind="float32"):
    """Return rows of lists: of one ``width``, or of any for -1."""
    return pa.array(rows, pa.list_(pa.type_for_alias(kind), width))
