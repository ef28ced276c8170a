"""Vectors from the network: what is refused, by which name, and that nothing is left behind."""

from __future__ import annotations

import struct
import threading
from collections.abc import Iterator
from email.utils import formatdate
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import httpx2
import pytest
from fake_hub import FakeHub, sha256
from fetching import DATA, LOGIN, POINTER, TOKEN, get, refused, safetensors

from lcm_arith.errors import (
    InvalidContentError,
    LcmArithError,
    NetworkError,
    NotFoundError,
    OutputExistsError,
    StorageError,
    UsageError,
)
from lcm_arith.registry.downloads import (
    CivitaiSource,
    HubSource,
    UrlSource,
    fetch,
    http,
    parse_source,
    parts,
)

# What a text names


@pytest.mark.parametrize(
    ("text", "source"),
    [
        ("hf:org/repo", HubSource("org/repo")),
        ("hf:org/repo@v1.0", HubSource("org/repo", "v1.0")),
        ("hf:o/r@refs/pr/1:a/b.bin", HubSource("o/r", "refs/pr/1", "a/b.bin")),
        ("https://huggingface.co/org/repo", HubSource("org/repo")),
        ("https://huggingface.co/org/repo/tree/main", HubSource("org/repo", "main")),
        ("https://huggingface.co/o/r/blob/main/a.bin", HubSource("o/r", "main", "a.bin")),
        ("https://hf.co/o/r/resolve/refs%2Fpr%2F1/a%20b?x=1", HubSource("o/r", "refs/pr/1", "a b")),
        ("civitai:245733", CivitaiSource("245733")),
        ("urn:air:sdxl:lora:civitai:77@245733", CivitaiSource("245733", "77")),
        ("https://civitai.com/models/77/name?modelVersionId=12", CivitaiSource("12", "77")),
        ("https://civitai.com/api/download/models/12?type=Model", CivitaiSource("12")),
        ("https://example.org/a.safetensors", UrlSource("https://example.org/a.safetensors")),
        ("http://localhost:8000/a.safetensors", UrlSource("http://localhost:8000/a.safetensors")),
        ("style.safetensors", None),
        ("folder/style", None),
        ("C:\\vectors\\style.safetensors", None),
        ("name@v2", None),
    ],
)  # fmt: skip
def test_a_text_names_a_source_or_none(text: str, source: object) -> None:
    assert parse_source(text) == source


@pytest.mark.parametrize(
    "text",
    [
        "hf:repo",
        "hf:org/repo:../../etc/passwd",
        "hf:org/repo:/etc/passwd",
        "hf:org/repo:a\\b",
        "hf:org/..",
        "civitai:latest",
        "urn:air:sdxl:lora:civitai:77",
        "urn:air:sdxl:lora:huggingface:org/repo@main",
        "http://example.org/a.safetensors",
        "http://127.0.0.1.example.org/a",
        "ftp://example.org/a",
        "https:///a",
        "https://example.org:port/a",
        "https://civitai.com/models/77",
        "https://huggingface.co/datasets/org/repo",
    ],
)
def test_a_text_that_only_looks_like_a_source_is_refused(text: str) -> None:
    with pytest.raises(UsageError) as caught:
        parse_source(text)
    assert caught.value.hint


def test_no_secret_of_an_address_is_shown() -> None:
    url = "https://user:pass@example.org:8443/a.safetensors?token=t0k3n&id=3&X-Amz-Signature=s#frag"
    source = parse_source(url)
    assert str(source) == "https://example.org:8443/a.safetensors?id=3"
    assert "pass" not in repr(source)
    assert "t0k3n" not in repr(source)


# Plain addresses


def test_a_file_comes_whole_with_its_origin_and_digest(hub: FakeHub, tmp_path: Path) -> None:
    seen: list[tuple[int, int | None]] = []
    source = UrlSource(f"{hub.url}/files/a.safetensors?key=secret")
    found = fetch(source, tmp_path, lambda done, total: seen.append((done, total)))
    assert found.path == tmp_path / "a.safetensors"
    assert found.path.read_bytes() == DATA
    assert (found.sha256, found.size, found.checked) == (sha256(DATA), len(DATA), False)
    assert found.origin == {"url": f"{hub.url}/files/a.safetensors"}
    assert seen[-1] == (len(DATA), len(DATA))
    assert [each.name for each in tmp_path.iterdir()] == ["a.safetensors"]
    assert not hub.seen[0].token


