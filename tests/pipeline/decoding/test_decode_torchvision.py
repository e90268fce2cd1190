"""`--decode torchvision`: a store like any other, that never mixes with one whose pixels were made otherwise."""

from __future__ import annotations

import io
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from onceclip.pipeline.decoding import on_device as device_decoder
from onceclip.pipeline.encoders import EncoderSpec
from onceclip.pipeline.encoders.opening import recorded_encoder
from onceclip.pipeline.errors import EncoderError
from onceclip.pipeline.extraction.extract import extract
from onceclip.pipeline.extraction.survey import ExtractOptions
from onceclip.pipeline.prediction.encoding import encoder_of
from onceclip.pipeline.prediction.inputs import list_inputs
from onceclip.pipeline.prediction.predict import predict_images
from onceclip.pipeline.prompts.embedding import add_text, prompts_for
from onceclip.pipeline.runs.fit import fit
from onceclip.pipeline.runs.run import RunSpec
from onceclip.pipeline.tasks.tasks import check_encoder
from onceclip.stores import Store, open_store

ON_DEVICE = EncoderSpec("demo", device="cpu", decode="torchvision")


def jpeg(seed: int, size: tuple[int, int] = (90, 70), mode: str = "RGB", **options: Any) -> bytes:
    random = np.random.default_rng(seed)
    small = Image.fromarray(random.integers(0, 256, (9, 12, 3), dtype=np.uint8))
    file = io.BytesIO()
    small.resize(size, Image.Resampling.BICUBIC).convert(mode).save(file, "jpeg", **options)
    return file.getvalue()


def broken(content: bytes) -> bytes:
    """Whole by its ends, with a marker amid its data that belongs elsewhere."""
    return content[:-400] + b"\xff\xc0\x00\x03" + content[-396:]


@pytest.fixture
def photographs(folder_of: Callable[..., Path]) -> Path:
    """32 JPEGs and 6 PNGs of two classes."""
    root = folder_of({"disc": 3, "ring": 3})
    for number in range(32):
        (root / ("disc", "ring")[number % 2] / f"{number}.jpg").write_bytes(
            jpeg(number, mode="L" if number % 5 == 0 else "RGB"))
    return root


def stored(path: Path, source: Path, spec: EncoderSpec = ON_DEVICE, **options: Any) -> tuple[Any, Store]:
    done = extract(source, path, spec, ExtractOptions(**{"workers": 1, **options}))
    return done, open_store(str(path))


def unit(rows: np.ndarray) -> np.ndarray:
    return rows / np.linalg.norm(rows.astype(np.float64), axis=1, keepdims=True)


def test_every_good_image_is_stored_and_every_bad_one_keeps_the_reason_of_the_exact_way(photographs: Path,
                                                                                        tmp_path: Path) -> None:
    """clip-retrieval#13: one truncated JPEG hung the run; yolo-scout#63: it dropped its whole batch."""
    exif = Image.Exif()
    exif[0x0112] = 6
    others = {"cut.jpg": jpeg(90)[:-300], "header.jpg": jpeg(91)[:150], "empty.jpg": b"", "text.jpg": b"<html>",
              "broken.jpg": broken(jpeg(92)), "cmyk.jpg": jpeg(93, mode="CMYK"), "turned.jpg": jpeg(94, exif=exif),
              "progressive.jpg": jpeg(95, progressive=True), "one.jpg": jpeg(96, (1, 1)),
              "long.jpg": jpeg(97, (900, 3))}
    for name, content in others.items():
        (photographs / "ring" / name).write_bytes(content)
    done, store = stored(tmp_path / "device.zarr", photographs, batch_size=7)
    exactly, exact = stored(tmp_path / "exact.zarr", photographs, EncoderSpec("demo", device="cpu"), batch_size=7)
    assert done.bad_images == exactly.bad_images
    assert {key.split("/")[1] for key in done.bad_images} == {"cut.jpg", "header.jpg", "empty.jpg", "text.jpg",
                                                             "broken.jpg"}
    assert (done.encoded, done.splits, done.classes) == (exactly.encoded, exactly.splits, exactly.classes)
    np.testing.assert_array_equal(store.table.digest, exact.table.digest)
    assert (unit(store.embeddings()) * unit(exact.embeddings())).sum(axis=1).min() > 0.9998
    same = (store.embeddings() == exact.embeddings()).all(axis=1)
    decoded_here = np.array([not key.endswith((".png", "cmyk.jpg", "progressive.jpg")) for key in
                             store.table.key[store.rows()]])
    assert same[~decoded_here].all()
    assert not same[decoded_here].all()  # else nothing was decoded by torchvision


