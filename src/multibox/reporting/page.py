"""Renders the templates of the pages.

A page is one file without requests. Its policy lets the browser run only the scripts of this
package, by their hash, so that no text from a run or a dataset can run.
"""

import base64
import hashlib
import json
from collections.abc import Mapping, Sequence
from importlib import resources
from typing import Any

import jinja2
from markupsafe import Markup

from multibox.reporting import tables, text

STYLES = ("base.css", "uplot.min.css", "report.css")
SCRIPTS = ("uplot.min.js", "theme.js", "charts.js", "page.js")

PICTURES = "img-src data:"
"""What the pages of runs may load: pictures that they contain."""


def render(
    template: str,
    context: Mapping[str, Any],
    *,
    styles: Sequence[str] = STYLES,
    scripts: Sequence[str] = SCRIPTS,
    data: Mapping[str, Any] | None = None,
    allowed: str = PICTURES,
) -> str:
    """Returns a page.

    Args:
        template: Name of the template. Its suffix decides how values are escaped.
        context: The values of the template.
        styles: The style sheets of an HTML page.
        scripts: The scripts of an HTML page.
        data: What the scripts read from the page.
        allowed: What the page may load, as part of its policy.
    """
    values = dict(context)
    if template.endswith(".html.j2"):
        values["script"] = Markup(_joined(scripts))
        values["styles"] = Markup("\n".join(map(_source, styles)))
        values["policy"] = policy(scripts, allowed)
        values["payload"] = json_for_script(data or {})
    return _environment(template).get_template(template).render(values)


def policy(scripts: Sequence[str], allowed: str = PICTURES) -> str:
    """Returns the policy (CSP) of a page with these scripts.

    Args:
        scripts: The scripts, as for `render`.
        allowed: What the page may load.
    """
    digest = base64.b64encode(hashlib.sha256(_joined(scripts).encode()).digest()).decode("ascii")
    return f"default-src 'none'; {allowed}; style-src 'unsafe-inline'; script-src 'sha256-{digest}'"


def _joined(scripts: Sequence[str]) -> str:
    # XML parsers ignore the comment signs, and browsers the section.
    return "//<![CDATA[\n" + "\n".join(map(_source, scripts)) + "\n//]]>"


def _source(name: str) -> str:
    templates = resources.files("multibox").joinpath("templates")
    source = templates.joinpath(name).read_text(encoding="utf-8").rstrip()
    if name == "uplot.min.js":
        # The licence asks for its text in all copies.
        licence = templates.joinpath("uplot.LICENSE").read_text(encoding="utf-8")
        return f"/*\n{licence.strip()}\n*/\n{source}"
    return source


def json_for_script(value: object) -> Markup:
    """Returns JSON that cannot end the script element that it is in."""
    escaped = json.dumps(value, separators=(",", ":"), allow_nan=False)
    for character in "<>&":
        escaped = escaped.replace(character, f"\\u{ord(character):04x}")
    return Markup(escaped)


def data_uri(content: bytes, media_type: str) -> Markup:
    """Returns a file as an address that contains it."""
    return Markup(f"data:{media_type};base64,{base64.b64encode(content).decode('ascii')}")


def _environment(template: str) -> jinja2.Environment:
    is_html = template.endswith(".html.j2")
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("multibox"),
        autoescape=is_html,
        finalize=text.html_value if is_html else text.markdown_value,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters["decimals"] = text.decimals
    environment.filters["with_code"] = text.with_code
    environment.globals["table"] = text.markdown_table
    environment.globals["text_rows"] = tables.text_rows
    environment.globals["aligned"] = tables.aligned
    environment.globals["data_uri"] = data_uri
    return environment