@pytest.mark.parametrize(
    ("said", "name"),
    [
        ('attachment; filename="style v2.safetensors"', "style v2.safetensors"),
        ("attachment; filename*=UTF-8''caf%C3%A9.safetensors", "café.safetensors"),
        ('attachment; filename="../../etc/passwd"', "passwd"),
        ('attachment; filename="C:\\\\x\\\\y.safetensors"', "y.safetensors"),
        ('attachment; filename="\\\\\\\\host\\\\share\\\\z.bin"', "z.bin"),
        ('attachment; filename=".."', "a.safetensors"),
        ('attachment; filename="NUL"', "a.safetensors"),
        ("attachment", "a.safetensors"),
    ],
)
def test_a_server_cannot_choose_the_folder(
    said: str, name: str, hub: FakeHub, tmp_path: Path
) -> None:
    hub.fault("/files/a.safetensors", status=200, body=DATA, headers={"Content-Disposition": said})
    assert get(f"{hub.url}/files/a.safetensors", tmp_path).path == tmp_path / name


def test_a_page_with_status_200_is_named(hub: FakeHub, tmp_path: Path) -> None:
    hub.types["/files/a.safetensors"] = "text/html; charset=utf-8"
    hub.files["/files/a.safetensors"] = LOGIN
    said = refused(InvalidContentError, 4, f"{hub.url}/files/a.safetensors", tmp_path)
    assert "a login page came in place of the file (Sign in | Hub)" in said


def test_a_json_error_with_status_200_is_quoted(hub: FakeHub, tmp_path: Path) -> None:
    hub.types["/files/a.safetensors"] = "application/json"
    hub.files["/files/a.safetensors"] = b'{"error": {"message": "quota\\u001b[31m exceeded"}}'
    said = refused(InvalidContentError, 4, f"{hub.url}/files/a.safetensors", tmp_path)
    assert "a JSON answer came in place of the file (quota [31m exceeded)" in said


@pytest.mark.parametrize(
    ("body", "named"),
    [
        (POINTER, "Git LFS pointer"),
        (b"\n " + LOGIN, "a web page"),
        (b'{"error":"no"}', "a JSON answer"),
        (b"<?xml version='1.0'?><Error/>", "an XML answer"),
    ],
)
def test_an_answer_that_is_served_as_a_file_is_named(
    body: bytes, named: str, hub: FakeHub, tmp_path: Path
) -> None:
    hub.files["/files/a.safetensors"] = body
    said = refused(InvalidContentError, 4, f"{hub.url}/files/a.safetensors", tmp_path)
    assert named in said


def test_a_header_of_123_bytes_is_not_taken_for_json(hub: FakeHub, tmp_path: Path) -> None:
    text = DATA[8 : 8 + struct.unpack("<Q", DATA[:8])[0]].ljust(123)
    data = struct.pack("<Q", 123) + text + bytes(4000)
    assert data.startswith(b"{")
    hub.files["/files/a.safetensors"] = data
    assert get(f"{hub.url}/files/a.safetensors", tmp_path).size == len(data)


def test_a_cut_transfer_goes_on_where_it_stopped(hub: FakeHub, tmp_path: Path) -> None:
    hub.fault("/files/a.safetensors", cut=1500, times=2)
    assert get(f"{hub.url}/files/a.safetensors", tmp_path).sha256 == sha256(DATA)
    asked = [each.headers.get("range") for each in hub.seen]
    assert asked == [None, "bytes=1500-", "bytes=3000-"]


def test_a_cut_transfer_begins_again_where_the_server_cannot_go_on(
    hub: FakeHub, tmp_path: Path
) -> None:
    hub.ranges = False
    hub.fault("/files/a.safetensors", cut=1500, times=2)
    assert get(f"{hub.url}/files/a.safetensors", tmp_path).sha256 == sha256(DATA)


