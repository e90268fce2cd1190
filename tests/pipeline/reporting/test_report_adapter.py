"""`onceclip report ADAPTER STORE`: the page of one adapter and the mistakes that it is most sure of."""

from __future__ import annotations

import base64
import io
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from onceclip.adapters import load_classifier
from onceclip.pipeline.errors import BadImage
from onceclip.pipeline.reporting.mistakes import SIDE, surest_mistakes, thumbnail
from onceclip.pipeline.runs.fit import fit
from onceclip.pipeline.runs.run import RunSpec
from onceclip.stores import Store, open_store


@pytest.fixture(scope="module")
def weak(store_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A saved adapter that makes mistakes: zero-shot on shapes that its encoder was not made for."""
    folder = tmp_path_factory.mktemp("weak") / "adapter"
    fit(open_store(str(store_path)), RunSpec("zero-shot", 1)).classifier.save(folder)
    return folder


@pytest.fixture
def own_mistakes(weak: Path, store_path: Path) -> dict[str, float]:
    """The mistakes on the test split by key, with the probability of the predicted class."""
    classifier, store = load_classifier(weak), open_store(str(store_path))
    rows = store.rows("test")
    chance = classifier.probabilities(store.embeddings(rows))
    found = {}
    for row, one, name in zip(rows, chance, classifier.predict(store.embeddings(rows)), strict=True):
        if name != store.classes[store.column("label")[row]]:
            found[str(store.column("key")[row])] = float(one.max())
    assert 2 < len(found) < len(rows)
    return found


def gallery(path: Path) -> dict[str, str]:
    """Keys of the mistakes of a page, in order, with their picture or why there is none."""
    html = path.read_text(encoding="utf-8")
    picture = r'<img src="([^"]*)"[^>]*>|<span class="empty">([^<]*)</span>'
    shown = re.findall(f"<li>(?:{picture}).*?<code>([^<]*)<", html, re.DOTALL)
    return {key: picture or why for picture, why, key in shown}


def test_the_page_shows_the_real_mistakes_surest_first_with_their_pictures(
        weak: Path, store_path: Path, image_folder: Path, own_mistakes: dict[str, float], tmp_path: Path,
        run_json: Callable[..., Any]) -> None:
    found = run_json("report", weak, store_path, "--images", image_folder, "--out", tmp_path / "page.html")
    assert found["mistakes"] == sorted(own_mistakes, key=lambda key: (-own_mistakes[key], key))
    assert found["pictures"] == len(own_mistakes)
    shown = gallery(tmp_path / "page.html")
    assert list(shown) == found["mistakes"]
    for key, picture in shown.items():
        with Image.open(io.BytesIO(base64.b64decode(picture.partition("base64,")[2]))) as small, \
                Image.open(image_folder / key) as large:
            assert small.format == "JPEG"
            assert max(small.size) <= SIDE
            wanted = np.asarray(large.convert("RGB").resize(small.size), float)
            assert np.abs(np.asarray(small, float) - wanted).mean() < 12


def cells(path: Path, label: str) -> list[list[str]]:
    """The cells of the rows of the table that a label names."""
    html = path.read_text(encoding="utf-8").partition(f'aria-label="{label}"')[2].partition("</table>")[0]
    return [[re.sub("<[^>]*>", "", cell) for cell in re.findall("<t[dh][^>]*>(.*?)</t[dh]>", line)]
            for line in html.split("<tr>")[1:]]


def test_scores_classes_and_confusions_are_those_of_evaluate(weak: Path, store_path: Path, tmp_path: Path,
                                                             run_json: Callable[..., Any]) -> None:
    from onceclip.pipeline.evaluation.evaluate import evaluate

    scores = evaluate(load_classifier(weak), open_store(str(store_path)))
    run_json("report", weak, store_path, "--out", tmp_path / "page.html")
    html = (tmp_path / "page.html").read_text(encoding="utf-8")
    assert f"<b>{100 * scores['accuracy']:.1f} %</b>" in html
    found = {name: rest for name, *rest in cells(tmp_path / "page.html", "Classes")[1:]}
    assert {name: (int(rest[3]), int(rest[4])) for name, rest in found.items()} \
        == {each["class"]: (each["n"], each["right"]) for each in scores["per_class"]}
    assert [float(rest[0]) for rest in found.values()] == sorted(float(rest[0]) for rest in found.values())
    (_, *names), *matrix = cells(tmp_path / "page.html", "Confusion matrix")
    wrong = {(true, guess): int(number) for true, *numbers in matrix
             for guess, number in zip(names, numbers, strict=True) if number and guess != true}
    assert wrong == {(true, guess): number for true, guess, number in scores["confusions"]}


def test_the_page_leads_with_the_figures_of_the_probabilities_that_predict_gives(
        store_path: Path, imported: Store, tmp_path: Path, run_json: Callable[..., Any]) -> None:
    run_json("fit", imported.path, "--method", "tip-adapter", "--shots", 4, "--select", "val", "--out", tmp_path / "a")
    scores = run_json("evaluate", tmp_path / "a", imported.path)
    run_json("report", tmp_path / "a", imported.path, "--out", tmp_path / "page.html")
    cards = (tmp_path / "page.html").read_text(encoding="utf-8").partition("<nav")[0]
    assert f"<b>{100 * scores['ece_calibrated']:.1f} %</b>" in cards
    assert f"<b>{scores['nll_calibrated']:.3f}</b>" in cards
    assert f"{100 * scores['ece']:.1f} % without temperature" in cards


def test_a_page_of_an_adapter_without_a_store_says_what_it_lacks(imported: Store, tmp_path: Path,
                                                                 run: Callable[..., Any]) -> None:
    run("fit", imported.path, "--method", "gda", "--shots", 4, "--out", tmp_path / "a")
    done = run("report", tmp_path / "a", "--out", tmp_path / "page.html")
    assert done.exit_code == 0
    assert f"onceclip report {tmp_path / 'a'} STORE --out {tmp_path / 'page.html'}" in done.stderr


def test_another_split_is_scored_and_named(weak: Path, store_path: Path, tmp_path: Path,
                                           run_json: Callable[..., Any]) -> None:
    found = run_json("report", weak, store_path, "--split", "train", "--out", tmp_path / "page.html")
    train = set(map(str, open_store(str(store_path)).column("key")[open_store(str(store_path)).rows("train")]))
    assert set(found["mistakes"]) <= train
    assert "on the train split" in (tmp_path / "page.html").read_text(encoding="utf-8")


def test_images_beside_the_store_are_found_by_its_name(weak: Path, store_path: Path, image_folder: Path,
                                                       tmp_path: Path, run_json: Callable[..., Any]) -> None:
    shutil.copytree(store_path, tmp_path / "pets.zarr")
    assert run_json("report", weak, tmp_path / "pets.zarr", "--out", tmp_path / "page.html")["pictures"] == 0
    shutil.copytree(image_folder, tmp_path / "pets")
    found = run_json("report", weak, tmp_path / "pets.zarr", "--out", tmp_path / "page.html")
    assert found["pictures"] == len(found["mistakes"]) > 0


def test_a_picture_that_is_not_what_was_encoded_is_never_shown(weak: Path, store_path: Path, image_folder: Path,
                                                               tmp_path: Path, run_json: Callable[..., Any]) -> None:
    first = run_json("report", weak, store_path, "--images", image_folder, "--out", tmp_path / "page.html")["mistakes"]
    images = Path(shutil.copytree(image_folder, tmp_path / "images"))
    Image.new("RGB", (9, 9), "red").save(images / first[0])
    (images / first[1]).unlink()
    (images / first[2]).write_bytes(b"")
    found = run_json("report", weak, store_path, "--images", images, "--out", tmp_path / "page.html")
    shown = gallery(tmp_path / "page.html")
    assert found["mistakes"] == first
    assert shown[first[0]] == "its file has changed since it was encoded"
    assert shown[first[1]] == "its file is not there"
    assert "empty" in shown[first[2]]
    assert all(shown[key].startswith("data:image/jpeg") for key in first[3:])


def test_without_images_the_page_has_keys_and_says_how_to_get_pictures(weak: Path, store_copy: Path, tmp_path: Path,
                                                                       run_json: Callable[..., Any]) -> None:
    found = run_json("report", weak, store_copy, "--out", tmp_path / "page.html")
    assert found["pictures"] == 0
    assert set(gallery(tmp_path / "page.html").values()) == {"no picture"}
    assert "Give --images FOLDER" in (tmp_path / "page.html").read_text(encoding="utf-8")


def test_an_adapter_without_mistakes_has_a_page(store_path: Path, adapter_path: Path, monkeypatch: pytest.MonkeyPatch,
                                                tmp_path: Path) -> None:
    from onceclip.pipeline.reporting import pages

    monkeypatch.setattr(pages, "surest_mistakes", lambda *_: [])
    pages.write_adapter_report(adapter_path, str(store_path), tmp_path / "page.html")
    assert "every image is recognised" in (tmp_path / "page.html").read_text(encoding="utf-8")


def test_mistakes_found_piece_by_piece_are_those_found_at_once(weak: Path, store_path: Path,
                                                               monkeypatch: pytest.MonkeyPatch) -> None:
    classifier, store = load_classifier(weak), open_store(str(store_path))
    whole = surest_mistakes(classifier, store, "train", 3)
    pieces = Store.pieces
    monkeypatch.setattr(Store, "pieces", lambda self, rows, size=4: pieces(self, rows, 4))
    again = surest_mistakes(classifier, store, "train", 3)
    assert [(each.key, each.predicted) for each in again] == [(each.key, each.predicted) for each in whole]
    assert len(whole) == 3


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P", "I;16", "CMYK", "1"])
def test_every_kind_of_image_gives_a_thumbnail(mode: str) -> None:
    content = io.BytesIO()
    Image.new(mode, (640, 320)).save(content, "TIFF")
    with Image.open(io.BytesIO(base64.b64decode(thumbnail(content.getvalue()).partition("base64,")[2]))) as small:
        assert (small.size, small.mode) == ((SIDE, SIDE // 2), "RGB")


def test_what_is_no_image_gives_no_thumbnail() -> None:
    with pytest.raises(BadImage):
        thumbnail(b"\xff\xd8\xff not a picture")


def test_other_classes_another_encoder_or_no_source_are_one_clear_line(
        weak: Path, store_path: Path, folder_of: Callable[..., Path], extract_demo: Callable[..., Any],
        other_encoder: str, tmp_path: Path, run: Callable[..., Any]) -> None:
    extract_demo(folder_of({"disc": 6, "star": 6}), tmp_path / "stars.zarr")
    extract_demo(folder_of({"disc": 6, "ring": 6}, "rings"), tmp_path / "other.zarr", model=other_encoder)
    for store, options in ((tmp_path / "stars.zarr", ()), (tmp_path / "other.zarr", ()), (tmp_path / "none", ()),
                           (store_path, ("--images", tmp_path / "nowhere"))):
        done = run("report", weak, store, *options, "--out", tmp_path / "page.html")
        assert (done.exit_code, len(done.stderr.splitlines())) == (1, 1), done.stderr
        assert not (tmp_path / "page.html").exists()


def test_pictures_are_those_of_the_source_whatever_it_says_of_labels(
        weak: Path, store_path: Path, image_folder: Path, own_mistakes: dict[str, float], tmp_path: Path,
        run_json: Callable[..., Any]) -> None:
    copy = shutil.copytree(image_folder, tmp_path / "copy")
    lines = [f"{path.relative_to(copy)},7" for path in sorted(copy.rglob("*.*"))]
    (copy / "list.csv").write_text("\n".join(["path,id", *lines]))
    found = run_json("report", weak, store_path, "--images", copy / "list.csv", "--out", tmp_path / "page.html")
    assert found["pictures"] == len(own_mistakes)
