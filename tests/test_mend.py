"""What is taken away from built pages: only what no page and no script asks for."""

import mend

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