def test_a_weak_etag_does_not_prove_that_the_file_is_the_same(hub: FakeHub, tmp_path: Path) -> None:
    hub.weak = True
    hub.fault("/files/a.safetensors", cut=1500, times=1)
    assert get(f"{hub.url}/files/a.safetensors", tmp_path).sha256 == sha256(DATA)
    assert [each.headers.get("range") for each in hub.seen] == [None, None]


@pytest.mark.parametrize(
    "answer",
    [
        {"status": 416},
        {"status": 206, "headers": {"Content-Range": f"bytes 0-{len(DATA) - 1}/{len(DATA)}"}},
        {"status": 206, "headers": {"Content-Range": f"bytes 1500-{len(DATA)}/{len(DATA) + 1}"}},
        {"status": 206},
    ],
)
def test_another_part_than_was_asked_for_is_not_joined(
    answer: dict[str, Any], hub: FakeHub, tmp_path: Path
) -> None:
    hub.fault("/files/a.safetensors", cut=1500, times=1)
    hub.fault("/files/a.safetensors", **answer, body=DATA, times=1)
    assert get(f"{hub.url}/files/a.safetensors", tmp_path).sha256 == sha256(DATA)
    assert [each.headers.get("range") for each in hub.seen] == [None, "bytes=1500-", None]


