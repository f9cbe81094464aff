"""Forms with files: what clients write is read, what is broken is refused with its reason."""

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.api.multipart import MultipartInvalid, Part, parse_multipart


def encoded(files: dict[str, tuple[str, bytes, str]], data: dict[str, str]) -> list[Part]:
    request = httpx.Request("POST", "http://x/", files=files, data=data)
    return parse_multipart(request.headers["content-type"], request.read())


@given(content=st.binary(max_size=2000), text=st.text(max_size=50), name=st.text(min_size=1, max_size=30))
def test_what_a_client_writes_is_read_back(content: bytes, text: str, name: str) -> None:
    name = name.encode("utf-8", "ignore").decode() or "x"
    text = text.encode("utf-8", "ignore").decode()
    parts = encoded({"file": (name, content, "text/plain")}, {"user": text})
    assert parts == [
        Part("user", None, "", text.encode()),
        Part("file", parts[1].filename, "text/plain", content),
    ]
    assert parts[0].text == text
    if not any(letter in name for letter in '"\\%\r\n') and name.isprintable():
        assert parts[1].filename == name


def test_bytes_that_look_like_a_boundary_stay_bytes() -> None:
    body = b'--b\r\nContent-Disposition: form-data; name="f"; filename="a"\r\n\r\n\r\n--\r\n--a\r\n--b--\r\n'
    assert parse_multipart("multipart/form-data; boundary=b", body) == [Part("f", "a", "", b"\r\n--\r\n--a")]


def test_names_in_the_long_form_and_text_in_front_of_the_first_boundary() -> None:
    body = (
        b"preamble\r\n--b c\r\nContent-Disposition: form-data; name=f; filename*=UTF-8''%e2%82%ac.txt\r\n"
        b"Content-Type: text/plain; charset=utf-8\r\n\r\nx\r\n--b c--"
    )
    (part,) = parse_multipart('multipart/form-data; boundary="b c"', body)
    assert (part.name, part.filename, part.mime_type, part.content) == ("f", "€.txt", "text/plain", b"x")


@pytest.mark.parametrize(
    ("kind", "body"),
    [
        ("multipart/form-data", b"--b--"),
        ("multipart/form-data; boundary=b", b""),
        ("multipart/form-data; boundary=b", b"nothing"),
        ("multipart/form-data; boundary=b", b"--b"),
        ("multipart/form-data; boundary=b", b"--b\r\n\r\nx"),
        ("multipart/form-data; boundary=b", b"--b\r\nContent-Disposition: form-data\r\n--b--"),
        ("multipart/form-data; boundary=b", b"--b\r\n\r\nx" + b"\r\n--b\r\n\r\nx" * 200 + b"\r\n--b--"),
    ],
)
def test_a_body_that_is_no_form_is_refused(kind: str, body: bytes) -> None:
    with pytest.raises(MultipartInvalid):
        parse_multipart(kind, body)


def test_an_empty_form_has_no_parts() -> None:
    assert parse_multipart("multipart/form-data; boundary=b", b"--b--\r\n") == []
