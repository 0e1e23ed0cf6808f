"""Bytes to text: UTF-8, or what the bytes most likely are among the encodings of Chinese and Western pages.

Strict UTF-8 wins whatever a page declares (pages that declare gb2312 and are UTF-8 are common). Otherwise the declared
and the usual encodings are tried strictly, and the one whose characters are the most common ones wins.
"""

from __future__ import annotations

import codecs

REPLACEMENT_SHARE = 0.001
"""DP1: a text with a larger share of U+FFFD is not worth keeping."""

_BOMS = ((codecs.BOM_UTF8, "utf-8-sig"), (codecs.BOM_UTF32_LE, "utf-32"), (codecs.BOM_UTF32_BE, "utf-32"),
         (codecs.BOM_UTF16_LE, "utf-16"), (codecs.BOM_UTF16_BE, "utf-16"))
_CANDIDATES = ("gb18030", "big5hkscs", "euc-jp", "shift_jis", "euc-kr", "cp1252")
_ALIASES = {"gb2312": "gb18030", "gbk": "gb18030", "x-gbk": "gb18030", "gb_2312-80": "gb18030", "big5": "big5hkscs",
            "iso-8859-1": "cp1252", "latin-1": "cp1252", "latin1": "cp1252", "us-ascii": "cp1252", "ascii": "cp1252"}
_COMMON = frozenset(
    "的一是不了在人有我他这個个們们中来來上大为為和国國地到以说說时時要就出会會可也你对對生能而子那得于着下自之年过"
    "過发發后後作里裡用道行所然家种種事成方多经經么去法学學如都同现現当當没沒动動面起看定天分还還进進好小部其些主样"
    "樣理心她本前开開但因只从從想实實日军者意无無力它与與长長把机機十民第公此已工使情明性知全三又关關点點正业業外将"
    "將两兩高间間由问問很最重并物手应應战戰向头頭文体體政美相见見被利什二等产產或新己制身果加西斯月话話合回特代内內"
    "信表化老给給世位次度门門任常先海通教儿兒原东東声聲提立及比员員解水名真论論处處走义義各入几幾口认認条條平系气氣"
    "题題活尔爾更别別打女变變四神总總何电電数數安少报報才结結反受目太量再感建务務做接必场場件计計管期市直德资資命山"
    "金指克许許统統区區保至队隊形社便空决決治展马馬科司五基眼书書非则則听聽白却卻界达達光放强強即像难難且权權思王象"
    "完设設式色路记記南品住告类類求据據程北边邊死张張该該交规規万萬取拉格望觉覺术術领領共确確传傳师師观觀清今切院让"
    "讓识識候带帶导導争爭运運，。、；：？！“”‘’（）《》「」『』　・のにはをたがでてとしれさいるもなからっくーン"
    "スト이다는의을가에고지를한"
)


def decode(data: bytes, *, declared: str | None = None) -> tuple[str, str]:
    """The text and the name of its encoding. What no encoding reads strictly is UTF-8 with U+FFFD, named "utf-8?"."""
    for bom, name in _BOMS:
        if data.startswith(bom):
            try:
                return data.decode(name), name
            except UnicodeDecodeError:
                break
    try:
        return data.decode("utf-8"), "utf-8"
    except UnicodeDecodeError as error:
        broken_at = error.start
    if broken_at >= len(data) - 3 and broken_at > 0:  # cut inside the last character
        return data[:broken_at].decode("utf-8"), "utf-8"
    best: tuple[float, str, str] | None = None
    for name in dict.fromkeys([*_known(declared), *_CANDIDATES]):
        try:
            text = data.decode(name)
        except UnicodeDecodeError as error:
            if len(data) - error.start > 2:
                continue
            text = data[: error.start].decode(name)
        score = _plausible(text) + (0.02 if name in _known(declared) else 0.0)
        if best is None or score > best[0]:
            best = (score, text, name)
    replaced = data.decode("utf-8", "replace")
    broken = replaced.count("�")
    if best is None or broken <= REPLACEMENT_SHARE * len(replaced):
        return replaced, "utf-8?"
    return best[1], best[2]


def _known(declared: str | None) -> list[str]:
    if not declared:
        return []
    name = _ALIASES.get(declared.strip().lower(), declared.strip().lower())
    try:
        codecs.lookup(name)
    except LookupError:
        return []
    return [name]


def _plausible(text: str) -> float:
    """Share of common characters among those outside ASCII, less what real text does not hold; higher is likelier."""
    outside = [character for character in text[:20_000] if character >= "\x80"]
    if not outside:
        return 1.0
    common = sum(character in _COMMON or "À" <= character <= "ÿ" for character in outside)
    odd = sum("\x80" <= character < "\xa0" or "\ue000" <= character <= "\uf8ff" for character in outside)
    latin = sum("\xa0" <= character <= "ÿ" for character in outside)
    crowded = latin > len(outside) * 0.5 and latin > 0.25 * min(len(text), 20_000)
    return (common - 2 * odd) / len(outside) - (1.0 if crowded else 0.0)