def test_a_body_that_ends_early_without_an_error_is_cut(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def answer(_: httpx2.Request) -> httpx2.Response:
        length = {"Content-Length": str(len(DATA))}
        return httpx2.Response(200, headers=length, content=iter([DATA[:10]]))

    transport = httpx2.MockTransport(answer)
    monkeypatch.setattr(http, "client", lambda: httpx2.Client(transport=transport))
    monkeypatch.setattr(http, "pause", lambda _: None)
    said = refused(NetworkError, 7, "https://example.org/a.safetensors", tmp_path)
    assert f"10 of {len(DATA)} bytes came" in said


@pytest.mark.parametrize("values", [900, 1000])
def test_a_file_that_changes_between_two_tries_is_not_mixed(
    values: int, hub: FakeHub, tmp_path: Path
) -> None:
    other = safetensors(values).replace(b"\0" * 4 * values, b"\1" * 4 * values)
    hub.fault("/files/a.safetensors", cut=1500, times=1)
    url = f"{hub.url}/files/a.safetensors"
    calls: list[int] = []

    def change(done: int, _: int | None) -> None:
        calls.append(done)
        hub.files["/files/a.safetensors"] = other

    assert fetch(UrlSource(url), tmp_path, change).sha256 == sha256(other)
    assert calls == [1500, len(other)]


@pytest.mark.parametrize("ranges", [True, False])
def test_a_transfer_that_is_cut_each_time_is_a_network_error(
    ranges: bool, hub: FakeHub, waits: list[float], tmp_path: Path
) -> None:
    hub.ranges = ranges
    hub.fault("/files/a.safetensors", cut=100)
    said = refused(NetworkError, 7, f"{hub.url}/files/a.safetensors", tmp_path)
    assert f"of {len(DATA)} bytes" in said
    assert "tried 4 times" in said
    assert waits == [0.5, 1.0, 2.0]
    assert len(hub.seen) == 4


@pytest.mark.parametrize("announced", [True, False])
def test_a_file_above_the_limit_is_refused(
    announced: bool, hub: FakeHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wanted = parts.Wanted(f"{hub.url}/files/a.safetensors", most=len(DATA) - 1)
    if not announced:  # the body ends with the connection
        monkeypatch.setattr("fake_hub._Handler._send", _without_length)
    with pytest.raises(InvalidContentError, match=f"the limit is {len(DATA) - 1}") as caught:
        http.download(wanted, tmp_path)
    assert caught.value.exit_code == 4
    assert list(tmp_path.iterdir()) == []


def _without_length(handler: BaseHTTPRequestHandler, status: int, body: bytes, _: object) -> None:
    handler.send_response(status)
    handler.send_header("Connection", "close")
    handler.end_headers()
    handler.wfile.write(body)


def test_a_file_without_a_length_comes_too(
    hub: FakeHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fake_hub._Handler._send", _without_length)
    assert get(f"{hub.url}/files/a.safetensors", tmp_path).sha256 == sha256(DATA)


def test_an_announced_size_above_the_limit_is_not_waited_for(hub: FakeHub, tmp_path: Path) -> None:
    length = {"Content-Length": str(10**15)}  # more than any disk
    hub.fault("/files/a.safetensors", status=200, body=DATA[:100], headers=length)
    said = refused(InvalidContentError, 4, f"{hub.url}/files/a.safetensors", tmp_path)
    assert f"has {10**15} bytes or more, the limit is {4 * 2**30}" in said


def test_a_full_disk_is_told_before_the_transfer(
    hub: FakeHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Usage:
        free = 100

    monkeypatch.setattr("shutil.disk_usage", lambda _: Usage)
    said = refused(StorageError, 5, f"{hub.url}/files/a.safetensors", tmp_path)
    assert f"has 100 bytes free, the download needs {len(DATA)}" in said


def test_a_file_of_that_name_is_kept(hub: FakeHub, tmp_path: Path) -> None:
    (tmp_path / "a.safetensors").write_bytes(b"mine")
    with pytest.raises(OutputExistsError):
        get(f"{hub.url}/files/a.safetensors", tmp_path)
    assert (tmp_path / "a.safetensors").read_bytes() == b"mine"
    assert len(list(tmp_path.iterdir())) == 1


def test_a_folder_that_cannot_be_written_is_a_storage_error(hub: FakeHub, tmp_path: Path) -> None:
    with pytest.raises(StorageError, match="cannot be written"):
        get(f"{hub.url}/files/a.safetensors", tmp_path / "absent")


# Statuses


@pytest.mark.parametrize(
    ("status", "kind", "code"),
    [
        (400, NetworkError, 7),
        (401, NetworkError, 7),
        (403, NetworkError, 7),
        (404, NotFoundError, 3),
        (410, NotFoundError, 3),
    ],
)
def test_a_refusal_is_told_at_once_with_the_servers_words(
    status: int, kind: type[LcmArithError], code: int, hub: FakeHub, tmp_path: Path
) -> None:
    hub.fault("/files/a.safetensors", status=status, body=b'{"message": "not for you"}')
    said = refused(kind, code, f"{hub.url}/files/a.safetensors", tmp_path)
    assert f"the server answers {status} (not for you)" in said
    assert len(hub.seen) == 1


def test_a_busy_server_is_asked_again_when_it_says(
    hub: FakeHub, waits: list[float], tmp_path: Path
) -> None:
    path = "/files/a.safetensors"
    hub.fault(path, status=429, headers={"Retry-After": "3"}, times=1)
    hub.fault(path, status=503, headers={"Retry-After": "86400"}, times=1)
    hub.fault(path, status=500, headers={"Retry-After": formatdate(0, usegmt=True)}, times=1)
    assert get(hub.url + path, tmp_path).sha256 == sha256(DATA)
    assert waits == [3.0, 30.0, 0.0]


def test_a_server_that_stays_busy_is_a_network_error(hub: FakeHub, tmp_path: Path) -> None:
    hub.fault("/files/a.safetensors", status=503)
    said = refused(NetworkError, 7, f"{hub.url}/files/a.safetensors", tmp_path)
    assert "the server answers 503; tried 4 times" in said


def test_no_server_is_a_network_error(hub: FakeHub, tmp_path: Path) -> None:
    said = refused(NetworkError, 7, "http://127.0.0.1:1/a.safetensors", tmp_path)
    assert "the connection failed" in said


# Redirects


def test_five_redirects_are_followed_and_six_are_not(hub: FakeHub, tmp_path: Path) -> None:
    for i in range(6):
        to = f"/hop/{i + 1}" if i < 5 else "/files/a.safetensors"
        hub.fault(f"/hop/{i}", status=302, headers={"Location": to})
    assert get(f"{hub.url}/hop/1", tmp_path).path.name == "a.safetensors"
    (tmp_path / "a.safetensors").unlink()
    said = refused(NetworkError, 7, f"{hub.url}/hop/0", tmp_path)
    assert "more than 5 redirects" in said


@pytest.mark.parametrize(
    "to",
    ["http://example.org/a?token=t0k3n", "ftp://example.org/a", "file:///etc/passwd", "https://[x/a"],
)  # fmt: skip
def test_a_redirect_to_an_unsafe_address_is_not_followed(
    to: str, hub: FakeHub, tmp_path: Path
) -> None:
    hub.fault("/files/a.safetensors", status=302, headers={"Location": to})
    said = refused(NetworkError, 7, f"{hub.url}/files/a.safetensors", tmp_path)
    assert "leads to" in said
    assert "t0k3n" not in said


@pytest.mark.parametrize(
    ("to", "fault"),
    [
        ("http://127.0.0.1/a", "is http"),  # even to this machine
        ("http://example.org/a", "anybody on the way can read and change"),
        ("https://elsewhere.example.org/a", ""),
        ("//elsewhere.example.org/a", ""),
    ],
)
def test_https_stays_https(
    to: str, fault: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[tuple[str, str]] = []

    def answer(request: httpx2.Request) -> httpx2.Response:
        asked.append((str(request.url), request.headers.get("Authorization", "")))
        first = request.url.host == "example.org"
        return httpx2.Response(302, headers={"Location": to}) if first else httpx2.Response(200)

    transport = httpx2.MockTransport(answer)
    monkeypatch.setattr(http, "client", lambda: httpx2.Client(transport=transport))
    wanted = parts.Wanted("https://example.org/a", token=TOKEN)
    first = ("https://example.org/a", f"Bearer {TOKEN}")
    if not fault:
        assert http.download(wanted, tmp_path).size == 0
        assert asked == [first, ("https://elsewhere.example.org/a", "")]
        return
    with pytest.raises(NetworkError, match=fault):
        http.download(wanted, tmp_path)
    assert asked == [first]


def test_a_token_goes_to_the_first_host_only(
    hub: FakeHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.fault("/first", status=302, headers={"Location": "/second"})
    hub.fault("/second", status=307, headers={"Location": f"{hub.elsewhere}/third"})
    hub.fault("/third", status=302, headers={"Location": f"{hub.url}/files/a.safetensors"})
    http.download(parts.Wanted(f"{hub.url}/first", token=TOKEN), tmp_path)
    assert [(each.path, each.token) for each in hub.seen] == [
        ("/first", f"Bearer {TOKEN}"),
        ("/second", f"Bearer {TOKEN}"),
        ("/third", ""),
        ("/files/a.safetensors", ""),
    ]


# Proxies


class _Proxy(BaseHTTPRequestHandler):
    asked: list[str]

    def do_CONNECT(self) -> None:
        type(self).asked.append(self.path)
        self.send_error(502)

    def do_GET(self) -> None:
        self.do_CONNECT()

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def proxy(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """A proxy that the environment names; the hosts that it was asked for."""
    _Proxy.asked = []
    with ThreadingHTTPServer(("127.0.0.1", 0), _Proxy) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
        thread.start()
        for name in ("HTTP_PROXY", "HTTPS_PROXY", "http_proxy", "https_proxy"):
            monkeypatch.setenv(name, f"http://127.0.0.1:{server.server_port}")
        monkeypatch.delenv("NO_PROXY", raising=False)
        monkeypatch.delenv("no_proxy", raising=False)
        yield _Proxy.asked
        server.shutdown()
        thread.join()


def test_the_users_proxy_is_used_but_not_for_this_machine(
    hub: FakeHub, proxy: list[str], tmp_path: Path
) -> None:
    for url in (hub.url, hub.elsewhere):
        get(f"{url}/files/a.safetensors", tmp_path).path.unlink()
    assert proxy == []
    refused(NetworkError, 7, "https://vectors.invalid/a.safetensors", tmp_path)
    assert proxy == ["vectors.invalid:443"] * 4
