"""What is taken away from built pages: only what no page and no script asks for."""

from pathlib import Path

import mend
import pydata_sphinx_theme

SHEET = """
/* a comment */
a, .on .off, .on .b:hover { color: red; /* another */ }
.off { color: red }
@media print { .off { color: red } }
@media screen { #on > .b { color: red } .off { color: red } }
.b:not(.off, .gone), .b:is(.off), .b[title=".off"] { color: red }
.bs-tooltip-auto { color: red }
.md\\:on { color: red }
@font-face { font-family: b }
/*# sourceMappingURL=a.css.map */
"""


def test_rules_for_what_is_nowhere_are_left_out():
    assert mend.used(SHEET, {"on", "b"}).split("\n") == [
        "a, .on .b:hover{color: red;}",
        "@media screen{#on > .b{color: red}}",
        '.b:not(.off, .gone), .b:is(.off), .b[title=".off"]{color: red}',
        ".bs-tooltip-auto{color: red}",
        ".md\\:on{color: red}",
        "@font-face { font-family: b }",
    ]


def test_the_theme_asks_all_boxes_first_whether_they_scroll():
    (script,) = Path(pydata_sphinx_theme.__file__).parent.rglob("static/scripts/pydata-sphinx-theme.js")
    mended, found = mend.ASKS.subn(mend.ASKS_ALL_FIRST, script.read_text(encoding="utf-8"))
    assert found == 1 and "scrolls=boxes.map(e=>e.scrollWidth>e.clientWidth||e.scrollHeight>e.clientHeight);" in mended
