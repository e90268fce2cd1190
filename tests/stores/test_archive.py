"""A store of schema 1 that every later version must read as the first one wrote it.

`tests/data/schema-1.zip` holds two stores. `imported.zarr` is what `import_arrays` made, with units of 4 rows and
encoder "hand/made", of the numbers below: 6 rows, one of them without a label, two classes with two prompts each,
logit_scale 20. `extracted.zarr` is what `extract` made of two folders with three drawn shapes of 32 by 32 pixels each
and `disc/bad.png`, whose bytes are "no image", with the demo encoder, units of 4 rows and two templates. The zip is
never made anew: what no longer reads it has broken the stores of its users.
"""

from __future__ import annotations

import zipfile
from pathlib import Path

import numpy as np
import pytest

from onceclip.pipeline.runs.fit import fit
from onceclip.pipeline.runs.run import RunSpec
from onceclip.stores import Store, open_store
from onceclip.stores.identity import digest
from onceclip.stores.verification import verify

ARCHIVE = Path(__file__).resolve().parent.parent / "data" / "schema-1.zip"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("archive")
    with zipfile.ZipFile(ARCHIVE) as file:
        file.extractall(path)
    return path


@pytest.fixture
def imported(folder: Path) -> Store:
    return open_store(str(folder / "imported.zarr"))


@pytest.fixture
def extracted(folder: Path) -> Store:
    return open_store(str(folder / "extracted.zarr"))


def of_numbers(values: np.ndarray) -> str:
    return digest(np.ascontiguousarray(values).astype(values.dtype.newbyteorder("<")).tobytes()).hex()


@pytest.mark.parametrize("name", ["imported.zarr", "extracted.zarr"])
def test_an_archived_store_has_no_fault(folder: Path, name: str) -> None:
    assert verify(str(folder / name)).faults == []


def test_archived_imported_numbers_are_what_they_were(imported: Store) -> None:
    expected = np.array([[1, 2, 0.5], [-3, 0.25, 4], [1.5, -1, 2], [0.1, 0.2, 0.3], [8, -7, 6], [1e-3, 1e3, -1]],
                        np.float32)
    assert imported.complete
    assert imported.embeddings().dtype == np.float32
    np.testing.assert_array_equal(imported.embeddings(), expected)
    assert imported.table.key.tolist() == ["Kätzchen/1.png", "dog/1.png", "Kätzchen/2.png", "dog/2.png",
                                           "nobody/日本.png", "dog/%E9.png"]
    assert imported.table.label.tolist() == [0, 1, 0, 1, -1, 1]
    assert imported.table.split.tolist() == [0, 0, 1, 2, 2, 2]
    assert imported.table.state.tolist() == [0] * 6
    assert imported.classes == ("Kätzchen", "dog")
    assert (imported.encoder["name"], imported.encoder["logit_scale"]) == ("hand/made", 20.0)


def test_archived_imported_text_is_what_it_was(imported: Store) -> None:
    text = imported.text()
    np.testing.assert_array_equal(text.embedding, [[1, 0, 0], [0.5, 0.5, 0], [0, 1, 0], [0, 0.75, -0.25]])
    assert (text.classes, text.class_ptr.tolist()) == (("Kätzchen", "dog"), [0, 2, 4])
    assert text.template_id.tolist() == [0, 1, 0, 1]
    assert text.fingerprint == "f9b45cbaa06c1b47f290a9511514ff2d"


def test_an_archived_extraction_is_what_it_was(extracted: Store) -> None:
    table = extracted.table
    assert extracted.complete
    assert table.key.tolist() == ["Ring é/0.png", "Ring é/1.png", "Ring é/2.png", "disc/0.png", "disc/1.png",
                                  "disc/2.png", "disc/bad.png"]
    assert table.state.tolist() == [0, 0, 0, 0, 0, 0, 1]
    assert table.reason.tolist() == [""] * 6 + ["not an image, or too damaged to tell which kind"]
    assert table.label.tolist() == [0, 0, 0, 1, 1, 1, 1]
    assert table.split.tolist() == [1, 0, 2, 2, 0, 1, -1]
    assert bytes(table.digest[0]).hex() == "546d9e21f7066e9408fd7d801dd2c801"
    assert bytes(table.digest[6]).hex() == digest(b"no image").hex()
    assert extracted.classes == ("Ring é", "disc")
    assert extracted.rows("train").tolist() == [1, 4]


def test_archived_embeddings_are_what_they_were(extracted: Store) -> None:
    embeddings = extracted.embeddings()
    assert (embeddings.dtype, embeddings.shape) == (np.float16, (6, 64))
    np.testing.assert_array_equal(embeddings[0, :4], [-1.8173828125, 1.2998046875, -2.16796875, -1.173828125])
    assert of_numbers(embeddings) == "8c473f12ff131fb8e312c8f7853b69dc"
    text = extracted.text()
    assert of_numbers(text.embedding) == "de7acbd024825a39a1cf194a480b0294"
    assert text.prompts == ("a photo of a Ring é.", "a drawing of a Ring é.", "a photo of a disc.",
                            "a drawing of a disc.")
    assert text.source["templates"] == ["a photo of a {}.", "a drawing of a {}."]
    assert text.fingerprint == "4e635b4df537a4be755c7d1c140dd6ac"


def test_archived_fingerprints_are_what_they_were(imported: Store, extracted: Store) -> None:
    """Saved adapters and result rows name stores and encoders by these."""
    for store in (imported, extracted):
        assert store.attributes["schema"] == 1
    assert imported.fingerprint == "d7e50e2847223cebad5bab3aa38a56da"
    assert imported.encoder["fingerprint"] == "ae501fcacee5b8a7e49a0121b3ad8e57"
    assert extracted.fingerprint == "f8b94fbc83d65e48793aa72ef97ecf45"
    assert extracted.encoder["fingerprint"] == "6487402ce16850279ab3081ad5078691"


def test_an_archived_store_can_be_fitted_on_and_fits_todays_demo_encoder(extracted: Store, encoder: object) -> None:
    assert fit(extracted, RunSpec("zero-shot")).row["n_test"] == 2
    assert encoder.info["fingerprint"] == extracted.encoder["fingerprint"]
