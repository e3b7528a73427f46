"""Rasters read over the network."""

import threading
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pytest

import tiling
from tests.tiling.files import write_tiff
from tests.tiling.rasters import noise
from tests.tiling.refusals import refused
from tiling.box import Box


class _Ranged(SimpleHTTPRequestHandler):
    """Serves parts of files, as object stores do."""

    def do_GET(self):
        path = self.translate_path(self.path)
        try:
            with open(path, "rb") as stream:
                content = stream.read()
        except OSError:
            self.send_error(404)
            return
        asked = self.headers.get("Range")
        first, last = 0, len(content) - 1
        if asked:
            low, high = asked.removeprefix("bytes=").split("-")
            first, last = int(low), min(int(high or last), last)
        self.send_response(206 if asked else 200)
        self.send_header("Accept-Ranges", "bytes")
        self.send_header("Content-Length", str(last - first + 1))
        if asked:
            self.send_header("Content-Range", f"bytes {first}-{last}/{len(content)}")
        self.end_headers()
        self.wfile.write(content[first : last + 1])

    def log_message(self, *args):
        pass


@pytest.fixture
def web(tmp_path, monkeypatch):
    """The address under which `tmp_path` is served."""
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(_Ranged, directory=str(tmp_path)))
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    thread.join()
    server.server_close()


def test_an_address_reads_like_the_file_behind_it(tmp_path, web):
    values = noise()
    write_tiff(tmp_path / "a.tif", values, driver="COG")
    source = tiling.open(f"{web}/a.tif")
    box = Box((20, 30), (90, 100))
    assert np.array_equal(source.read(box).values, values[(slice(None), *box.slices)])
    assert source.space == tiling.open(tmp_path / "a.tif").space
    assert tiling.open(f"{web}/a.tif").fingerprint == source.fingerprint


def test_a_missing_address_is_refused(web):
    with refused(f"{web}/nothing.tif", "404"):
        tiling.open(f"{web}/nothing.tif")


def test_a_server_that_goes_away_is_no_bad_input(tmp_path, web):
    write_tiff(tmp_path / "b.tif", noise(shape=(2000, 2000)), tiled=True)
    source = tiling.open(f"{web}/b.tif")
    (tmp_path / "b.tif").unlink()
    with pytest.raises(ConnectionError, match="run again to resume"):
        source.read(Box((1900, 1900), (2000, 2000)))
