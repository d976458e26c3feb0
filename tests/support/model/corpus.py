# SPDX-FileCopyrightText: The appliance authors
# SPDX-License-Identifier: Apache-2.0
"""Text for the tiny model, chosen from what every Debian 12 machine with Python has on its disk.

Two sources, so that a cold machine needs no download: Debian's common licences (package base-files) and the running
interpreter's standard library: the language reference kept in ``pydoc_data``, and docstrings as questions and answers.
The choice is by name and in sorted order, so that one interpreter always gives one corpus.
"""

from __future__ import annotations

import ast
import hashlib
import re
import sysconfig
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from appliance.errors import HostError

LICENCES = Path("/usr/share/common-licenses")
# Debian ships these in other packages than the interpreter's own, so a machine may lack them.
LEFT_OUT = frozenset(
    [
        *("config", "test", "tests", "idlelib", "lib2to3", "distutils", "tkinter", "turtledemo", "turtle.py"),
        *("ensurepip", "site-packages", "dist-packages", "pydoc_data", "__pycache__", "venv"),
    ]
)
LONGEST_ANSWER = 200
FEWEST_WORDS = 6
PLAIN_SHARE = 0.75
HELD_OUT_OF = 12
PLAIN_WORD = re.compile(r"""["'(*`]*[A-Za-z]+(?:['-][A-Za-z]+)*["'*`]*[,.;:)]*""")
PARAGRAPHS = re.compile(r"\n\s*\n")
QUESTIONS = ("What does {name} do?", "What is {name} for?", "Explain {name}.", "Tell me about {name}.")

Documented = ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef


@dataclass(frozen=True, slots=True, kw_only=True)
class Document:
    """One text to read on: ``name`` is a licence's file name or a chapter of the language reference."""

    name: str
    text: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Exchange:
    """One question and its answer, made of one docstring of the module ``source``."""

    source: str
    question: str
    answer: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Corpus:
    """Text in a fixed order."""

    documents: tuple[Document, ...]
    exchanges: tuple[Exchange, ...]

    def texts(self) -> Iterator[str]:
        """Every text of the corpus, without marks of structure."""
        yield from (document.text for document in self.documents)
        yield from (f"{exchange.question}\n{exchange.answer}" for exchange in self.exchanges)


@dataclass(frozen=True, slots=True, kw_only=True)
class Sources:
    """Where the text lies: the folder of licences and the standard library's folder."""

    licences: Path = LICENCES
    stdlib: Path = Path(sysconfig.get_path("stdlib"))

    def files(self) -> tuple[tuple[Path, ...], Path, tuple[Path, ...]]:
        """Licences, the language reference and modules, each sorted by name.

        Raises:
            HostError: one of the three kinds is not on this machine.
        """
        licences = tuple(sorted(path for path in self.licences.glob("*") if path.is_file() and not path.is_symlink()))
        modules = tuple(sorted(path for path in self.stdlib.rglob("*.py") if _wanted(path.relative_to(self.stdlib))))
        topics = self.stdlib / "pydoc_data" / "topics.py"
        if not licences or not modules or not topics.is_file():
            raise HostError(
                f"no text to train on: expected licences in {self.licences}, modules and pydoc_data in {self.stdlib}",
                hint="Install the Debian packages base-files and libpython3.11-stdlib.",
            )
        return licences, topics, modules

    def digest(self) -> str:
        """SHA-256 over name and content of every file read, hexadecimal: the same files, the same digest."""
        licences, topics, modules = self.files()
        whole = hashlib.sha256()
        for path in (*licences, topics, *modules):
            whole.update(f"{path.name}\0{hashlib.sha256(path.read_bytes()).hexdigest()}\n".encode())
        return whole.hexdigest()

    def read(self) -> tuple[Corpus, Corpus]:
        """What to learn from, and what to judge by: the modules and chapters whose name's hash falls in one of ``HELD_OUT_OF``."""
        licences, topics, modules = self.files()
        texts = [Document(name=path.name, text=prose(path.read_text("utf-8", "replace"))) for path in licences]
        chapters = list(chapters_of(topics.read_bytes()))
        exchanges = [found for path in modules for found in exchanges_of(self._module(path), path.read_bytes())]
        learn = Corpus(
            documents=tuple(texts + [chapter for chapter in chapters if not is_held_out(chapter.name)]),
            exchanges=tuple(exchange for exchange in exchanges if not is_held_out(exchange.source)),
        )
        judge = Corpus(
            documents=tuple(chapter for chapter in chapters if is_held_out(chapter.name)),
            exchanges=tuple(exchange for exchange in exchanges if is_held_out(exchange.source)),
        )
        return learn, judge

    def _module(self, path: Path) -> str:
        return ".".join(path.relative_to(self.stdlib).with_suffix("").parts).removesuffix(".__init__")


def is_held_out(name: str) -> bool:
    """Whether text of this name judges the model instead of teaching it."""
    return int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "big") % HELD_OUT_OF == 0


def is_prose(paragraph: str) -> bool:
    """Whether the paragraph has some words and most are plain ones: no code, no grammar, no tables."""
    words = paragraph.split()
    plain = sum(1 for word in words if PLAIN_WORD.fullmatch(word))
    code = any(mark in paragraph for mark in (">>>", "::="))
    return len(words) >= FEWEST_WORDS and plain >= PLAIN_SHARE * len(words) and not code


def prose(text: str) -> str:
    """The prose of ``text``, one line a paragraph, an empty line between two."""
    paragraphs = (paragraph for paragraph in PARAGRAPHS.split(text) if is_prose(paragraph))
    return "\n\n".join(" ".join(paragraph.split()) for paragraph in paragraphs)


def chapters_of(source: bytes) -> Iterator[Document]:
    """The chapters, sorted by name, in the source text of ``pydoc_data/topics.py``: one assignment of one dictionary."""
    for statement in ast.parse(source).body:
        if isinstance(statement, ast.Assign) and isinstance(statement.value, ast.Dict):
            chapters = ast.literal_eval(statement.value)
            for name in sorted(chapters):
                if text := prose(chapters[name]):
                    yield Document(name=name, text=text)


def exchanges_of(module: str, source: bytes) -> Iterator[Exchange]:
    """A question about every public name of one module whose docstring begins with a short sentence, and that sentence."""
    try:
        tree = ast.parse(source)
    except (SyntaxError, ValueError):
        return
    for name, node in _named(module, tree):
        answer = " ".join(PARAGRAPHS.split(ast.get_docstring(node) or "", maxsplit=1)[0].split())
        if len(answer) <= LONGEST_ANSWER and answer.endswith(".") and " " in answer:
            question = QUESTIONS[len(name) % len(QUESTIONS)].format(name=name)
            yield Exchange(source=module, question=question, answer=answer)


def _named(name: str, node: Documented) -> Iterator[tuple[str, Documented]]:
    if any(part.startswith("_") for part in name.split(".")):
        return
    yield name, node
    for child in node.body:
        if isinstance(child, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            yield from _named(f"{name}.{child.name}", child)


def _wanted(relative: Path) -> bool:
    return not any(part in LEFT_OUT or part.startswith(("config-", "_sysconfigdata")) for part in relative.parts)