def test_a_camera_that_was_turned_is_heeded_where_that_is_asked_for(photographs: Path, tmp_path: Path) -> None:
    """vision#7977: torchvision ignores EXIF."""
    exif = Image.Exif()
    exif[0x0112] = 8
    (photographs / "ring" / "turned.jpg").write_bytes(jpeg(5, exif=exif))
    found = {decode: stored(tmp_path / f"{decode}.zarr", photographs,
                            EncoderSpec("demo", device="cpu", decode=decode, exif=True), batch_size=1)[1]
             for decode in ("exact", "torchvision")}
    row = np.flatnonzero(found["exact"].table.key == "ring/turned.jpg")
    np.testing.assert_array_equal(found["torchvision"].embeddings(row), found["exact"].embeddings(row))


def test_the_way_and_the_kind_of_device_are_recorded_and_stores_never_mix_them(
        photographs: Path, tmp_path: Path, run: Callable[..., Any], run_json: Callable[..., Any]) -> None:
    """clip-retrieval#264: what made the pixels belongs to what identifies the embeddings."""
    command = ("extract", photographs, tmp_path / "s.zarr", "--model", "demo", "--device", "cpu")
    first = run_json(*command, "--decode", "torchvision")
    assert first["encoder"]["decode"] == "torchvision-cpu"
    again = run_json(*command, "--decode", "torchvision")
    assert (again["encoded"], again["reused"]) == (0, 38)
    for other in ("exact", "fast"):
        refused = run(*command, "--decode", other)
        assert refused.exit_code == 1
        assert "they differ in decode" in refused.stderr
    (photographs / "ring" / "new.jpg").write_bytes(jpeg(99))
    assert run_json(*command, "--decode", "torchvision")["encoded"] == 1
    (photographs / "ring" / "bad.jpg").write_bytes(jpeg(100)[:-50])
    strict = run(*command, "--decode", "torchvision", "--strict")
    assert (strict.exit_code, "1 of 40 images are bad" in strict.stderr) == (1, True)


def test_a_store_made_on_cuda_takes_text_and_fits_anywhere_but_no_images_of_a_cpu(photographs: Path,
                                                                                  tmp_path: Path) -> None:
    spec = EncoderSpec("demo", device="cpu", decode="torchvision-cuda")
    with pytest.raises(EncoderError, match=r"decoded by torchvision on cuda, and it runs on cpu"):
        stored(tmp_path / "s.zarr", photographs, spec)
    path = str(tmp_path / "s.zarr")
    encoder = recorded_encoder(open_store(path).encoder, path, device="cpu")
    assert encoder.info["decode"] == "torchvision-cuda"
    made = add_text(path, "more", prompts_for(open_store(path), ("a {}.", "the {}.")), encoder)
    assert made["encoded"] == 4


def test_an_adapter_predicts_with_the_pixels_that_it_was_fitted_on(photographs: Path, tmp_path: Path) -> None:
    store = stored(tmp_path / "s.zarr", photographs, dtype="float32", batch_size=1)[1]
    classifier = fit(store, RunSpec("tip-adapter", 2)).classifier
    encoder = encoder_of(classifier, device="cpu")
    check_encoder(classifier, store)
    records = list_inputs([str(photographs)]).records
    found = {answer.key: answer.logits for answer in predict_images(classifier, records, encoder)}
    expected = classifier.logits(store.embeddings()).numpy()
    names = [str(key) for key in store.table.key[store.rows()]]
    by_name = {name: next(logits for image, logits in found.items() if image.endswith(name)) for name in names}
    for name, row in zip(names, expected, strict=True):
        logits = by_name[name]
        assert logits is not None
        np.testing.assert_allclose(logits, row, atol=2e-3)


def test_views_are_made_of_the_whole_image_by_the_decode_processes(photographs: Path, tmp_path: Path,
                                                                   run_json: Callable[..., Any]) -> None:
    views = {}
    for decode in ("exact", "torchvision"):
        run_json("extract", photographs, tmp_path / f"{decode}.zarr", "--model", "demo", "--device", "cpu",
                 "--decode", decode, "--ten-crop", "--views-for", "all", "--batch-size", 10)
        store = open_store(str(tmp_path / f"{decode}.zarr"))
        views[decode] = np.asarray(store.array("view")[...])[store.rows()]
    np.testing.assert_array_equal(views["exact"], views["torchvision"])


