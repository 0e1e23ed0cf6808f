"""What the bits of a line's facts mean; apart from `lines`, so that rules can be read without a compiler."""

from __future__ import annotations

URL, AT, LONG_NUMBER, DOTTED, SPACED_HAN, SQUARE, CUT_BRACKET, BULLET, CELLS, HEADING = 1, 2, 4, 8, 16, 32, 64, 128, 256, 512
"""Bits: holds http:// or www.; an @; 11 digits in a row; three numbers joined by dots; Han, space, Han; `[`; `<`; starts with
a bullet; is made of cells between pipes; begins like a heading or a list item (#, -, `1.`, 一、, 第…章)."""
