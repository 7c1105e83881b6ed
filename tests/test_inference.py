"""How the network is run for prediction: mirrored, in less memory, in batches that are tried."""

import io
import time
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from msun_fastai.data.inputs import iter_paths, read_paths
from msun_fastai.data.resize import load_fitted
from msun_fastai.errors import UserError
from msun_fastai.inference import MOST, Inference, Options, normalize
from msun_fastai.models.saving import load_model_folder
from msun_fastai.predict import Predictor


@pytest.fixture
def saved(saved_run):
    return load_model_folder(saved_run)


@pytest.fixture
def pixels(shapes):
    """11 images at scale 32."""
    return torch.stack([load_fitted(s.image, 32) for s in shapes.valid[:11]])


def test_mirrored_probabilities_are_averaged(saved, pixels):
    plain, mirrored = (Inference(saved)(x)[0] for x in (pixels, pixels.flip(-1)))
    found, _ = Inference(saved, options=Options(tta=True))(pixels)
    assert torch.allclose(found, (plain + mirrored) / 2, atol=1e-6)
    assert not torch.allclose(found, plain, atol=1e-4)
    x = normalize(pixels, saved.preprocessing)
    with torch.no_grad():
        assert torch.allclose(plain, saved.model(x).softmax(1), atol=1e-6)


def test_embeddings_are_of_the_image_itself(saved, pixels):
    _, plain = Inference(saved, options=Options(embeddings=True))(pixels)
    _, found = Inference(saved, options=Options(embeddings=True, tta=True))(pixels)
    assert torch.equal(plain, found)
    assert plain.shape == (11, Inference(saved).width)


def test_bf16_is_near(saved, pixels):
    full, _ = Inference(saved)(pixels)
    half, _ = Inference(saved, options=Options(precision="bf16"))(pixels)
    assert half.dtype == torch.float32
    assert 0 < (full - half).abs().max() < 0.05


@pytest.mark.parametrize(
    ("error", "sizes"),
    [
        (torch.OutOfMemoryError("CUDA out of memory"), [8, 4, 2, 2, 2, 2, 2, 1]),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory"), [8, 4, 2, 2, 2, 2, 2, 1]),
    ],
)
def test_batches_are_halved_where_memory_runs_out(saved, pixels, monkeypatch, error, sizes):
    expected, _ = Inference(saved)(pixels)
    tried, told = [], []
    real = Inference._answer

    def answer(self, x, scale):
        tried.append(len(x))
        if len(x) > 3:
            raise error
        return real(self, x, scale)

    monkeypatch.setattr(Inference, "_answer", answer)
    inference = Inference(saved, tell=told.append)
    found, _ = inference(pixels)
    assert torch.allclose(found, expected, atol=1e-5)
    assert tried == sizes
    assert inference.state_dict() == {"sizes": {"32": 2}}
    assert [t.split(": from here on ")[1] for t in told] == ["4 at a time", "2 at a time"]


@pytest.mark.parametrize(("bs", "sizes"), [(None, [8, 2, 1]), (8, [8, 2, 1]), (5, [5, 5, 1])])
def test_batches_on_a_cpu_have_few_sizes(saved, pixels, monkeypatch, bs, sizes):
    """Full ones and powers of two: what is kept for each size of batch does not grow."""
    tried = []
    real = Inference._answer

    def answer(self, x, scale):
        tried.append(len(x))
        return real(self, x, scale)

    monkeypatch.setattr(Inference, "_answer", answer)
    found, _ = Inference(saved, bs)(pixels)
    assert tried == sizes
    assert torch.allclose(found, Inference(saved, 11)(pixels)[0], atol=1e-5)


def test_errors_of_other_kinds_and_no_room_for_one(saved, pixels, monkeypatch):
    def answer(self, x, scale):
        raise torch.OutOfMemoryError("CUDA out of memory") if scale == 32 else RuntimeError("odd")

    monkeypatch.setattr(Inference, "_answer", answer)
    with pytest.raises(UserError, match="one image of 32 pixels"):
        Inference(saved)(pixels)
    with pytest.raises(RuntimeError, match="odd"):
        Inference(saved)(torch.zeros(1, 3, 16, 16, dtype=torch.uint8))


@pytest.mark.parametrize(
    ("rates", "size"), [({4: 1, 8: 2, 16: 2.05}, 8), ({4: 1, 8: 0.9}, 4), ({4: 1, 8: 2}, 8)]
)
def test_a_batch_grows_as_long_as_that_is_worth_it(saved, monkeypatch, rates, size):
    def rate(self, scale, n):
        if n not in rates:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return rates[n]

    monkeypatch.setattr(Inference, "_rate", rate)
    predictor = Predictor(saved, bs="auto")
    assert predictor.inference.size(32) == size
    assert predictor.state_dict() == {
        "chunk": 16 * size,
        "sizes": dict.fromkeys(("16", "32", "64"), size),
    }


def test_auto_tries_the_network(saved, shapes, monkeypatch):
    monkeypatch.setitem(MOST, "cpu", 8)
    predictor = Predictor(saved, bs="auto")
    images = [s.image for s in shapes.valid[:5]]
    found = list(predictor.predict(images))
    assert [p.label for p in found] == [p.label for p in Predictor(saved).predict(images)]
    assert all(size in (4, 8) for size in predictor.inference.sizes.values())


def test_what_cannot_be_asked_for(saved):
    for given, says in (
        ({"bs": "many"}, "bs 'many'"),
        ({"options": Options(precision="fp16")}, "fp16"),
        ({"options": Options(embeddings=True, compiled=True)}, "not with embeddings"),
    ):
        with pytest.raises(UserError, match=says):
            Inference(saved, **given)


def test_the_next_chunk_is_read_while_the_network_works_and_no_more(saved, monkeypatch):
    """Bounded: whoever asks for one chunk has the next one read, and not the one behind it."""
    asked = []

    def sources():
        for i in range(100):
            asked.append(i)
            yield np.zeros((9, 9, 3), np.uint8)

    predictor = Predictor(saved, bs=2, workers=1)
    predictor.load_state_dict({"chunk": 8, "sizes": {}})
    chunks = predictor.chunks(sources())
    seen = []
    real = Inference.__call__

    def answer(self, x):
        for _ in range(500):  # the reader is a thread: it may need a moment
            if len(asked) >= 16:
                break
            time.sleep(0.01)
        seen.append(len(asked))
        return real(self, x)

    monkeypatch.setattr(Inference, "__call__", answer)
    assert len(next(chunks)) == 8
    chunks.close()
    assert seen == [16]


def test_paths_on_standard_input(monkeypatch, tmp_path):
    class Slow(io.BytesIO):
        def read1(self, n):
            return super().read(3)  # a pipe gives what is there

    lines, zeros = b"a.png\n\nb c.png\nd\xff.png", b"a\n.png\0b.png\0"
    names = [str(p) for p in read_paths(Slow(lines), b"\n")]
    assert names == ["a.png", "b c.png", "d\udcff.png"]
    assert [str(p) for p in read_paths(Slow(zeros), b"\0")] == ["a\n.png", "b.png"]
    monkeypatch.setattr("sys.stdin", SimpleNamespace(buffer=Slow(lines)))
    (tmp_path / "x.png").write_bytes(b"")
    found = [p.name for p in iter_paths([str(tmp_path), "-"])]
    assert found == ["x.png", "a.png", "b c.png", "d\udcff.png"]
