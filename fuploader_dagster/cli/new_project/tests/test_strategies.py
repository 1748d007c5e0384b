"""What the project's own functions make of a message."""

from __future__ import annotations

import json

from fuploader_dagster import encode_file_message
from strategies import parser


def test_the_words_of_a_document_are_counted() -> None:
    message = {"file_name": "1.json", "payload": {"id": "1", "text": "two words"}}
    body = json.dumps(encode_file_message(message)).encode()
    parsed = parser(body)
    assert parsed.file_name == "1.json"
    assert parsed.payload == {"id": "1", "text": "two words", "words": 2}