def test_jpegs_that_torchvision_alone_cannot_decode_are_stored_and_counted(
        photographs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    refused = {(photographs / "disc" / name).read_bytes() for name in ("0.jpg", "6.jpg", "30.jpg")}
    decode = device_decoder._decode

    def choosy(contents: list[bytes], device: Any) -> Any:
        if refused & {*contents}:
            raise RuntimeError("nvJPEG: unsupported")
        return decode(contents, device)

    monkeypatch.setattr(device_decoder, "_decode", choosy)
    done, store = stored(tmp_path / "device.zarr", photographs, batch_size=1, progress=True)
    exact = stored(tmp_path / "exact.zarr", photographs, EncoderSpec("demo", device="cpu"), batch_size=1)[1]
    assert (done.bad, done.encoded) == (0, 38)
    rows = np.flatnonzero(np.isin(store.table.key, ["disc/0.jpg", "disc/6.jpg", "disc/30.jpg"]))
    np.testing.assert_array_equal(store.embeddings(rows), exact.embeddings(rows))
    assert "3 JPEGs were left to the decode processes: torchvision could not decode them" in capsys.readouterr().err


def test_an_encoder_that_prepares_images_by_itself_refuses_it_before_anything_is_written(
        photographs: Path, tmp_path: Path, run: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "own_pixels.py").write_text(
        "import numpy as np\n"
        "def prepare(image): return np.asarray(image.convert('RGB').resize((4, 4)), np.float32).transpose(2, 0, 1)\n"
        "class Own:\n"
        "    name, dim, identity, preprocess = 'own', 3, {'version': 1}, staticmethod(prepare)\n"
        "    def encode_image(self, pixels): return pixels.mean(dim=(2, 3))\n"
        "def load(): return Own()\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    refused = run("extract", photographs, tmp_path / "s.zarr", "--model", "own_pixels:load", "--decode", "torchvision")
    assert (refused.exit_code, refused.stderr.count("\n")) == (1, 1)
    assert "--decode torchvision: own_pixels:load prepares images by itself" in refused.stderr
    assert not (tmp_path / "s.zarr").exists()


@pytest.mark.slow
def test_parts_and_workers_make_the_store_of_one_process(photographs: Path, tmp_path: Path, means: str,
                                                         run_json: Callable[..., Any]) -> None:
    """An encoder of one's own with a Preparation takes part in it too."""
    ways: dict[str, list[tuple[Any, ...]]] = {
        "one": [()], "workers": [("--local-workers", 1)], "parts": [("--part", "1/2"), ("--part", "2/2")]}
    stores = {}
    for name, calls in ways.items():
        for options in calls:
            run_json("extract", photographs, tmp_path / f"{name}.zarr", "--model", means, "--device", "cpu",
                     "--decode", "torchvision", "--unit-rows", 10, "--workers", 1, *options)
        stores[name] = open_store(str(tmp_path / f"{name}.zarr"))
    assert all(store.complete for store in stores.values())
    assert {store.encoder["decode"] for store in stores.values()} == {"torchvision-cpu"}
    assert len({store.fingerprint for store in stores.values()}) == 1
    for store in stores.values():
        np.testing.assert_array_equal(store.embeddings(), stores["one"].embeddings())


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="sends a signal")
def test_ctrl_c_keeps_what_was_encoded_and_the_same_command_goes_on(
        photographs: Path, tmp_path: Path, means: str, elsewhere: Path, run_json: Callable[..., Any]) -> None:
    command = ["extract", str(photographs), str(tmp_path / "s.zarr"), "--model", means, "--device", "cpu",
               "--decode", "torchvision", "--workers", "1", "--unit-rows", "8", "--batch-size", "8"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "MEANS_SECONDS": "0.8"}
    # Shells start what they put into the background deaf to SIGINT, and so its children.
    program = ("import signal, sys; signal.signal(signal.SIGINT, signal.default_int_handler); "
               "from onceclip.cli import main; sys.exit(main())")
    with subprocess.Popen([sys.executable, "-c", program, *command], cwd=elsewhere, env=environment,
                          stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as first:
        while first.poll() is None and not (
                (tmp_path / "s.zarr").exists() and list((tmp_path / "s.zarr" / "image" / "embedding").glob("c/*"))):
            time.sleep(0.1)
        first.send_signal(signal.SIGINT)
        _, said = first.communicate()
    assert first.returncode != 0
    assert "Traceback" not in said
    report = run_json(*command)
    assert report["bad"] == 0
    assert 0 < report["encoded"] < 38
    assert len(open_store(str(tmp_path / "s.zarr")).rows()) == 38
