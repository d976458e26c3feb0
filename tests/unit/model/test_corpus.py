# SPDX-FileCopyrightText: The appliance authors
# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from pathlib import Path

import pytest

from appliance.errors import HostError
from tests.support.model.corpus import Sources, exchanges_of, is_held_out, is_prose, prose

CHAPTER = "The statement is a simple thing to say.\n\n   stmt ::= 'say' | 'do'\n\nA second paragraph is here to be read,\nover two lines."


@pytest.fixture
def sources(tmp_path: Path) -> Sources:
    licences, stdlib = tmp_path / "licences", tmp_path / "stdlib"
    (stdlib / "pydoc_data").mkdir(parents=True)
    licences.mkdir()
    (licences / "MIT").write_text("You may use this work for any purpose at all.\n")
    (licences / "ALIAS").symlink_to("MIT")
    (stdlib / "pydoc_data" / "topics.py").write_text(f"topics = { ({f'chapter{n}': CHAPTER for n in range(40)})!r}\n")
    for number in range(40):
        (stdlib / f"mod{number}.py").write_text(f'"""Module number {number}, a useful one."""\n')
    (stdlib / "test").mkdir()
    (stdlib / "test" / "test_it.py").write_text('"""A test that is not read."""\n')
    return Sources(licences=licences, stdlib=stdlib)


def test_the_same_files_give_the_same_corpus_and_digest(sources: Sources) -> None:
    assert sources.read() == sources.read()
    assert sources.digest() == sources.digest()


def test_one_changed_byte_changes_the_digest_and_a_file_left_out_does_not(sources: Sources) -> None:
    before = sources.digest()
    (sources.stdlib / "test" / "test_it.py").write_text("changed")
    assert sources.digest() == before
    (sources.stdlib / "mod7.py").write_text('"""Module number 7, a useless one."""\n')
    assert sources.digest() != before


def test_what_judges_is_never_learnt(sources: Sources) -> None:
    learn, judge = sources.read()
    assert judge.documents
    assert judge.exchanges
    assert {document.name for document in learn.documents}.isdisjoint(document.name for document in judge.documents)
    assert {exchange.source for exchange in learn.exchanges}.isdisjoint(exchange.source for exchange in judge.exchanges)
    assert len(learn.documents) + len(judge.documents) == 41
    assert all(is_held_out(document.name) for document in judge.documents)


def test_a_machine_without_licences_is_unfit(sources: Sources) -> None:
    (sources.licences / "MIT").unlink()
    with pytest.raises(HostError, match="no text to train on") as caught:
        sources.read()
    assert caught.value.hint


def test_prose_keeps_sentences_on_one_line_and_drops_grammar_code_and_fragments() -> None:
    assert prose(CHAPTER) == "The statement is a simple thing to say.\n\nA second paragraph is here to be read, over two lines."
    assert is_prose("The quick brown fox jumps over it.")
    assert not is_prose(">>> the quick brown fox jumps over it")
    assert not is_prose("0x00 0x01 | 17 == 18 ## %s the end of it")
    assert not is_prose("Too few words.")


def test_a_question_is_asked_about_public_names_with_a_short_sentence_only() -> None:
    source = '''
class Box:
    """A box that holds things."""
    def _shake(self):
        """Shake it well before use."""
    def open(self):
        """Open the box.

        More about it.
        """
    def close(self):
        """close(...) -> None"""
'''
    found = [(exchange.question, exchange.answer) for exchange in exchanges_of("box", source.encode())]
    assert [answer for _, answer in found] == ["A box that holds things.", "Open the box."]
    assert "box.Box.open" in found[1][0]


def test_a_module_this_interpreter_cannot_parse_is_passed_over() -> None:
    assert list(exchanges_of("bad", b"def broken(:\n")) == []
    assert list(exchanges_of("bad", b"\0")) == []


def test_this_machine_has_enough_text() -> None:
    learn, judge = Sources().read()
    assert sum(map(len, learn.texts())) > 500_000
    assert sum(map(len, judge.texts())) > 20_000
    assert {"GPL-3", "Apache-2.0"} <= {document.name for document in learn.documents}
