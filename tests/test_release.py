"""What is released: the container, the citation, and the metadata of the package."""

import re
import tomllib
from fnmatch import fnmatch
from pathlib import Path

import yaml

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
PYTHONS = ["3.11", "3.12", "3.13"]


def _instructions(name: str) -> list[tuple[str, str]]:
    """Returns the instructions of a Dockerfile with their arguments, continued lines joined."""
    lines = [
        line
        for line in (ROOT / name).read_text(encoding="utf-8").splitlines()
        if line and not line.startswith("#")
    ]
    joined = "\n".join(lines).replace("\\\n", "")
    return [
        (word, rest.strip()) for word, _, rest in (x.partition(" ") for x in joined.split("\n"))
    ]


def test_the_container_copies_files_that_exist() -> None:
    allowed = [
        line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line[:1] == "!"
    ]
    release = (ROOT / ".ci" / "release").read_text()
    sources = [
        source
        for word, rest in _instructions("Dockerfile")
        if word == "COPY"
        for source in rest.split()[:-1]
    ]
    assert sources
    for source in sources:
        assert any(fnmatch(source, pattern) for pattern in allowed), source
        # `make release` makes the wheel.
        assert (ROOT / source).exists() or (
            source == "dist/*.whl" and 'mv "$work/first/out" dist' in release
        )


def test_the_container_runs_as_a_user_without_rights() -> None:
    users = [rest for word, rest in _instructions("Dockerfile") if word == "USER"]
    assert users == ["1000"]
    assert ("ENTRYPOINT", '["multibox"]') in _instructions("Dockerfile")


def test_the_container_has_extras_and_a_python_that_exist() -> None:
    arguments = dict(
        rest.split("=", 1) for word, rest in _instructions("Dockerfile") if word == "ARG"
    )
    extras = PROJECT["project"]["optional-dependencies"]
    assert set(arguments["EXTRAS"].split(",")) <= extras.keys()
    assert arguments["PYTHON"] in PYTHONS


def test_the_versions_of_python_agree() -> None:
    named = [
        name.rpartition(" :: ")[2]
        for name in PROJECT["project"]["classifiers"]
        if re.search(r":: 3\.\d+$", name)
    ]
    assert named == PYTHONS
    assert PROJECT["project"]["requires-python"] == f">={PYTHONS[0]}"
    page = (ROOT / "docs" / "support.md").read_text(encoding="utf-8")
    (row,) = re.findall(r"^\| Python \| (.*?) \|", page, re.MULTILINE)
    assert row == ", ".join(PYTHONS)


def test_the_citation_is_that_of_this_version() -> None:
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    project = PROJECT["project"]
    assert citation["version"] == project["version"]
    assert citation["license"] == project["license"]
    assert {"cff-version", "message", "title", "authors"} <= citation.keys()
    assert [author["name"] for author in citation["authors"]] == [
        author["name"] for author in project["authors"]
    ]


def test_the_wheel_has_every_file_of_the_package() -> None:
    package = ROOT / "src" / "multibox"
    patterns = PROJECT["tool"]["setuptools"]["package-data"]["multibox"]
    others = [
        path.relative_to(package)
        for path in package.rglob("*")
        if path.is_file() and path.suffix != ".py" and "__pycache__" not in path.parts
    ]
    assert others
    for path in others:
        assert any(
            path.match(pattern) and len(path.parts) == len(Path(pattern).parts)
            for pattern in patterns
        ), path
