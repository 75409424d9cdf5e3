"""The build of the site fails where an API page lacks something that it lists."""

from tools.api_pages import listed, missing

PAGE = """# Title

::: package.Class
    options:
      merge_init_into_class: false
      members:
        - one
        - two

::: package.function

::: package.Other
    options: { members: false }
"""


def test_listed():
    assert listed(PAGE) == [
        "package.Class",
        "package.Class.one",
        "package.Class.two",
        "package.function",
        "package.Other",
    ]


def test_missing():
    html = '<h2 id="package.Class"><h3 id="package.Class.two"><h2 id="package.Other">'
    assert missing(PAGE, html) == ["package.Class.one", "package.function"]
